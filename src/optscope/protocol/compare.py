"""The comparison a user gets who says little: ready arms, every probe that fits the task, paired seeds."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from optscope.engine.plan import Plan
from optscope.errors import UserError
from optscope.optim import Graft, Players, PolarSGD, StepDecay
from optscope.probes.accuracy import Accuracy
from optscope.probes.attack import PGD
from optscope.probes.chance import Chance
from optscope.probes.coverage import Coverage
from optscope.probes.edge import EdgeOfStability
from optscope.probes.embedding import GREY, EfficientNetLite0, Embedding, OwnClassifier, Pixels
from optscope.probes.game_field import Rotation
from optscope.probes.geometry import FirstStep, Geometry, Margin
from optscope.probes.gradient_noise import GradientNoise
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.modes import Modes
from optscope.probes.noise import BandNoise, GaussianNoise
from optscope.probes.polar import PolarDrift
from optscope.probes.probe import Probe
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.arms import arm_named
from optscope.protocol.comparison import Arm, Comparison, Criterion
from optscope.protocol.grafts import graft_arms
from optscope.protocol.settings import Settings
from optscope.tasks.game import Game
from optscope.tasks.mixtures import Mixture
from optscope.tasks.task import Task
from optscope.tasks.tree import leaves

FIRST_TUNING_SEED = 1001
"""Seeds that choose learning rates start here; those that compare arms start at 1."""


def comparison_of(task: Task, settings: Settings, arms: Sequence[Arm] = ()) -> Comparison:
    """Return the comparison that settings describe; `arms` take the place of the settings' optimisers.

    Raises:
        UserError: when there are fewer than two arms, or no optimiser of a name.
    """
    chosen = tuple(arms) or arms_of(settings)
    if len(chosen) < 2:
        raise UserError(f"a comparison needs two optimisers or more; got {chosen[0].name} alone: add another, "
                        'for example "sgd" or "adam"')
    if settings.graft:
        chosen = graft_arms([arm for arm in chosen if not isinstance(arm.rule, Graft)])
    seeds = tuple(range(1, settings.seeds + 1))
    common = Comparison(task.name, task, chosen, Plan(settings.epochs, settings.batch, StepDecay()),
                        fitting_probes(task, settings.examples), seeds,
                        tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + settings.tuning_seeds)))
    if isinstance(task, Game):
        criterion, validation = _judge(task)
        return replace(common, arms=tuple(_for_players(arm, task) for arm in chosen), criterion=criterion,
                       validation=validation)
    polar = any(isinstance(arm.rule, PolarSGD) for arm in chosen)
    return replace(common, watched=(EdgeOfStability(), PolarDrift()) if polar else (EdgeOfStability(),),
                   described=describing_probes(task, settings.examples), twin_seeds=seeds[:settings.twin_seeds])


def arms_of(settings: Settings) -> tuple[Arm, ...]:
    """Return the arms that settings name, with the learning rates they give or the usual ones."""
    return tuple(arm_named(name, said.lr) for name, said in settings.optimisers.items())


def _judge(game: Game) -> tuple[Criterion, Probe]:
    """Return what a generator's learning rates are chosen by: what it misses of the validation part."""
    if isinstance(game.data, Mixture):
        return Criterion("missed mass"), Modes(game.data, split="validation")
    return Criterion("Fréchet distance"), Coverage(_embedding(game), split="validation")


def _for_players(arm: Arm, game: Game) -> Arm:
    """Return the arm in which every player follows the arm's rule; its rates stay what they are for each."""
    if isinstance(arm.rule, Players):
        return arm
    return replace(arm, rule=Players(**{player.name: arm.rule for player in game.players}))


def _embedding(game: Game) -> Embedding:
    """Return the features in which a game's images are compared: of a classifier that was trained on such images.

    A data set says so by its `features`; of another one of the same shape the classifier knows nothing.
    """
    own = getattr(game.data, "features", None)
    if own is not None:
        return OwnClassifier(own)
    shape = tuple(game.data().train.inputs.shape[1:])
    if len(shape) == 3 and shape[0] == 3 and importlib.util.find_spec("efficientnet_lite_pytorch"):
        return EfficientNetLite0()
    return Pixels()


def fitting_probes(task: Task, examples: int) -> tuple[Probe, ...]:
    """Return the probes that make sense: images get bands, bounded inputs noise and attacks, games their own.

    Sizes are in units of the bounds' width, so that they mean the same for [0, 1] and [0, 255].
    """
    if isinstance(task, Game):
        known = (Modes(task.data),) if isinstance(task.data, Mixture) else ()
        return Coverage(_embedding(task)), Rotation(), *known
    probes: list[Probe] = [Accuracy()]
    inputs = task.data().test.inputs
    path = task.perturbed(inputs)
    if task.about.single and task.bounds is not None and path is not None:
        width = task.bounds[1] - task.bounds[0]
        images = leaves(inputs)[path]
        attack = PGD(steps=20, restarts=1)

        def scaled(*sizes: float, power: int = 1) -> tuple[float, ...]:
            return tuple(size * width**power for size in sizes)

        probes += [
            GaussianNoise(variances=scaled(0.001, 0.01, 0.05, power=2)),
            RobustAccuracy("l2", eps=scaled(0.1, 0.25, 0.5, 0.75, 1.0), attack=attack, examples=examples),
            RobustAccuracy("linf", eps=scaled(0.005, 0.01, 0.02, 0.03, 0.04), attack=attack, examples=examples)]
        if images.dim() == 4 and min(images.shape[-2:]) >= 8:
            probes.append(BandNoise(variance=0.1 * width**2))
    return (*probes, Lipschitz(examples=64))


def not_taken(task: Task) -> list[str]:
    """Return a sentence for each kind of measurement that `fitting_probes` leaves out of a task."""
    if isinstance(task, Game):
        blind = task.data().train.inputs.dim() == 4 and _embedding(task) == Pixels()
        return [f"{task.name}: images are compared by their pixels, for lack of features: a data set that has the "
                f"attribute `features`, one of {', '.join(GREY)}, is seen by that classifier."] if blind else []
    if not task.about.single:
        also = "" if task.about.dense else "accuracy, calibration, "
        return [f"{task.name}: {also}margins, noise and attacks are not measured: they need "
                'kind="classification".']
    if task.bounds is None:
        return [f"{task.name}: noise and attacks are not measured: the inputs have no bounds (bounds=None)."]
    inputs = task.data().test.inputs
    path = task.perturbed(inputs)
    if path is None:
        return [f"{task.name}: noise and attacks are not measured: no leaf of the inputs is floating point."]
    shape = tuple(leaves(inputs)[path].shape[1:])
    if len(shape) != 3 or min(shape[-2:]) < 8:
        return [f"{task.name}: noise of single frequencies is not measured: that needs images of 8 x 8 or more; "
                f"the inputs have shape {shape}."]
    return []


def describing_probes(task: Task, examples: int) -> tuple[Probe, ...]:
    """Return cheap probes of what a model is like, in which more is neither better nor worse."""
    margin = (Margin(examples=examples),) if task.about.single else ()
    return (Chance(), *margin, Geometry(), FirstStep(), GradientNoise())
