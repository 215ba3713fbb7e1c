"""Several processes that train one model together: the numbers of one process, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optscope.engine.execute import Local, _firsts
from optscope.engine.executor import Begun, Outcome
from optscope.engine.place import CPU, Place
from optscope.engine.plan import Plan
from optscope.engine.ranks import ranked
from optscope.engine.rehearsal import rehearse
from optscope.engine.run import Run
from optscope.engine.run_folder import RunFolder
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import SAM, SGD, Adam, ByKind, Foreign, Muon, Players
from optscope.optim.schedules import Cosine
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from optscope.tasks.task import Task

TWO = Place(ranks=2)
X = torch.randn(101, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
RING = gan("ring", Perceptron((8, 8, 2)), Perceptron((2, 8, 1)), Ring(points=256), bounds=None)
PLAN = Plan(2, 33)  # 17 and 16 examples, and in the last batch of an epoch one each


class Net(nn.Module):
    """A network with a layer that nothing depends on, and, if asked for, dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.layers(x)


class Normed(nn.Sequential):
    """A network that keeps the mean of the examples it saw."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


class Restless(torch.optim.SGD):
    """SGD whose steps are of the time."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(time.time() % 1)


class Told(Net):
    """A network that leaves the numbers of the processes which train it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, x):
        if self.training:
            (self.folder / f"{os.getpid()}.pid").touch()
        return super().forward(x)


class Mortal(Net):
    """A network whose second rank dies as often as a file has letters."""

    def __init__(self, deaths: Path) -> None:
        super().__init__()
        self.deaths = deaths

    def forward(self, x):
        if self.training and len(x) == 16 and (left := self.deaths.read_text()):
            self.deaths.write_text(left[1:])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def dropping():
    return Net(dropout=0.3)


def task(model=Net, **settings):
    return Task.from_tensors(model, (X, Y), (X[:40], Y[:40]), **({"bounds": None} | settings))


def outcomes(runs, folder):
    return [each for each in Local(slots=1).run(runs, folder / "runs") if isinstance(each, Outcome)]


def lives(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return state.strip() not in ("", "Z", "Zs")


def finished(made, rule, plan, folder, place=TWO):
    training = ranked(made, rule, plan, 1, place, folder)
    training.advance(training.total)
    return training


@pytest.mark.parametrize(("rule", "plan"), [
    (SGD(lr=0.2, momentum=0.9), PLAN),
    (Adam(lr=0.01), replace(PLAN, clip=0.5, micro_batch=5)),
    (ByKind(matrices=Muon(lr=0.02), rest=Adam(lr=0.01)), replace(PLAN, schedule=Cosine())),
    (SAM(SGD(lr=0.2), rho=0.05), PLAN),
], ids=["momentum", "clip, parts", "muon", "two gradients a step"])
def test_two_ranks_have_the_losses_and_weights_of_one_process(tmp_path, rule, plan):
    one, two = Training(task(), rule, plan, 1), finished(task(), rule, plan, tmp_path)
    one.advance(one.total)
    torch.testing.assert_close(two.losses, one.losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(two.model.state_dict(), one.model.state_dict(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(two.losses, one.losses)  # sums are made in another order


def test_ranks_that_get_none_of_a_small_batch_count_for_nothing(tmp_path):
    small = Plan(steps=5, batch=2)
    one = Training(task(), SGD(lr=0.2), small, 1)
    three = finished(task(), SGD(lr=0.2), small, tmp_path, Place(ranks=3))
    one.advance(one.total)
    torch.testing.assert_close(three.losses, one.losses, rtol=1e-6, atol=0)


def test_what_ranks_train_is_the_same_to_the_bit_however_it_was_stopped(tmp_path):
    whole, half, rest = (ranked(task(dropping), Adam(lr=0.01), PLAN, 3, TWO, tmp_path) for _ in range(3))
    whole.advance(whole.total)
    half.advance(2)
    half.advance(3)
    rest.load_state_dict(from_bytes(to_bytes(half.state_dict(), "x"), "x"))
    for each in (half, rest):  # two trainings of two ranks each, which do not disturb each other
        each.advance(each.total)
        assert equal(whole.state_dict(), each.state_dict())
    assert whole.losses.isfinite().all()
    assert whole.step == whole.total


def test_parts_of_a_batch_draw_their_own_dropout(tmp_path):
    alike = Task.from_tensors(dropping, (X[:1].repeat(40, 1), Y[:1].repeat(40)), (X[:40], Y[:40]), bounds=None)
    one, two = (finished(alike, SGD(lr=0.1), Plan(steps=3, batch=2), tmp_path, Place(ranks=n)) for n in (1, 2))
    assert not torch.allclose(one.losses, two.losses, rtol=1e-3)


def test_a_run_of_two_ranks_is_another_run_and_leaves_nobody(tmp_path):
    runs = [Run(task(partial(Told, tmp_path)), SGD(lr=0.2), PLAN, 1, place=place) for place in (CPU, TWO)]
    assert runs[0].id != runs[1].id
    assert [each.status for each in outcomes(runs, tmp_path)] == ["ok", "ok"]
    one, two = (RunFolder(tmp_path / "runs" / run.id) for run in runs)
    np.testing.assert_allclose(two.series()["losses"], one.series()["losses"], rtol=1e-6)
    assert "cpu_seconds_a_step" in one.result()
    assert "cpu_seconds_a_step" not in two.result()  # of which this process makes a part
    left = list(tmp_path.glob("*.pid"))
    assert len(left) == 2
    deadline = time.monotonic() + 10
    while any(lives(path.stem) for path in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ranks_write_states_that_another_training_goes_on_from(tmp_path):
    seen = []
    for name, every in (("plain", 1e9), ("saved", 0.0)):
        folder = RunFolder(tmp_path / name / "runs" / "x")
        folder.path.parent.mkdir(parents=True)
        assert Run(task(dropping), Adam(lr=0.01), PLAN, 1, place=TWO, checkpoint=every).perform(folder) == "ok"
        assert folder.result()["unsaved"] == ""  # a state is tried by a twin, which has ranks of its own
        seen.append(folder.series()["losses"])
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize(("times", "status", "tries"), [(1, "ok", 2), (9, "lost", 3)])
def test_a_rank_that_dies_is_a_worker_that_died(tmp_path, times, status, tries):
    (tmp_path / "deaths").write_text("." * times)
    run = Run(task(partial(Mortal, tmp_path / "deaths")), SGD(lr=0.2), PLAN, 1, place=TWO)
    reports = list(Local(slots=1).run([run], tmp_path / "runs"))
    assert reports[-1].status == status
    assert [each.attempt for each in reports if isinstance(each, Begun)] == [*range(1, tries + 1)]
    if status == "lost":
        assert reports[-1].reason.startswith("another rank of its training: its process was ended by SIGKILL")


@pytest.mark.parametrize(("made", "rule", "said"), [
    (task(Normed), SGD(lr=0.1), r"its 2 ranks differ in the buffer 1.running_mean; .* or give ranks=1"),
    (task(), Foreign(Restless, lr=0.1), r"its 2 ranks differ in the weights of layers.0.weight; an opt"),
])
def test_what_makes_ranks_differ_is_named_after_a_step(tmp_path, made, rule, said):
    with pytest.raises(UserError, match=said):
        finished(made, rule, PLAN, tmp_path)


def test_what_stops_another_rank_is_what_is_said(tmp_path):
    class Short(nn.Linear):
        def forward(self, x):
            assert len(x) > 16, "more examples than 16 are wanted"
            return super().forward(x)

    with pytest.raises(RuntimeError, match="more examples than 16 are wanted"):
        finished(task(lambda: Short(6, 3)), SGD(lr=0.1), PLAN, tmp_path)


def test_ranks_are_refused_where_they_cannot_be(tmp_path):
    with pytest.raises(UserError, match="a game is trained by one process; got 2 ranks"):
        ranked(RING, Players(generator=SGD(lr=0.1), discriminator=SGD(lr=0.1)), PLAN, 1, TWO, tmp_path)
    with pytest.raises(UserError, match="differentiates its gradient, which ranks do not send"):
        ranked(task(), Foreign("pytorch_optimizer:AdaHessian", lr=0.1), PLAN, 1, TWO, tmp_path)
    with pytest.raises(UserError, match="this trains in one process; got a place of 2 ranks"):
        train(task(), SGD(lr=0.1), PLAN, 1, place=TWO)
    with pytest.raises(UserError, match="ranks must be a whole number >= 1; got 0"):
        Place(ranks=0)


def test_a_rehearsal_refuses_batch_norm_and_tells_of_losses_that_parts_change():
    with pytest.raises(UserError, match=r"2 ranks would differ in the buffer 1\.running_mean of its model"):
        rehearse(task(Normed), {"SGD": SGD(lr=0.1)}, PLAN, place=TWO)
    weighted = task(loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0])))
    for place, plan in ((TWO, PLAN), (CPU, replace(PLAN, micro_batch=10))):
        assert [said for said in rehearse(weighted, {"SGD": SGD(lr=0.1)}, plan, place=place).said
                if "the mean of its parts' differ by" in said and "%, as where" in said]
        assert not [said for said in rehearse(task(), {"SGD": SGD(lr=0.1)}, plan, place=place).said
                    if "parts" in said]


def test_ranks_take_devices_that_are_neighbours():
    four = [f"cuda:{i}" for i in range(4)]
    assert [_firsts(four, ranks) for ranks in (1, 2, 4)] == [four, ["cuda:0", "cuda:2"], ["cuda:0"]]
    assert _firsts(["cuda"], 2) == ["cuda"]
    for devices in (four[:3], ["cuda:0", "cuda:2"]):
        with pytest.raises(UserError, match="2 ranks take as many devices that are neighbours, such as cuda:0"):
            _firsts(devices, 2)
