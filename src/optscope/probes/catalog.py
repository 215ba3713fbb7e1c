"""The probes that there are, by name: where they live and what they cost; what they measure they say themselves.

A cost is CPU time in steps of SGD on 128 examples, each a gradient and little more, as `compare` takes the probe of
the small network of Fashion-MNIST, or of a GAN on the ring (`python -m benchmarks B24`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import NamedTuple

from optscope.errors import UserError, nearest
from optscope.probes.probe import Probe


class Known(NamedTuple):
    """In which module a probe lives, and about how many gradients it costs (None: not measured)."""

    module: str
    cost: float | None


PROBES: Mapping[str, Known] = {
    "Accuracy": Known("accuracy", 8),
    "Chance": Known("chance", 9),
    "GaussianNoise": Known("noise", 30),
    "BandNoise": Known("noise", 100),
    "RobustAccuracy": Known("robust", 400),
    "SensitivityMap": Known("frequency", 1000),
    "Lipschitz": Known("lipschitz", 100),
    "Margin": Known("geometry", 9),
    "Geometry": Known("geometry", 6),
    "FirstStep": Known("geometry", 6),
    "StepAnatomy": Known("anatomy", 30),
    "GradientNoise": Known("gradient_noise", 10),
    "DescentSplit": Known("gradient_noise", 60),
    "TopEigenvalues": Known("curvature", 20),
    "LayerSharpness": Known("curvature", 40),
    "HessianTrace": Known("curvature", 70),
    "SpectralDensity": Known("curvature", 200),
    "PreconditionedSharpness": Known("curvature", 50),
    "EdgeOfStability": Known("edge", 30),
    "BatchSharpness": Known("batch_sharpness", 10),
    "PolarDrift": Known("polar", 3),
    "Checkpoint": Known("accuracy", 10),
    "Coverage": Known("coverage", 90),
    "Modes": Known("modes", 4),
    "Classes": Known("modes", None),
    "Samples": Known("modes", 3),
    "FID": Known("fid", None),
    "Rotation": Known("game_field", 90),
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
