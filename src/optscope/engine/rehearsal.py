"""A rehearsal: what a comparison will do to a task, done once and small, so that nothing fails late or unsaid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from optscope.engine.checkpoint import check_kept
from optscope.engine.gradient import Gradient
from optscope.engine.parts import check_buffers, said_of_parts
from optscope.engine.place import CPU, MemoryShortError, Place, memory_told
from optscope.engine.plan import Plan
from optscope.engine.training import Training, check_inside, check_ranked
from optscope.engine.watch import take
from optscope.errors import UserError, blaming, first_words
from optscope.optim.rule import Rule
from optscope.optim.schedules import Constant
from optscope.optim.trial import holds_foreign, notes
from optscope.probes.probe import Probe, Reading
from optscope.tasks.fresh import fresh_model, seeded
from optscope.tasks.objective import Objective
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Data, InMemory, Split, Task
from optscope.tasks.tree import Batch, leaves, same, shown

STEPS = 3
"""How many steps every arm makes, all on the first batch."""
EXAMPLES = 32
"""How many examples of each part probes look at first; those that find nothing there get all of them."""
SEED = 0
TIMED = 1000
"""At most so many steps tell how long one takes."""


@dataclass
class Rehearsal:
    """What a rehearsal found, in sentences.

    `said` is what a reader should know of the arms; `silent` tells of every probe that measures nothing of an
    untrained model why, and `broken` with what others stopped; `single` tells of arms why their steps cannot be
    taken inside a combinator, and so have no rounding twins. `seconds` is the time of a step of each arm.
    """

    said: list[str] = field(default_factory=list)
    silent: dict[Probe, str] = field(default_factory=dict)
    broken: dict[Probe, str] = field(default_factory=dict)
    single: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    def note(self, probe: Probe, reading: Reading, silence: str, error: str) -> None:
        """Keep what came of taking a probe; a reading that says why a part of it is missing is one."""
        if error:
            self.broken[probe] = error
        elif silence and not reading.values:
            self.silent[probe] = silence


def rehearse(task: Task, rules: Mapping[str, Rule], plan: Plan, probes: Sequence[Probe] = (),
             watched: Sequence[Probe] = (), around: Callable[[Rule], Rule] | None = None,
             place: Place = CPU) -> Rehearsal:
    """Let every arm make a few steps with the plan's batch, and take every probe of an untrained model.

    `rules` are the arms' by name. The first arm's model is also written and read again. `watched` probes are taken
    with each arm's live optimiser, after its steps. `around` makes a combinator of a rule, of which it is asked
    whether that makes the same steps. Everything runs in this process, at the place where the runs will be.

    Raises:
        UserError: naming what cannot be trained, or the arm and the parameter that it cannot step.
    """
    found = Rehearsal()
    with place.hold():
        task = place.task(replace(task, data=InMemory(task.data())))
        data = task.data()
        batch = Split.of_batch(data.train.first(plan.batch))
        few = place.moved(batch.first(plan.micro_batch))
        if place.ranks > 1:
            for rule in rules.values():
                check_ranked(task, rule, place.ranks)
            check_buffers(task, batch, place)
        if place.ranks > 1 or plan.micro_batch:
            found.said += said_of_parts(task, batch, plan, place)
        place = replace(place, ranks=1)
        found.said += _same_start(task)
        for objective in task.objectives:
            found.said += _try_batch(task, objective, batch, plan, place)
        small = replace(task, data=InMemory(replace(data, train=batch)))
        for i, (arm, rule) in enumerate(rules.items()):
            with blaming(task.name, arm):
                _check_combined(task, rule, few)
            with _of_arm(task, arm, rule, batch, place):
                model = _try_steps(small, arm, rule, plan, place, watched, found)
                found.seconds[arm] = _time_of_step(small, rule, plan, place)
            if i == 0 and all(bool(torch.isfinite(p).all()) for p in model.parameters()):
                check_kept(task, model, SEED, few.first(8).inputs if len(task.objectives) == 1 else None)
            if around is not None:
                found.single.update(_single(task, arm, around(rule), few))
        _try_probes(task, data, probes, next(iter(rules.values()), None), plan, found)
    return found


def _try_batch(task: Task, objective: Objective, batch: Split, plan: Plan, place: Place) -> list[str]:
    """Take a player's gradient of a whole batch twice, as two steps do, and say which parameters have none."""
    whose = f"the {objective.player}'s loss on a batch" if objective.player else "a training batch"
    model = fresh_model(task, SEED).train()
    before, augmented = _shapes(model), _augmented(task, batch)
    under = f" with {place.numbers}" if place.numbers else ""
    with (seeded(SEED), blaming(task.name, f"{whose} of {len(batch)} examples{under}"),
          memory_told(task.name, place, plan)):
        for _ in range(2):
            loss = _slope(task, objective, model, augmented, plan, place)
    if not bool(torch.isfinite(loss)):
        raise UserError(f"{task.name}: the loss of the first batch of {len(batch)} examples is {float(loss)} in a "
                        "fresh model; it must be finite")
    if _shapes(model) != before:
        raise UserError(f"{task.name}: the model has other parameters after a batch than before; optimisers get "
                        "those of a fresh model: make them all in its constructor")
    named = objective.network(model).named_parameters()
    without = [name for name, p in named if p.requires_grad and p.grad is None]
    said = [f"{task.name}: the loss of the first batch does not depend on {_some(without)}: not trained."]
    return said if without else []


def _slope(task: Task, objective: Objective, model: nn.Module, batch: Batch, plan: Plan, place: Place) -> Tensor:
    """Return a player's loss, and leave its gradient by all parameters that it uses."""
    latent = task.draw_latent(len(batch), torch.Generator().manual_seed(SEED))
    latent = None if latent is None else place.sent(latent)
    return Gradient(objective, plan, place, None).take(model, place.moved(batch.copy()), latent)


def _same_start(task: Task) -> list[str]:
    """Say when all seeds start from the same weights, as those of a pretrained model are."""
    one, other = (fresh_model(task, seed).parameters() for seed in (SEED, SEED + 1))
    if all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
        return [f"{task.name}: every seed starts from the same weights; seeds differ in what training draws alone."]
    return []


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in model.named_parameters()]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the parameter{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"


def _augmented(task: Task, batch: Batch) -> Batch:
    """Return a batch as it is trained on, if augmentation gives as many examples, the same from the same seed."""
    if task.augment is None:
        return batch
    made = []
    for _ in range(2):
        with seeded(SEED), blaming(task.name, "augment"):
            made.append(task.augment(batch.copy().inputs, torch.Generator().manual_seed(SEED)))
    first, again = made
    found, known = leaves(first), leaves(batch.inputs)
    if found.keys() != known.keys() or any(not isinstance(leaf, Tensor) or len(leaf) != len(batch)
                                           for leaf in found.values()):
        got = ", ".join(f"{path} {type(leaf).__name__}".strip() if not isinstance(leaf, Tensor) else
                        f"{path} {tuple(leaf.shape)}".strip() for path, leaf in found.items())
        raise UserError(f"{task.name}: augment(inputs, generator) must return as many examples as it is given, of "
                        f"the same fields; got {got} for {shown(batch.inputs)}")
    if not same(first, again):
        raise UserError(f"{task.name}: augment(inputs, generator) must draw from the generator it is given alone, "
                        "so that a training can be repeated")
    return Batch(first, batch.targets)


@contextmanager
def _of_arm(task: Task, arm: str, rule: Rule, batch: Split, place: Place) -> Iterator[None]:
    """Say of an error in an arm's steps which arm it is, and which parameter it cannot step."""
    try:
        yield
    except MemoryShortError:
        raise
    except Exception as error:  # whatever the author of an optimiser chose to raise
        words = str(error) if isinstance(error, UserError) else first_words(error)
        name = _refused(task, rule, batch, place)
        raise UserError(f"{task.name}: {arm} cannot {f'step {name}' if name else 'train it'}: {words}") from error


def _refused(task: Task, rule: Rule, batch: Split, place: Place) -> str:
    """Return the first parameter that an optimiser refuses when it has it alone, with its shape, or ""."""
    for objective in task.objectives:
        model = fresh_model(task, SEED).train()
        with seeded(SEED):
            _slope(task, objective, model, _augmented(task, batch), Plan(1, len(batch)), place)
        own = rule.by_player([each.player for each in task.objectives])[objective.player]
        network = objective.network(model)
        given = {name: p.grad for name, p in network.named_parameters()}
        for name, p in network.named_parameters():
            if given[name] is not None:
                for other, each in network.named_parameters():
                    each.requires_grad_(other == name)
                    each.grad = given[other] if other == name else None
                try:
                    made = own.optimizer_of(network) if own.needs_model else own.optimizer([p])
                    made.step((lambda: 0.0) if own.asks else None)
                except Exception:
                    return f"the parameter {name} of shape {tuple(p.shape)}"
    return ""


def _check_combined(task: Task, rule: Rule, batch: Batch) -> None:
    """Raise unless optimisers inside combinators do there what they do alone, each player's."""
    check_inside(task, rule.by_player([objective.player for objective in task.objectives]), SEED, batch)


def _single(task: Task, arm: str, rule: Rule, batch: Batch) -> dict[str, str]:
    try:
        _check_combined(task, rule, batch)
    except UserError as error:
        return {arm: str(error)}
    return {}


def _try_steps(small: Task, arm: str, rule: Rule, plan: Plan, place: Place, watched: Sequence[Probe],
               found: Rehearsal) -> nn.Module:
    """Return the model after an arm's first steps; note what they, and the probes that watch them, tell."""
    start = [p.detach().clone() for p in fresh_model(small, SEED).parameters()]
    still: list[int] = []

    def look(snapshot: Snapshot) -> None:
        weights = snapshot.model.parameters()
        if snapshot.step is not None and all(torch.equal(p, old) for p, old in zip(weights, start, strict=True)):
            still.append(snapshot.step)
        if snapshot.step == STEPS:
            for probe in watched:
                reading, silence, error = take(probe, snapshot)
                found.note(probe, reading, f"under {arm}, {silence}" if silence else "", error)

    training = Training(small, rule, replace(plan, epochs=None, steps=STEPS, schedule=Constant()), SEED, place)
    for snapshot in training.snapshots((1, STEPS)):
        look(snapshot)
    trained = training.trained()
    found.said += [f"{arm}: {note}" for note in notes(rule)]
    if training.slowed:
        found.said.append(f"{arm}: {rule!r} cannot step channels-last weights, so its convolutions are "
                          "contiguous, and slower.")
    found.said += [f"{small.name}: {training.uncompiled}: it is trained without."] * bool(training.uncompiled)
    if trained.diverged_at is not None:
        found.said.append(f"{arm}: {rule!r}, its smallest rate, diverges within {STEPS} steps.")
    elif STEPS in still:
        found.said.append(f"{arm}: the first {STEPS} steps of {rule!r} change no weight.")
    elif still and holds_foreign(rule):  # ours say so themselves
        found.said.append(f"{arm}: the first step of {rule!r} changes no weight.")
    return trained.snapshot.model


def _time_of_step(small: Task, rule: Rule, plan: Plan, place: Place) -> float:
    """Return the seconds of a step: a first one, which takes longer, apart, of one or of as many as take 0.1 s."""
    training = Training(small, rule, replace(plan, epochs=None, steps=TIMED, schedule=Constant()), SEED, place)
    training.advance(1)
    start, before = time.perf_counter(), training.step
    training.advance(TIMED, seconds=0.1)
    return (time.perf_counter() - start) / max(1, training.step - before)


def _try_probes(task: Task, data: Data, probes: Sequence[Probe], rule: Rule | None, plan: Plan,
                found: Rehearsal) -> None:
    """Take every probe of an untrained model, of few examples first."""
    few = Data(*(Split.of_batch(part.first(EXAMPLES)) for part in (data.train, data.validation, data.test)))
    model = fresh_model(task, SEED)
    for probe in probes:
        for part in (few, data):
            snapshot = Snapshot(model, replace(task, data=InMemory(part)), SEED, plan.total(data.train.size), rule,
                                batch=plan.batch)
            taken = take(probe, snapshot)
            if taken[0].values:
                break
        found.note(probe, *taken)
