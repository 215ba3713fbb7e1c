"""A recorder in somebody's own loop: it looks on at set steps, writes down what it sees, and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optscope.engine.recording import Recording
from optscope.engine.store import Store
from optscope.engine.watch import take
from optscope.errors import UserError
from optscope.probes.probe import SEEDS, Memory, Probe
from optscope.probes.rule_in_use import rule_in_use
from optscope.protocol.kits import kit_of
from optscope.protocol.meant import meant
from optscope.protocol.recordings import HOLDS
from optscope.protocol.settings import Settings
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

if TYPE_CHECKING:
    from optscope.result import Result

HANDED_ON = frozenset({"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"})
"""Packages whose optimisers hold another and make its steps. Others that hold one, as Lookahead, make their own."""


class Recorder:
    """Records a training that is not ours, for the report that `compare` makes.

        recorder = Recorder("runs/mine", arm="adamw", seed=1, task=task, every=500)
        for batch in batches:
            ...
            optimizer.step()
            recorder.step(model, optimizer, loss)
        recorder.report()

    Trainings of several arms and seeds, one after the other or at once, go to one folder. Each `every` steps it
    takes `probes` of the model with its live optimiser, and in the end `at_end` of what is trained; the loss goes
    in as its mean since the look before. A look changes no bit of the training: weights, modes, gradients, the
    optimiser's state and all streams of random numbers are left as they were. What is recorded is in the file at
    once. Of several processes of one training the first should record.

    Args:
        folder: where it is recorded: a new one, or one that recorders of the task have written.
        arm: what the optimiser is called in the report; the first that is recorded is what others are held against.
        seed: by which arms are paired: give those the same that begin and go through the data alike.
        task: on what data the model is looked at, and by what loss; its model factory is not called.
        every: how many steps lie between two looks.
        probes: what is taken at every look, by value or name; without, validation and the edge of stability.
        at_end: what is taken of the trained model; without, what `compare` takes.
        start: how many steps were made before: what an earlier recorder saw beyond is recorded anew.

    Raises:
        UserError: when the folder or a probe will not do, or a number is none.
    """

    def __init__(self, folder: str | Path, *, arm: str, seed: int, task: Task, every: int,
                 probes: Sequence[str | Probe] | None = None, at_end: Sequence[str | Probe] | None = None,
                 start: int = 0) -> None:
        for name, number, least in (("seed", seed, 0), ("every", every, 1), ("start", start, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise UserError(f"Recorder: {name} must be a whole number, at least {least}; got {number!r}")
        if seed >= SEEDS:
            raise UserError(f"Recorder: seed must be less than 2**32, as NumPy's seeds are; got {seed}: give short "
                            "numbers, such as 1, 2, 3")
        kit, examples = kit_of(task), Settings().examples
        watched = (kit.judge(task)[1], *kit.watched(()))
        compared, described = kit.probes(task, examples), (*kit.describing(task, examples), *kit.at_end())
        if at_end is not None:
            compared, described = meant(at_end, (*compared, *described), task, live=True), ()
        self._watched = watched if probes is None else meant(probes, watched, task, live=True)
        self._final = (*compared, *described)
        self.folder, self.task, self.seed, self.every = Path(folder).absolute(), task, seed, every
        Store(self.folder, HOLDS.format(task.name))
        self._recording: Recording | None = Recording(self.folder, task.name, arm, seed, start,
                                                      watched=self._watched, compared=compared, described=described)
        self._step, self._looked = start, start
        self._sum: float | Tensor = 0.0
        self._summed = 0
        self._last: tuple[nn.Module, torch.optim.Optimizer] | None = None
        self._memory: dict[Probe, Memory] = {}
        self._broken: set[Probe] = set()

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor | float | None = None) -> None:
        """Count a step that the optimiser has made on a batch of this loss, and look if it is time.

        Raises:
            UserError: when the loss is not one number.
        """
        self._step += 1
        if loss is not None:
            self._sum = self._sum + _one_number(loss)
            self._summed += 1
        self._last = model, optimizer
        if self._step % self.every == 0:
            self._look(self._watched, self._step)

    def close(self) -> None:
        """Look once more if steps were made since, take what is taken at the end, and record no more."""
        if self._last is None:
            return
        if self._looked < self._step:
            self._look(self._watched, self._step)
        self._look(self._final, None)
        optimizer = _bare_optimizer(self._last[1])
        rule = rule_in_use(Snapshot(self._last[0], self.task, optimizer=optimizer))
        self._write(lambda file: file.end(self._step, repr(rule) if rule else type(optimizer).__name__))
        self._recording = self._last = None

    def report(self) -> Result:
        """Close, and write the report of all that is in the folder."""
        from optscope.lab import recorded

        self.close()
        return recorded(self.folder)

    def _look(self, probes: Sequence[Probe], step: int | None) -> None:
        """Write the mean loss of late, and what probes find now, under a step or as what training has left."""
        if self._last is None or self._recording is None:
            return
        if self._summed:
            mean = float(self._sum) / self._summed
            self._write(lambda file: file.loss(self._step, mean))
            self._sum, self._summed = 0.0, 0
        model = _bare_model(self._last[0])
        snapshot = Snapshot(model, self.task, self.seed, self._step, optimizer=_bare_optimizer(self._last[1]),
                            from_seed=False)
        for probe in probes:
            if probe not in self._broken:
                self._take(probe, snapshot, step)
        self._looked = self._step

    def _take(self, probe: Probe, snapshot: Snapshot, step: int | None) -> None:
        reading, silence, error = take(probe, snapshot, self._memory.get(probe))
        self._memory[probe] = reading.memory
        self._broken |= {probe} if error else set()
        self._write(lambda file: file.reading(step, repr(probe), reading, error or silence))

    def _write(self, write: Callable[[Recording], None]) -> None:
        """Let something be written; a full disk ends the recording, and not the training."""
        try:
            if self._recording is not None:
                write(self._recording)
        except OSError as error:
            self._recording = None
            warnings.warn(f"recording to {self.folder} has stopped: {error}", stacklevel=4)


def _bare_model(model: nn.Module) -> nn.Module:
    """Return the model inside what distributes or compiles it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _one_number(loss: object) -> float | Tensor:
    """Return a loss that can be summed up, of which nothing is read from a device."""
    if isinstance(loss, Tensor):
        if loss.numel() == 1:
            return loss.detach().float().reshape(())
        got = f"a tensor of shape {tuple(loss.shape)}"
    else:
        try:
            return float(loss)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            got = f"an array of shape {shape}" if (shape := getattr(loss, "shape", ())) else type(loss).__name__
    raise UserError(f"Recorder.step: the loss must be one number, as loss.backward() starts from; got {got}: hand "
                    "over the mean of the batch, or leave it out")


def _bare_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser inside what hands its steps on, as Accelerate and Lightning do.

    Another one that holds an optimiser may step otherwise, and stays what it is, unless it has no param groups.
    """
    inner = getattr(optimizer, "optimizer", None)
    hands_on = type(optimizer).__module__.partition(".")[0] in HANDED_ON or not hasattr(optimizer, "param_groups")
    return _bare_optimizer(inner) if hands_on and isinstance(inner, torch.optim.Optimizer) else optimizer
