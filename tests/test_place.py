"""Where and how numbers are made: places, what a plan does to a gradient, averaged weights, what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from optscope.engine.average import EMA, SWA
from optscope.engine.execute import Inline, Local, _perform
from optscope.engine.numerics import TorchSettings, check_numerics
from optscope.engine.place import CPU, Place, available, devices_of
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.engine.run import Run
from optscope.engine.state_file import equal, from_bytes, to_bytes
from optscope.engine.train import train
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.optim import SGD, Adam, Foreign, Players
from optscope.probes.accuracy import Accuracy
from optscope.protocol.settings import Settings, read_settings
from optscope.tasks.fresh import fresh_model
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.task import Task
from tiny import TASK, Blobs

SGD_RULE = SGD(lr=0.5)


def weights(trained):
    return torch.cat([p.detach().reshape(-1) for p in trained.snapshot.model.parameters()])


def normed():
    """A network with batch normalisation and dropout."""
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


NORMED = Task("normed", normed, Blobs())
GAME = gan("game", Perceptron((8, 6, 2)), Perceptron((2, 6, 1)), Blobs(), bounds=None)


def test_a_place_is_validated():
    assert Place() == CPU
    assert available()[0] == "cpu"
    assert Place("auto").device == available()[-1].partition(":")[0]
    assert devices_of("cpu") == ("cpu",)
    assert not CPU.accelerated


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Place("tpu"), "'tpu' is not there; there is cpu"),
    (lambda: Place("cuda:77"), "'cuda:77' is not there"),
    (lambda: Place("meta"), "'meta' is not there"),
    (lambda: Place(3), "3 is not there"),
    (lambda: Place(dtype="float8"), "dtype must be one of float32, float64, bfloat16, float16"),
    (lambda: Place(threads=0), "threads must be a whole number >= 1; got 0"),
    (lambda: Place(threads=True), "threads must be a whole number"),
    (lambda: Place(deterministic=1), "deterministic must be True or False"),
    (lambda: Place(compile="maybe"), 'compile must be True, False or "try"'),
    (lambda: Place(compile=1), 'compile must be True, False or "try"'),
    (lambda: Place(autocast="float32"), "autocast must be bfloat16 or float16"),
    (lambda: Place(autocast="float16", dtype="float16"), "autocast keeps weights in float32"),
    (lambda: devices_of("cpu,cpu"), "different devices of one kind"),
    (lambda: Settings(device="cuda:77").place, "'cuda:77' is not there"),
    (lambda: read_settings(None, ema=0.9, swa=0.5), "give one"),
    (lambda: Plan(batch=8, micro_batch=9), "micro_batch must be a whole number from 1 to the batch, 8"),
    (lambda: Plan(micro_batch=0), "micro_batch must be"),
    (lambda: Plan(clip=0), "clip, the longest gradient, must be a finite number > 0"),
    (lambda: Plan(clip=float("nan")), "clip, the longest gradient"),
    (lambda: Plan(average=0.9), "average must be EMA"),
    (lambda: EMA(decay=1), "decay must be a number between 0 and 1"),
    (lambda: SWA(start=1), "start must be a share"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_settings_say_a_place_and_a_plan():
    settings = Settings(threads=2, autocast="bfloat16", micro_batch=16, clip=1.0, swa=0.5, compile="try")
    assert settings.place == Place(threads=2, autocast="bfloat16", compile="try")
    plan = settings.plan
    assert (plan.micro_batch, plan.clip, plan.average) == (16, 1.0, SWA(0.5))
    assert Settings(ema=0.99).plan.average == EMA(0.99)


def test_parts_of_a_batch_have_the_whole_batchs_gradient():
    whole = train(TASK, SGD_RULE, Plan(3, 32), 1)
    for size in (1, 5, 16, 32):  # 5 leaves a smaller part
        parts = train(TASK, SGD_RULE, Plan(3, 32, micro_batch=size), 1)
        assert (weights(whole) - weights(parts)).abs().max() < 1e-6
        assert torch.allclose(whole.losses, parts.losses, atol=1e-6)
    assert not torch.equal(weights(train(NORMED, SGD_RULE, Plan(1, 32), 1)),
                           weights(train(NORMED, SGD_RULE, Plan(1, 32, micro_batch=8), 1)))  # its statistics are


def test_a_long_gradient_is_shortened():
    start = torch.cat([p.detach().reshape(-1) for p in fresh_model(TASK, 1).parameters()])
    free = Training(TASK, SGD(lr=1.0), Plan(1, 32), 1)
    free.advance(1)
    step = torch.cat([p.detach().reshape(-1) for p in free.model.parameters()]) - start
    length = float(step.norm())
    for longest in (length / 2, 2 * length):
        clipped = Training(TASK, SGD(lr=1.0), Plan(1, 32, clip=longest), 1)
        clipped.advance(1)
        moved = torch.cat([p.detach().reshape(-1) for p in clipped.model.parameters()]) - start
        assert torch.allclose(moved, step * min(1, longest / length), atol=1e-6)


def path(plan, task=TASK):
    """The weights after every step, as training sees them."""
    training, found = Training(task, SGD_RULE, plan, 1), []
    while training.step < training.total:
        training.advance(training.step + 1)
        found.append([t.detach().clone() for t in (*training.model.parameters(), *training.model.buffers())])
    return training, found


@pytest.mark.parametrize("task", [TASK, NORMED], ids=["mlp", "batch norm"])
def test_an_average_is_measured_and_training_goes_on_from_the_weights(task):
    raw, steps = path(Plan(4, 32), task)
    mean = [t.clone() for t in steps[0]]
    for now in steps[1:]:
        mean = [0.8 * a + 0.2 * b if a.is_floating_point() else b for a, b in zip(mean, now, strict=True)]
    averaged = Training(task, SGD_RULE, Plan(4, 32, average=EMA(0.8)), 1)
    averaged.advance(6)
    before = [p.detach().clone() for p in averaged.model.parameters()]
    with averaged.looked_at() as snapshot:
        shown = [p.detach().clone() for p in snapshot.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, averaged.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, steps[5], strict=False))
    assert not torch.equal(before[0], shown[0])
    averaged.advance(averaged.total)
    assert torch.equal(averaged.losses, raw.losses)
    found = [*averaged.model.parameters(), *averaged.model.buffers()]
    assert all(torch.allclose(a.double(), b.double(), atol=1e-6) for a, b in zip(found, mean, strict=True))


def test_stochastic_weight_averaging_is_the_mean_of_the_last_epochs():
    _, steps = path(Plan(4, 32))  # 3 steps an epoch
    training = Training(TASK, SGD_RULE, Plan(4, 32, average=SWA(0.5)), 1)
    training.advance(5)
    with training.looked_at() as snapshot:
        assert torch.equal(next(snapshot.model.parameters()), steps[4][0])  # nothing is averaged yet
    training.advance(12)
    ends = [steps[i][0] for i in (5, 8, 11)]
    assert torch.allclose(next(training.model.parameters()), sum(ends) / 3, atol=1e-6)


class Modes(torch.optim.SGD):
    """An optimiser with modes, as schedule-free ones have."""

    def train(self): ...
    def eval(self): ...


def test_what_averages_itself_is_not_averaged_again():
    with pytest.raises(UserError, match="stands for averaged weights of its own"):
        Training(TASK, Foreign(Modes, lr=0.1), Plan(average=EMA()), 1)


@pytest.mark.parametrize("plan", [
    Plan(3, 32, average=EMA(0.9)), Plan(4, 32, average=SWA(0.5), clip=0.5), Plan(3, 32, micro_batch=10)], ids=str)
@pytest.mark.parametrize("place", [CPU, Place(autocast="bfloat16"), Place(autocast="float16")], ids=str)
def test_all_of_it_is_saved_and_resumed_to_the_bit(plan, place):
    whole = Training(NORMED, Adam(lr=0.01), plan, 1, place)
    whole.advance(whole.total)
    stopped = Training(NORMED, Adam(lr=0.01), plan, 1, place)
    stopped.advance(7)
    content = to_bytes(stopped.state_dict(), "x")
    resumed = Training(NORMED, Adam(lr=0.01), plan, 1, place)
    resumed.load_state_dict(from_bytes(content, "x"))
    resumed.advance(resumed.total)
    assert equal(resumed.state_dict(), whole.state_dict())


def test_autocast_computes_lower_and_keeps_weights():
    full, lower = (Training(TASK, SGD_RULE, Plan(2, 32), 1, place) for place in (CPU, Place(autocast="bfloat16")))
    seen = []
    lower.model[0].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    assert full.advance(6)
    assert lower.advance(6)
    assert set(seen) == {torch.bfloat16}
    assert next(lower.model.parameters()).dtype is torch.float32
    assert 0 < (full.losses - lower.losses).abs().max() < 0.02


def test_a_step_whose_scaled_gradient_is_not_finite_is_left_out():
    training = Training(TASK, SGD_RULE, Plan(2, 32), 1, Place(autocast="float16"))
    training._sides[0].stepper.scaler.load_state_dict(
        training._sides[0].stepper.scaler.state_dict() | {"scale": 1e38})
    start = copy.deepcopy(training.model.state_dict())
    training.advance(1)
    assert all(torch.equal(a, b) for a, b in zip(start.values(), training.model.state_dict().values(), strict=True))
    assert training._sides[0].stepper.scaler.get_scale() == pytest.approx(0.5e38)
    assert training.diverged_at is None


def test_a_place_turns_numbers_into_its_type():
    found = train(TASK, SGD_RULE, Plan(2, 32), 1, place=Place(dtype="float64"))
    assert {p.dtype for p in found.snapshot.model.parameters()} == {torch.float64}
    assert found.snapshot.task.data().test.inputs.dtype is torch.float64
    usual = train(TASK, SGD_RULE, Plan(2, 32), 1)
    assert torch.allclose(weights(found).float(), weights(usual), atol=1e-5)
    reading = Accuracy()(found.snapshot)
    assert reading.values["accuracy"] == Accuracy()(usual.snapshot).values["accuracy"]


def test_threads_hold_while_a_training_advances():
    seen, before = [], torch.get_num_threads()
    training = Training(TASK, SGD_RULE, Plan(1, 32), 1, Place(threads=2))
    training.model.register_forward_hook(lambda m, x, y: seen.append(torch.get_num_threads()))
    training.advance(2)
    assert seen == [2, 2]
    assert torch.get_num_threads() == before


def test_a_run_knows_its_place(tmp_path):
    runs = [Run(TASK, SGD_RULE, Plan(1, 32), 1, (Accuracy(),), place=place)
            for place in (CPU, Place(dtype="float64"), Place(threads=2), Place(autocast="bfloat16"),
                          Place(compile="try"))]
    assert len({run.id for run in runs}) == len(runs)
    assert runs[0].id == Run(TASK, SGD_RULE, Plan(1, 32), 1, place=Place("cpu")).id
    for outcome in Inline().run(runs[:2], tmp_path):
        assert getattr(outcome, "status", "ok") == "ok", outcome
    result = json.loads((tmp_path / runs[1].id / "result.json").read_text())
    assert result["place"] == repr(Place(dtype="float64"))
    assert result["numerics"]["dtype of the place"] == "float64"


def test_a_run_done_elsewhere_than_it_was_named_is_refused(monkeypatch):
    run = Run(TASK, SGD_RULE, Plan(1, 32), 1)
    assert run.id
    run.verify()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "Z80")
    with pytest.raises(UserError, match=r"blobs: a run was named where cpu is .*, and is done where it is Z80"):
        run.verify()
    check_numerics("x", TorchSettings().numerics(), TorchSettings().numerics())
    with pytest.raises(UserError, match="where dtype of the place is float64, and is done where it is as usual"):
        check_numerics("x", CPU.numerics(), Place(dtype="float64").numerics())


def test_a_model_elsewhere_is_refused():
    task = Task("meta", lambda: nn.Linear(2, 3, device="meta"), Blobs())
    with pytest.raises(UserError, match="meta: weight of its model lies on meta, and the training is on cpu"):
        Training(task, SGD_RULE, Plan(1, 32), 1)


class Hungry(nn.Module):
    """A model that finds no memory for more examples than a few."""

    def __init__(self, most=16):
        super().__init__()
        self.layer, self.most = nn.Linear(2, 3), most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.layer(x)


def test_memory_that_is_short_is_told_with_what_to_try(tmp_path):
    task = Task("hungry", Hungry, Blobs())
    words = r"hungry: cpu has not enough memory for 32 examples at once: give micro_batch=16"
    with pytest.raises(UserError, match=words):
        train(task, SGD_RULE, Plan(1, 32), 1)
    with pytest.raises(UserError, match=words):
        rehearse(task, {"sgd": SGD_RULE}, Plan(1, 32))
    assert train(task, SGD_RULE, Plan(1, 32, micro_batch=16), 1).diverged_at is None
    found = rehearse(task, {"sgd": SGD_RULE}, Plan(1, 32, micro_batch=16))
    assert found.broken == {}
    runs = [Run(task, SGD_RULE, Plan(1, 32), seed) for seed in (1, 2)]
    alone, crowded = (_perform(run, tmp_path, beside) for run, beside in zip(runs, (1, 3), strict=True))
    assert alone.status == crowded.status == "failed"
    assert alone.reason.endswith("give micro_batch=16, which takes the same gradient in parts")
    assert crowded.reason.endswith("in parts; or run fewer at once on a device, --slots 2")


@dataclass(frozen=True)
class There:
    """Work on a device."""

    place: Place


def test_slots_are_shared_out(monkeypatch):
    monkeypatch.setattr("optscope.engine.place.available", lambda: ("cpu", "cuda:0", "cuda:1"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    gpu, cpu = [There(Place("cuda"))] * 9, [There(CPU)] * 9
    assert Local()._places(gpu, 8) == ["cuda"]
    assert Local(0, devices_of("cuda:0,cuda:1"))._places(gpu, 8) == ["cuda:0", "cuda:1"]
    assert Local(2, ("cuda:0", "cuda:1"))._places(gpu, 8) == ["cuda:0", "cuda:1"] * 2
    assert Local(2, ("cuda:0", "cuda:1"))._places(gpu[:3], 8) == ["cuda:0", "cuda:1", "cuda:0"]
    assert Local(0, ("cpu",))._places(cpu, 8) == ["cpu"] * 8
    assert Local(3)._places(cpu, 8) == ["cpu"] * 3
    assert Local()._places([There(Place(threads=4))] * 9, 8) == ["cpu"] * 2
    with pytest.raises(UserError, match="different devices of one kind"):
        devices_of("cpu,cuda:0")
    with pytest.raises(UserError, match="'cuda:2' is not there; there is cpu and cuda:0 and cuda:1"):
        Place("cuda:2")


def broken_compiler(monkeypatch):
    def compile_nothing(function, **options):
        def call(*inputs):
            raise RuntimeError("no compiler for this")
        return call
    monkeypatch.setattr(torch, "compile", compile_nothing)


def test_a_model_that_cannot_be_compiled_is_said_with_the_reason(monkeypatch):
    plain = train(TASK, SGD_RULE, Plan(1, 32), 1)
    broken_compiler(monkeypatch)
    with pytest.raises(UserError, match=r"torch.compile does not take the model \(.*no compiler for this"):
        Training(TASK, SGD_RULE, Plan(1, 32), 1, Place(compile=True))
    training = Training(TASK, SGD_RULE, Plan(1, 32), 1, Place(compile="try"))
    assert "no compiler for this" in training.uncompiled
    training.advance(training.total)
    assert torch.equal(weights(training.trained()), weights(plain))
    said = rehearse(TASK, {"sgd": SGD_RULE}, Plan(1, 32), place=Place(compile="try")).said
    assert any("no compiler for this" in each and "trained without" in each for each in said)


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, without the step that writes and builds C++, which takes most of a minute."""
    found, whole = [], torch.compile

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: whole(function, backend=backend, **options))
    return found


@pytest.mark.parametrize(("task", "rule", "networks"), [
    (NORMED, SGD_RULE, 1), (GAME, Players(generator=SGD_RULE, discriminator=SGD_RULE), 2)], ids=["one", "game"])
def test_a_compiled_model_is_trained_and_seen_as_it_was_written(task, rule, networks, graphs):
    plain = train(task, rule, Plan(1, 32), 1)
    training = Training(task, rule, Plan(1, 32), 1, Place(compile=True))
    assert training.uncompiled == ""
    assert len(graphs) >= networks
    training.advance(2)
    with training.looked_at() as snapshot:
        assert type(snapshot.model) is type(plain.snapshot.model)
        assert all(module._compiled_call_impl is None for module in snapshot.model.modules())
    training.advance(3)
    assert training.model.state_dict().keys() == plain.snapshot.model.state_dict().keys()
    assert torch.allclose(training.losses, plain.losses, atol=1e-6)


class Picky(nn.Module):
    """Takes numbers in float32 and gives them so."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x):
        found = self.linear(x)
        if found.dtype != torch.float32:
            raise RuntimeError("expected Float")
        return found


@pytest.mark.parametrize(("settings", "words"), [
    ({"autocast": "bfloat16"}, "take Place.autocast='bfloat16'.: RuntimeError: expected Float; give autocast=None"),
    ({"dtype": "float64"}, "take Place.dtype='float64'.: RuntimeError: expected Float; give dtype=None")])
def test_numbers_that_a_model_does_not_take_are_said_before_training(settings, words):
    with pytest.raises(UserError, match=words):
        Training(Task("picky", Picky, Blobs()), SGD_RULE, Plan(1, 16), 1, Place(**settings))
    with pytest.raises(UserError, match=f"of 16 examples with {next(iter(settings))}=.*expected Float"):
        rehearse(Task("picky", Picky, Blobs()), {"SGD": SGD_RULE}, Plan(1, 16), place=Place(**settings))


def test_a_model_of_which_nothing_is_compiled_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(UserError, match="finds nothing to compile in it"):
        Training(TASK, SGD_RULE, Plan(1, 32), 1, Place(compile=True))
