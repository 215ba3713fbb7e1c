"""The probes that there are, by name: where they live and what they cost; what they measure they say themselves.

A cost is CPU time in steps of SGD on 128 examples, each a gradient and little more, as `compare` takes the probe of
the small network of Fashion-MNIST, or of a GAN on the ring; memory is what a look at it adds to a process at its
peak. `python -m benchmarks B24` measures both, and fails where one is 1.5 times what is said here, or the reverse.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import NamedTuple

from optscope.errors import UserError, nearest
from optscope.probes.probe import Probe


class Known(NamedTuple):
    """In which module a probe lives, about how many gradients it costs, and MB (None: not measured)."""

    module: str
    cost: float | None = None
    memory: float | None = None


PROBES: Mapping[str, Known] = {
    "Accuracy": Known("accuracy", 8, 5),
    "Chance": Known("chance", 9, 5),
    "GaussianNoise": Known("noise", 30, 20),
    "BandNoise": Known("noise", 100, 50),
    "RobustAccuracy": Known("robust", 400, 30),
    "SensitivityMap": Known("frequency", 1000, 20),
    "Lipschitz": Known("lipschitz", 100, 10),
    "Margin": Known("geometry", 9, 8),
    "Geometry": Known("geometry", 6, 8),
    "FirstStep": Known("geometry", 6, 10),
    "StepAnatomy": Known("anatomy", 30, 30),
    "GradientNoise": Known("gradient_noise", 10, 6),
    "DescentSplit": Known("gradient_noise", 20, 20),
    "TopEigenvalues": Known("curvature", 20, 20),
    "LayerSharpness": Known("curvature", 40, 20),
    "HessianTrace": Known("curvature", 70, 30),
    "SpectralDensity": Known("curvature", 200, 40),
    "PreconditionedSharpness": Known("curvature", 50, 30),
    "EdgeOfStability": Known("edge", 30, 20),
    "BatchSharpness": Known("batch_sharpness", 10, 9),
    "PolarDrift": Known("polar", 3, 2),
    "Checkpoint": Known("accuracy", 10, 5),
    "Coverage": Known("coverage", 90, 50),
    "Modes": Known("modes", 4, 2),
    "Classes": Known("modes"),
    "Samples": Known("modes", 3, 1),
    "FID": Known("fid"),
    "Rotation": Known("game_field", 90, 9),
}


def kind_named(name: str) -> type[Probe]:
    """Return the probe of a name.

    >>> kind_named("Margin").needs
    ('one network', 'labels')

    Raises:
        UserError: naming the nearest, where there is none.
    """
    if name not in PROBES:
        raise UserError(f'no probe "{name}"; {nearest(name, PROBES)}')
    kind: type[Probe] = getattr(importlib.import_module(f"optscope.probes.{PROBES[name].module}"), name)
    return kind


def measures(kind: type[Probe]) -> str:
    """Return in a sentence what a probe measures: the first of its docstring."""
    return (kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip()
