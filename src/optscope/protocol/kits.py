"""What a comparison usually measures of a task and chooses by: one kit for predictors, one for generators."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace

from optscope.errors import UserError
from optscope.optim import Players, PolarSGD
from optscope.probes.accuracy import Accuracy
from optscope.probes.anatomy import StepAnatomy
from optscope.probes.attack import PGD
from optscope.probes.chance import Chance
from optscope.probes.coverage import Coverage
from optscope.probes.curvature import HessianTrace, TopEigenvalues
from optscope.probes.edge import EdgeOfStability
from optscope.probes.embedding import GREY, EfficientNetLite0, Embedding, OwnClassifier, Pixels
from optscope.probes.game_field import Rotation
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import GradientNoise
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.modes import Modes
from optscope.probes.needs import fitting, lacking
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.polar import PolarDrift
from optscope.probes.probe import Probe
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.comparison import VALIDATION, Arm, Criterion
from optscope.tasks.check_inputs import overlap, scales
from optscope.tasks.mixtures import Mixture
from optscope.tasks.task import Task
from optscope.tasks.tree import leaves


class Kit(ABC):
    """What is usual for tasks of one sort."""

    twins: bool
    """Whether arms have rounding twins."""

    def arm(self, arm: Arm, task: Task) -> Arm:
        """Return the arm as it can train the task."""
        return arm

    def judge(self, task: Task) -> tuple[Criterion, Probe]:
        """Return what learning rates are chosen by, and the probe that measures it on validation data."""
        return Criterion(), VALIDATION

    @abstractmethod
    def probes(self, task: Task, examples: int) -> tuple[Probe, ...]:
        """Return the probes that arms are compared by; `examples` is how many a dear one looks at."""

    def describing(self, task: Task, examples: int) -> tuple[Probe, ...]:
        """Return cheap probes of what a model is like, in which more is neither better nor worse."""
        return ()

    def curved(self, task: Task) -> tuple[Probe, ...]:
        """Return the probes of a saved model that do without the optimiser that is watched in training."""
        return ()

    def watched(self, arms: Sequence[Arm]) -> tuple[Probe, ...]:
        """Return the probes that are taken during training."""
        return ()

    def at_end(self) -> tuple[Probe, ...]:
        """Return the probes that are taken after the last step, with the live optimiser."""
        return ()

    @abstractmethod
    def left_out(self, task: Task) -> list[str]:
        """Return a sentence for each kind of measurement that `probes` leaves out of a task."""

    def known(self, task: Task) -> list[str]:
        """Return what is to be said of a task's data."""
        return []

    @abstractmethod
    def asked(self, task: Task, probes: Sequence[Probe]) -> str:
        """Return what a comparison by such probes asks."""


class Predictors(Kit):
    """Tasks of one model, which predicts its targets."""

    twins = True

    def probes(self, task: Task, examples: int) -> tuple[Probe, ...]:
        """Return the probes that make sense: images get bands, bounded inputs noise and attacks.

        Sizes are in units of the bounds' width, so that they mean the same for [0, 1] and [0, 255].
        """
        probes: list[Probe] = [Accuracy()]
        if task.bounds is not None:
            width = task.bounds[1] - task.bounds[0]
            attack = PGD(steps=20, restarts=1)

            def scaled(*sizes: float, power: int = 1) -> tuple[float, ...]:
                return tuple(size * width**power for size in sizes)
            probes += [
                GaussianNoise(variances=scaled(0.001, 0.01, 0.05, power=2)),
                RobustAccuracy("l2", eps=scaled(0.1, 0.25, 0.5, 0.75, 1.0), attack=attack, examples=examples),
                RobustAccuracy("linf", eps=scaled(0.005, 0.01, 0.02, 0.03, 0.04), attack=attack, examples=examples)]
            if _large(_moved_shape(task)):
                probes.append(BandNoise(variance=0.1 * width**2))
        return fitting((*probes, Lipschitz(examples=64)), task)

    def describing(self, task: Task, examples: int) -> tuple[Probe, ...]:
        """Return what tells of chance, margins, weights, steps and noise."""
        return fitting((Chance(), Margin(examples=examples), Geometry(), FirstStep(), GradientNoise()), task)

    def curved(self, task: Task) -> tuple[Probe, ...]:
        """Return how sharply the training loss bends."""
        return fitting((TopEigenvalues(), HessianTrace()), task)

    def watched(self, arms: Sequence[Arm]) -> tuple[Probe, ...]:
        """Return the edge of stability, and of polar descent whether it follows its flow."""
        polar = any(isinstance(arm.rule, PolarSGD) for arm in arms)
        return (EdgeOfStability(), PolarDrift()) if polar else (EdgeOfStability(),)

    def at_end(self) -> tuple[Probe, ...]:
        """Return what the next step would be made of."""
        return (StepAnatomy(),)

    def left_out(self, task: Task) -> list[str]:
        """Return why attacks, noise, bands or Lipschitz bounds are not measured."""
        still, said = lacking(Lipschitz(), task), ""
        shape = _moved_shape(task)
        if not task.about.single:
            also = "" if task.about.dense else "accuracy, calibration, "
            said = f'{also}margins, noise and attacks are not measured: they need kind="classification".'
        elif task.bounds is None:
            said = "noise and attacks are not measured: the inputs have no bounds (bounds=None)."
        elif still:
            said = f"noise and attacks are not measured: {still}."
        elif not _large(shape):
            said = ("noise of single frequencies is not measured: that needs images of 8 x 8 or more; the inputs "
                    f"have shape {shape}.")
        found = [said, f"Lipschitz bounds are not measured: {still}." if still else ""]
        return [f"{task.name}: {each}" for each in found if each]

    def known(self, task: Task) -> list[str]:
        """Return which examples parts share, and inputs on very different scales."""
        data = task.data()
        return [*overlap(data), *scales(data)]

    def asked(self, task: Task, probes: Sequence[Probe]) -> str:
        """Return the question of accuracy, robustness and smoothness."""
        first = "is more accurate" if task.about.pairs else "has the lower loss"
        robust = ", more robust" * any(isinstance(probe, RobustAccuracy) for probe in probes)
        return f"which model {first}{robust}, and which is smoother?"


class Generators(Kit):
    """Games of several players, one of which makes things like the examples."""

    twins = False

    def arm(self, arm: Arm, task: Task) -> Arm:
        """Return the arm in which every player follows the arm's rule; its rates stay what they are for each."""
        if isinstance(arm.rule, Players):
            return arm
        return replace(arm, rule=Players(**{objective.player: arm.rule for objective in task.objectives}))

    def judge(self, task: Task) -> tuple[Criterion, Probe]:
        """Return what a generator's learning rates are chosen by: what it misses of the validation part."""
        if isinstance(task.data, Mixture):
            return Criterion("missed mass"), Modes(task.data, split="validation")
        return Criterion("Fréchet distance"), Coverage(embedding(task), split="validation")

    def probes(self, task: Task, examples: int) -> tuple[Probe, ...]:
        """Return what tells of generated things, of the game's field, and of modes where they are known."""
        known = (Modes(task.data),) if isinstance(task.data, Mixture) else ()
        return fitting((Coverage(embedding(task)), Rotation(), *known), task)

    def left_out(self, task: Task) -> list[str]:
        """Return whether images are compared by pixels alone."""
        blind = task.data().train.first(1).inputs.dim() == 4 and embedding(task) == Pixels()
        return [f"{task.name}: images are compared by their pixels, for lack of features: a data set that has the "
                f"attribute `features`, one of {', '.join(GREY)}, is seen by that classifier."] if blind else []

    def asked(self, task: Task, probes: Sequence[Probe]) -> str:
        """Return the question of coverage."""
        return "whose generator covers what is real?"


def kit_of(task: Task) -> Kit:
    """Return what is usual for a task: of one player a predictor's, of several a generator's."""
    return Predictors() if len(task.objectives) == 1 else Generators()


def with_defaults(kind: type[Probe]) -> Probe:
    """Return a probe that is not usual for a task with its own defaults.

    Raises:
        UserError: when it has settings without a default.
    """
    if any(f.init and f.default is MISSING and f.default_factory is MISSING for f in fields(kind)):
        raise UserError(f"{kind.__name__} has settings without a default: give it from Python, probes=["
                        f"{kind.__name__}(...)]")
    return kind()


def _moved_shape(task: Task) -> tuple[int, ...]:
    """Return the shape of what noise and attacks move of an example, () where there is nothing."""
    inputs = task.data().test.inputs
    path = task.perturbed(inputs)
    return () if path is None else tuple(leaves(inputs)[path].shape[1:])


def _large(shape: tuple[int, ...]) -> bool:
    """Return whether inputs are images in which bands of frequencies say something."""
    return len(shape) == 3 and min(shape[-2:]) >= 8


def embedding(task: Task) -> Embedding:
    """Return the features in which images are compared: of a classifier that was trained on such images.

    A data set says so by its `features`; of another one of the same shape the classifier knows nothing.
    """
    own = getattr(task.data, "features", None)
    if own is not None:
        return OwnClassifier(own)
    shape = tuple(task.data().train.first(1).inputs.shape[1:])
    if len(shape) == 3 and shape[0] == 3 and importlib.util.find_spec("efficientnet_lite_pytorch"):
        return EfficientNetLite0()
    return Pixels()
