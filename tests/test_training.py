"""Training as a state: stopped, looked at, saved and resumed anywhere, it makes the same bits, or says why not."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine import observed as observing
from optscope.engine.observed import Observed
from optscope.engine.plan import Plan
from optscope.engine.rows import Use, read
from optscope.engine.run import Run
from optscope.engine.run_folder import STATE, RunFolder
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.engine.watch import Watch
from optscope.errors import UserError
from optscope.files import DamagedError
from optscope.optim import SGD, Adam, Foreign, Graft, Players, Rounded, StepDecay
from optscope.probes.accuracy import Accuracy
from optscope.probes.edge import EdgeOfStability
from optscope.tasks.game import Normal
from optscope.tasks.gan import WGANGP, gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from test_rules import rules
from test_stepping import Averaging, Drawing
from tiny import TASK

PLAN = Plan(3, 16, StepDecay())


def noisy(inputs, generator):
    return (inputs + 0.01 * torch.randn(inputs.shape, generator=generator)).clamp(0, 1)


class Draws(nn.Module):
    """Adds noise of NumPy's and Python's generators in train mode."""

    def forward(self, x):
        return x + 0.01 * float(np.random.rand()) + 0.01 * random.random() if self.training else x


def busy_model():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), Draws(), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))


BUSY = replace(TASK, model=busy_model, augment=noisy)
GAME = gan("ring", Perceptron((4, 8, 2)), Perceptron((2, 8, 1)), Ring(points=80), latent=Normal(4), bounds=None,
           critic_steps=2, losses=WGANGP())
PLAYERS = Players(generator=Adam(lr=2e-3, beta1=0.5), discriminator=Graft(Adam(lr=1e-3), SGD(lr=0.1)))


def resumed(task, rule, plan, at):
    """Return what a training ends in that went through a file after `at` steps."""
    first = Training(task, rule, plan, 1)
    first.advance(at)
    content = to_bytes(first.state_dict(), "x")
    first.advance(at + 1)  # what is written stays as it was
    second = Training(task, rule, plan, 1)
    second.load_state_dict(from_bytes(content, "x"))
    second.advance(second.total)
    return second


def whole(task, rule, plan):
    training = Training(task, rule, plan, 1)
    training.advance(training.total)
    return training


@pytest.mark.parametrize("at", [0, 1, 6, 11, 18])
def test_a_training_that_draws_everywhere_resumes_to_the_bit(at):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert equal(resumed(BUSY, Adam(lr=0.01), PLAN, at).state_dict(), whole(BUSY, Adam(lr=0.01), PLAN).state_dict())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@rules
def test_every_rule_resumes_to_the_bit(rule):
    try:
        undisturbed = whole(BUSY, rule, PLAN)
    except UserError as error:
        pytest.skip(str(error))
    again = resumed(BUSY, rule, PLAN, 7)
    assert equal(again.trained().losses, undisturbed.trained().losses)
    assert equal(again.model.state_dict(), undisturbed.model.state_dict())


@pytest.mark.parametrize("rule", [
    Foreign("torch.optim:NAdam", lr=0.01), Foreign("torch.optim:ASGD", lr=0.1), Foreign("torch.optim:Adafactor"),
    Foreign(Averaging, lr=0.1), Foreign(Drawing), Rounded(Foreign("torch.optim:NAdam", lr=0.01), 3)], ids=repr)
def test_optimisers_of_others_resume_to_the_bit(rule):
    again, undisturbed = resumed(BUSY, rule, PLAN, 7), whole(BUSY, rule, PLAN)
    assert equal(again.trained().losses, undisturbed.trained().losses)
    assert equal(again.model.state_dict(), undisturbed.model.state_dict())


@pytest.mark.parametrize("at", [1, 9])
def test_a_game_resumes_to_the_bit_with_its_traces(at):
    plan = Plan(4, 16)
    again, undisturbed = resumed(GAME, PLAYERS, plan, at), whole(GAME, PLAYERS, plan)
    assert equal(again.state_dict(), undisturbed.state_dict())
    assert equal(dict(again.trained().metrics), dict(undisturbed.trained().metrics))
    assert again.trained().metrics["path of the generator"] > 0


def test_where_it_is_stopped_changes_nothing():
    undisturbed = train(BUSY, Adam(lr=0.01), PLAN, 1)
    training = Training(BUSY, Adam(lr=0.01), PLAN, 1)
    while training.step < training.total:
        assert training.advance(training.total, seconds=0.002)
        torch.rand(3), np.random.rand(2), random.random()
    assert training.losses.shape == (18,)
    assert equal(training.trained().losses, undisturbed.losses)
    assert [s.step for s in Training(BUSY, Adam(lr=0.01), PLAN, 1).snapshots((18, 0, 4))] == [0, 4, 18]


def test_a_diverged_training_goes_nowhere():
    training = Training(TASK, SGD(lr=1e30), PLAN, 1)
    assert not training.advance(18)
    step = training.step
    assert not training.advance(18)
    assert training.step == step < 18
    assert training.diverged_at is not None
    assert list(Training(TASK, SGD(lr=1e30), PLAN, 1).snapshots((18,))) == []


# Runs

RUN = Run(BUSY, Adam(lr=0.01), PLAN, 1, (), (Watch(Accuracy(), 6), Watch(EdgeOfStability(), 3)), checkpoint=0)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Have states written as often as is asked, whatever it costs."""
    monkeypatch.setattr(observing, "SHARE", 1e9)


class Killed(BaseException):
    """Ends a run as a signal would."""


def killed(run, folder, after):
    """Perform a run that is killed when it has written its state `after` times."""
    class Folder(RunFolder):
        def write_state(self, content):
            super().write_state(content)
            written.append(len(content))
            if len(written) == after:
                raise Killed

    written: list[int] = []
    with pytest.raises(Killed):
        run.perform(Folder(folder))


def left(folder):
    """Return all that a run left, but for times, and for what it told while it worked: a look may be told twice."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()
             if path.name != "result.json" and not path.name.startswith(".")}
    result = RunFolder(folder).result()
    return found, {name: value for name, value in result.items() if "seconds" not in name}


@pytest.mark.parametrize("after", [1, 3, 9])
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, after):
    plain = replace(RUN, checkpoint=1e9)
    assert plain.id == RUN.id
    plain.perform(RunFolder(tmp_path / "whole"))
    killed(RUN, tmp_path / "cut", after)
    assert (tmp_path / "cut" / STATE).is_file()
    steps = []
    begun = Training._round
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_round", lambda self: (steps.append(self.step), begun(self)))
        plain.perform(RunFolder(tmp_path / "cut"))
    assert steps[0] > 0
    assert steps == [steps[0], *range(steps[0], 18)]  # a twin tries the state for a step
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_killed_game_goes_on_to_the_same_files(tmp_path):
    run = Run(GAME, PLAYERS, Plan(4, 16), 1, checkpoint=0)
    replace(run, checkpoint=1e9).perform(RunFolder(tmp_path / "whole"))
    killed(run, tmp_path / "cut", 5)
    run.perform(RunFolder(tmp_path / "cut"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


class Forgetful(torch.optim.SGD):
    """Keeps its momentum where its state dict does not see it."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.speed = getattr(self, "speed", {})
                    self.speed[p] = 0.9 * self.speed.get(p, 0) + p.grad
                    p.data -= group["lr"] * self.speed[p]


class Hoarder(torch.optim.SGD):
    """Keeps something in its state that no file can hold."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["friend"] = self


class Counting(nn.Module):
    """Changes with the number of batches it has seen, which its state dict does not hold."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(2, 3), 0

    def forward(self, x):
        self.seen += self.training
        return self.linear(x) / (1 + self.seen)


@pytest.mark.parametrize(("task", "rule", "words"), [
    (TASK, Foreign(Forgetful, lr=0.1), "outside the state dicts of the model and the optimiser"),
    (TASK, Foreign(Hoarder, lr=0.1), "friend is a Hoarder, which cannot be saved"),
    (replace(TASK, model=Counting), SGD(lr=0.1), "outside the state dicts of the model and the optimiser")])
def test_what_cannot_be_saved_says_so_once_and_trains_on(tmp_path, task, rule, words):
    folder = RunFolder(tmp_path / "run")
    observed = Observed(lambda: Training(task, rule, PLAN, 1), {}, folder, "x", 0)
    trained = observed.run().trained()
    assert words in observed.unsaved
    assert not (tmp_path / "run" / STATE).exists()
    undisturbed = train(task, rule, PLAN, 1)
    assert equal(trained.losses, undisturbed.losses)
    assert equal(trained.snapshot.model.state_dict(), undisturbed.snapshot.model.state_dict())


def test_the_cost_of_a_step_leaves_looks_and_trials_of_states_out(tmp_path, monkeypatch):
    clock = [0.0]

    class Ticking(Training):
        """Two seconds a step, and a hundred a look."""

        def advance(self, until, *, seconds=math.inf):
            before = self.step
            going = super().advance(until, seconds=seconds)
            clock[0] += 2.0 * (self.step - before)
            return going

        def looked_at(self):
            clock[0] += 100.0
            return super().looked_at()
    monkeypatch.setattr(observing.time, "process_time", lambda: clock[0])
    watch = {Watch(Accuracy(split="validation"), 3): "x"}
    observed = Observed(lambda: Ticking(TASK, SGD(lr=0.1), PLAN, 1), watch, RunFolder(tmp_path / "run"), "x", 0)
    assert observed.cost() == {}
    observed.run()
    assert observed.cost() == {"cpu_seconds_a_step": 2.0}
    assert observed.spent()["cpu_seconds"] > 300


def test_a_reader_is_told_once_what_was_not_saved(tmp_path):
    run = Run(TASK, Foreign(Forgetful, lr=0.1), PLAN, 1, checkpoint=0)
    run.perform(RunFolder(tmp_path / run.id))
    rows, reasons = read(Use("c", "arm", "final", 1, "rule", run.id), RunFolder(tmp_path / run.id).contents())
    assert rows
    assert len(reasons) == 1
    assert "rule: trainings were not saved on their way, and a killed one begins anew: a training" in reasons[0]


def forged(content, name, value):
    """Return a state, well formed, in which a part of the training is something else."""
    found = from_bytes(content, RUN.id)
    return to_bytes({**found, "training": {**found["training"], name: value}}, RUN.id)


@pytest.mark.parametrize("spoil", [
    lambda content: content[:len(content) // 2], lambda content: b"", lambda content: b"\xff" * 64,
    lambda content: struct.pack("<Q", 2**60) + content[8:], lambda content: content.replace(b"tensor", b"sensor"),
    lambda content: to_bytes({"training": {}}, RUN.id), lambda content: to_bytes([1], RUN.id),
    lambda content: to_bytes(from_bytes(content, RUN.id), "0" * 16),
    lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: forged(content, "numbers", 3),
    lambda content: forged(content, "step", "5"), lambda content: forged(content, "sides", [])])
def test_a_state_that_is_damaged_or_of_another_run_is_set_aside_and_the_training_begins_anew(tmp_path, spoil):
    killed(RUN, tmp_path / "cut", 4)
    path = tmp_path / "cut" / STATE
    path.write_bytes(spoil(path.read_bytes()))
    plain = replace(RUN, checkpoint=1e9)
    plain.perform(RunFolder(tmp_path / "cut"))
    assert (tmp_path / "cut" / f"{STATE}.damaged").is_file()
    (tmp_path / "cut" / f"{STATE}.damaged").unlink()
    plain.perform(RunFolder(tmp_path / "whole"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_watchers_that_a_state_knows_nothing_of_make_it_begin_anew(tmp_path):
    killed(replace(RUN, watch=RUN.watch[:1]), tmp_path / "cut", 4)
    replace(RUN, checkpoint=1e9).perform(RunFolder(tmp_path / "cut"))
    replace(RUN, checkpoint=1e9).perform(RunFolder(tmp_path / "whole"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


WORK = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from dataclasses import replace
from optscope.engine.run_folder import RunFolder
from optscope.engine.plan import Plan
from test_training import RUN
run = replace(RUN, plan=Plan(1500, 16), checkpoint=0.2)
print(run.id, flush=True)
run.perform(RunFolder(Path({out!r})))
"""


def test_a_process_killed_on_the_way_goes_on_where_it_was(tmp_path):
    def start(name):
        script = WORK.format(paths=sys.path, out=str(tmp_path / name))
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    cut = start("cut")
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.kill()
    name = cut.communicate()[0].strip()
    found = from_bytes((tmp_path / "cut" / STATE).read_bytes(), name)
    assert 0 < found["training"]["step"] < 9000
    for name in ("cut", "whole"):
        process = start(name)
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


# The file

def test_a_state_comes_back_with_its_types_strides_and_what_stands_twice():
    shared, tensor = {"n": 1}, torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    state = {"a": (1, [2.5, float("nan"), -float("inf"), -0.0]), 3: {None: True}, "np": np.float32(0.1),
             "array": np.arange(3, dtype=np.uint32), "text": np.array(["x", "yy"]), "t": tensor,
             "same": [shared, shared, tensor], "complex": torch.tensor([1 + 2j]),
             "half": torch.ones(2, dtype=torch.bfloat16),
             "rng": (torch.get_rng_state(), np.random.get_state(), random.getstate()), "none": torch.zeros(0, 3)}
    found = from_bytes(to_bytes(state, "x"), "x")
    assert equal(found, state)
    assert isinstance(found["a"], tuple)
    assert isinstance(found["np"], np.float32)
    assert str(found["a"][1][3]) == "-0.0"
    assert found["same"][0] is found["same"][1]
    assert found["same"][2] is found["t"]
    assert found["t"].stride() == tensor.stride()
    random.Random().setstate(found["rng"][2])
    np.random.RandomState().set_state(found["rng"][1])


def test_equal_tells_a_bit():
    assert not equal({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-45])})
    assert not equal([1], (1,)[:0])
    assert not equal(1, 1.0)


@pytest.mark.parametrize("value", [{1, 2}, object(), torch.zeros(2).to_sparse(), np.array([object()]), len])
def test_what_no_file_can_hold_is_named(value):
    with pytest.raises(UserError, match=r"state.optimizer\[0\] is an? .*cannot be saved"):
        to_bytes({"optimizer": [value]}, "x")


def test_a_state_of_another_program_is_refused():
    with pytest.raises(DamagedError, match="of another program or run"):
        from_bytes(to_bytes({}, "one"), "two")

