"""Training, identity, storage and execution: paired, reproducible, and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional

from optscope.devices import convolves_fast
from optscope.engine.execute import Inline, Local
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Call, Run, Watch, probe_id
from optscope.engine.run_folder import RunFolder
from optscope.engine.store import Store
from optscope.engine.train import train
from optscope.engine.training import first_non_finite
from optscope.errors import UserError
from optscope.evidence.records import Record, measured
from optscope.files import to_json, write_atomically
from optscope.optim import SGD, Adam, Graft, NormalizedSGD, StepDecay
from optscope.probes.accuracy import Accuracy
from optscope.probes.geometry import Geometry
from optscope.tasks.fresh import epoch_permutation, fresh_model
from optscope.tasks.task import Task
from tiny import TASK, Blobs, Net, ended, fail, kill_always, kill_once, succeed

PLAN = Plan(epochs=3, batch=16)


def weights(trained):
    return torch.cat([p.detach().reshape(-1) for p in trained.snapshot.model.parameters()])


def test_training_equals_the_loop_a_user_would_write():
    trained = train(TASK, Adam(lr=0.01), Plan(epochs=2, batch=16, schedule=StepDecay(at=(0.5,))), seed=3)
    init, order, _ = (int(s.generate_state(1)[0]) for s in np.random.SeedSequence(3).spawn(3))
    torch.manual_seed(init)
    model = Net()()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    data = Blobs()().train
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.01 if epoch == 0 else 0.01 * 0.1
        permutation = epoch_permutation(96, order, epoch)
        for batch in permutation.split(16):
            optimizer.zero_grad()
            functional.cross_entropy(model(data.inputs[batch]), data.targets[batch]).backward()
            optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(weights(trained), expected, rtol=1e-6, atol=1e-7)


def test_a_model_without_parameters_to_train_is_refused_in_one_sentence():
    frozen = dataclasses.replace(TASK, model=lambda: Net()().requires_grad_(False))
    with pytest.raises(UserError, match=r"the model has no parameters to train: let some require a gradient$"):
        train(frozen, SGD(lr=0.1), PLAN, 0)


def test_same_seed_same_bits_and_the_rule_does_not_touch_the_streams():
    before = torch.get_rng_state()
    a, b = (train(TASK, SGD(lr=0.1), PLAN, seed=1) for _ in range(2))
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(train(TASK, Adam(lr=0.01), PLAN, seed=1).losses[:1], a.losses[:1])
    assert not torch.equal(train(TASK, SGD(lr=0.1), PLAN, seed=2).losses[:1], a.losses[:1])


def test_watching_does_not_change_training():
    seen = []
    watched = train(TASK, SGD(lr=0.1), PLAN, seed=1, watch=lambda s: seen.append((s.step, len(s.losses))),
                    at=(0, 5, 18))
    assert seen == [(0, 0), (5, 5), (18, 18)]
    assert torch.equal(weights(watched), weights(train(TASK, SGD(lr=0.1), PLAN, seed=1)))


def test_divergence_is_data():
    trained = train(TASK, SGD(lr=1e30), PLAN, seed=1, at=(18,), watch=lambda s: pytest.fail("diverged"))
    assert trained.diverged_at is not None
    assert trained.diverged_at < 6
    assert torch.isnan(trained.losses[-1])


@pytest.mark.parametrize(("weights", "step"), [
    ([3e38, 3e38], None), ([], None), ([1.0, math.nan], 1), ([math.inf, -math.inf], 1)])
def test_weights_diverge_when_one_is_not_finite_however_large_their_sum(weights, step):
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(weights))])
    assert first_non_finite(torch.zeros(2), model) == step


def test_convolutional_models_train_in_channels_last():
    def model():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    x, y = torch.rand(32, 3, 8, 8), torch.arange(32) % 2
    trained = train(Task.from_tensors(model, (x, y), (x, y)), SGD(lr=0.1), Plan(2, 8), seed=0)
    conv = next(trained.snapshot.model.modules().__iter__())[0]
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert trained.diverged_at is None


def test_what_torch_cannot_do_in_channels_last_is_trained_contiguous():
    """See `convolves_fast`: on some processors such a layer would write where it may not."""
    def model():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1, stride=2), nn.Flatten(), nn.Linear(8 * 9, 2))
    x, y = torch.rand(32, 1, 8, 8), torch.arange(32) % 2
    trained = train(Task.from_tensors(model, (x, y), (x, y)), SGD(lr=0.1), Plan(2, 8), seed=0)
    kernels = [p for p in trained.snapshot.model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous() for p in kernels)
    assert convolves_fast(nn.Conv2d(1, 4, 3))
    assert convolves_fast(nn.Conv2d(8, 4, 1, stride=2))
    assert not convolves_fast(nn.Linear(2, 2))


# Identity

def test_what_changes_bits_changes_the_id_and_nothing_else_does():
    run = Run(TASK, SGD(lr=0.1), PLAN, 1)
    assert run.id == Run(Task("blobs", Net(), Blobs()), SGD(lr=0.1), Plan(3, 16), 1, (Accuracy(),)).id
    others = [Run(TASK, SGD(lr=0.2), PLAN, 1), Run(TASK, SGD(lr=0.1), Plan(4, 16), 1),
              Run(TASK, SGD(lr=0.1), PLAN, 2), Run(TASK, SGD(lr=0.1, momentum=0.5), PLAN, 1),
              Run(Task("blobs", Net(9), Blobs()), SGD(lr=0.1), PLAN, 1),
              Run(Task("blobs", Net(), Blobs(95)), SGD(lr=0.1), PLAN, 1),
              Run(dataclasses.replace(TASK, loss=functional.multi_margin_loss), SGD(lr=0.1), PLAN, 1)]
    assert len({run.id, *(other.id for other in others)}) == len(others) + 1


# Storage

def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    write_atomically(target, b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"


def test_records_are_made_from_files_and_indexed(tmp_path):
    store = Store(tmp_path / "out")
    run = Run(TASK, SGD(lr=0.1), PLAN, 1, (Accuracy(),), (Watch(Accuracy(split="validation"), 3),))
    run.perform(store.run_folder(run.id))
    use = Use("demo", "SGD", "final", 1, repr(run.rule), run.id, run.readings, {"width": 8, "kind": "plain"})
    store.add_uses([use, use])
    assert store.uses() == [use]
    records = store.records()
    assert records.by_seed("SGD", "accuracy").keys() == {1}
    assert [r.step for r in records.where(metric="loss") if r.step is not None] == [6, 12, 18]
    assert float(records.values("SGD", "learning rate")[0]) == 0.1
    assert records.factors() == ("width", "kind")
    assert len(records.where(width=8, kind="plain")) == len(records)
    store.index(records)
    import sqlite3
    with sqlite3.connect(tmp_path / "out" / "index.sqlite") as database:
        assert database.execute("select count(*) from records where width = 8").fetchone()[0] == len(records)
    database.close()


def test_a_folder_of_0_1_has_no_factors(tmp_path):
    store = Store(tmp_path / "out")
    old = ["demo", "", "final", 0, "", "0123456789abcdef", []]
    write_atomically(store.folder / "entries.json", to_json({"schema": 1, "entries": [old]}))
    (store.folder / "runs" / old[5]).mkdir()
    result = {"schema": 1, "status": "ok", "seconds": 1.0, "rows": [["L=2, polar", 1, "error", 0.5, None, None]]}
    write_atomically(store.folder / "runs" / old[5] / "result.json", to_json(result))
    assert [(row.arm, dict(row.factors)) for row in store.records()] == [("L=2, polar", {}), ("", {})]


def test_rows_of_a_call_keep_their_factors(tmp_path):
    store, call = Store(tmp_path / "out"), Call(with_factors)
    call.perform(store.run_folder(call.id))
    records = store.records([Use("demo", "", "final", 0, "", call.id, (), {"scale": "desk"})])
    assert records.factors() == ("scale", "depth", "kind")
    assert records.where(depth=2).by_seed("polar", "error") == {1: 0.5, 2: 0.25}
    first, second = records.where(depth=2)
    assert first.factors is second.factors
    assert [row.arm for row in records.where(scale="desk", kind=None, depth=None)] == ["other", ""]
    with pytest.raises(UserError, match="a row of a call: a factor's name is one word"):
        Call(with_a_wrong_factor).perform(store.run_folder("0123456789abcdef"))


def with_factors():
    rows = [measured("polar", seed, "error", 0.5 / seed, depth=2, kind="limit") for seed in (1, 2)]
    return [*rows, measured("other", 1, "error", 0.125)], {}


def with_a_wrong_factor():
    return [Record("", "a", 1, "error", 0.5, factors={"run": 1})], {}


def test_a_probe_added_later_does_not_train_again(tmp_path):
    folder = RunFolder(tmp_path / "r")
    Run(TASK, SGD(lr=0.1), PLAN, 1).perform(folder)
    stamp = (folder.path / "result.json").stat().st_mtime_ns
    Run(TASK, SGD(lr=0.1), PLAN, 1, (Accuracy(),)).perform(folder)
    assert (folder.path / "result.json").stat().st_mtime_ns == stamp
    assert folder.has_reading(probe_id(Accuracy()))


@pytest.mark.parametrize(("prepare", "words"), [
    (lambda p: p.write_text("x"), "is a file"),
    (lambda p: (p.mkdir(), (p / "thesis.tex").write_text("x")), "not optscope's"),
    (lambda p: (p.mkdir(), (p / "optscope.json").write_text('{"schema": 99}')), "newer optscope"),
    (lambda p: (p.mkdir(), (p / "optscope.json").write_text("{"), (p / "x").touch()), "is damaged, and"),
])
def test_folders_that_will_not_do(tmp_path, prepare, words):
    prepare(tmp_path / "out")
    with pytest.raises(UserError, match=words):
        Store(tmp_path / "out")


def test_a_folder_serves_one_process_at_a_time(tmp_path):
    store = Store(tmp_path / "out")
    with store.locked(), pytest.raises(UserError, match=f"in use by process {os.getpid()}"), \
            Store(tmp_path / "out").locked():
        pass
    with store.locked():
        pass


# Execution

def outcomes(executor, works, folder):
    return {outcome.id: outcome for outcome in ended(executor, works, folder)}


def test_local_equals_inline_bit_for_bit(tmp_path):
    runs = [Run(TASK, Graft(Adam(lr=0.01), SGD(lr=1.0)), PLAN, seed) for seed in range(3)]
    assert all(o.status == "ok" for o in outcomes(Inline(), runs, tmp_path / "a").values())
    assert all(o.status == "ok" for o in outcomes(Local(2), runs, tmp_path / "b").values())
    for run in runs:
        a, b = (RunFolder(tmp_path / x / run.id).weights() for x in "ab")
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_killed_worker_costs_one_run_which_is_tried_again(tmp_path):
    killer = Call(kill_once, {"marker": str(tmp_path / "marker")})
    poison = Call(kill_always)
    good = [Call(succeed, {"value": float(i)}) for i in range(4)]
    found = outcomes(Local(2), [good[0], killer, good[1], poison, *good[2:]], tmp_path / "runs")
    assert [found[w.id].status for w in good] == ["ok"] * 4
    assert found[killer.id].status == "ok"
    assert (found[poison.id].status, found[poison.id].tries) == ("lost", 3)


def test_an_error_in_a_run_is_an_outcome(tmp_path):
    for executor in (Inline(), Local(1)):
        (outcome,) = ended(executor, [Call(fail)], tmp_path / "runs")
        assert outcome.status == "failed"
        assert "ZeroDivisionError: on purpose (tiny.py" in outcome.reason


def test_json_keeps_what_is_not_finite(tmp_path):
    from optscope.files import to_json
    assert json.loads(to_json({"a": float("nan"), "b": [float("-inf"), 1.5]})) == {"a": "nan", "b": ["-inf", 1.5]}


# What users bring

class Drawn(nn.Module):
    """A network whose constants are no part of its state dict, drawn by all three global generators."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("fixed", torch.randn(4 * 36, 2) * np.random.rand() * random.random(),
                             persistent=False)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x.view(x.size(0), -1) @ self.fixed  # not possible in channels-last


def test_models_are_made_alike_everywhere_and_flatten_as_they_like(tmp_path):
    x, y = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    task = Task.from_tensors(Drawn, (x, y), (x, y))
    states = np.random.get_state()[1].copy(), random.getstate()
    trained = train(task, SGD(lr=0.01), Plan(2, 8), seed=0)
    assert trained.diverged_at is None
    assert (np.random.get_state()[1] == states[0]).all()
    assert random.getstate() == states[1]
    assert int(trained.snapshot.model.norm.num_batches_tracked) == 8  # the trial of formats left no trace
    assert torch.equal(fresh_model(task, 0).fixed, trained.snapshot.model.fixed)
    folder = RunFolder(tmp_path / "r")
    run = Run(task, SGD(lr=0.01), Plan(2, 8), 0, (Accuracy(),), (Watch(Accuracy(), 1),))
    run.perform(folder)
    final, watched = (json.loads((folder.path / f"probe-{r}.json").read_text())["values"] for r in run.readings)
    assert [row[:3] for row in final] == [row[:3] for row in watched]


def test_arrays_of_a_reading_are_kept_and_names_among_them(tmp_path):
    folder, run = RunFolder(tmp_path / "r"), Run(TASK, Adam(lr=0.03), PLAN, 1, (Geometry(),))
    run.perform(folder)
    (name,) = run.readings
    written = json.loads((folder.path / f"probe-{name}.json").read_text())
    assert written["texts"]["layers"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    arrays = load_file(folder.path / f"probe-{name}.safetensors")
    assert arrays["layer weight norms"].shape == (4,)
    assert {row[0] for row in written["values"]} >= {"weight norm", "distance from initialisation"}


def test_moments_are_even_or_even_in_the_logarithm_and_end_with_the_end():
    probe = Accuracy()
    assert sorted(Watch(probe, 3).steps(10)) == [3, 7, 10]
    assert sorted(Watch(probe, 4, logarithmic=True).steps(1000)) == [1, 10, 100, 1000]
    assert sorted(Watch(probe, 9, logarithmic=True).steps(4)) == [1, 2, 3, 4]
    assert Watch(probe, 1, logarithmic=True).steps(7) == {7}
    with pytest.raises(UserError, match="moments, how often the probe is taken, must be at least 1; got 0"):
        Watch(probe, 0)


def test_watching_is_no_part_of_a_runs_identity_and_can_be_added(tmp_path):
    folder, run = RunFolder(tmp_path / "r"), Run(TASK, SGD(lr=0.1), PLAN, 1)
    run.perform(folder)
    stamp = (folder.path / "result.json").stat().st_mtime_ns
    later = dataclasses.replace(run, watch=(Watch(Accuracy(), 2),))
    assert later.id == run.id
    later.perform(folder)
    assert (folder.path / "result.json").stat().st_mtime_ns == stamp
    assert all(folder.has_reading(name) for name in later.readings)


def test_weights_that_are_not_kept_are_made_again_for_a_later_probe(tmp_path):
    folder, run = RunFolder(tmp_path / "r"), Run(TASK, SGD(lr=0.1), PLAN, 1, keep=False)
    run.perform(folder)
    assert folder.has_result()
    assert not folder.has_weights()
    assert run.id == dataclasses.replace(run, keep=True).id
    probed, kept = (dataclasses.replace(run, probes=(Accuracy(),), keep=keep) for keep in (False, True))
    probed.perform(folder)
    assert not folder.has_weights()
    assert folder.has_reading(probe_id(Accuracy()))
    other = RunFolder(tmp_path / "other")
    kept.perform(other)
    name = f"probe-{probe_id(Accuracy())}.json"
    assert (folder.path / name).read_bytes() == (other.path / name).read_bytes()


@dataclasses.dataclass(frozen=True, repr=False)
class Crash(Accuracy):
    """Always stops."""

    def measure(self, subject):
        raise RuntimeError("shapes")


def test_one_probes_crash_costs_no_other(tmp_path):
    run = Run(TASK, SGD(lr=0.1), PLAN, 1, (Crash(), Accuracy()), (Watch(Crash(), 2),))
    (outcome,) = ended(Inline(), [run], tmp_path)
    assert outcome.status == "failed"
    assert "Crash() stopped with RuntimeError: shapes (test_engine.py" in outcome.reason
    assert RunFolder(tmp_path / run.id).has_reading(probe_id(Accuracy()))
    assert not RunFolder(tmp_path / run.id).has_reading(probe_id(Crash()))


def stop(number, place):
    """Raise an error of the operating system."""
    raise OSError(number, "on purpose", place)


def test_only_the_runs_own_disk_stops_everything(tmp_path):
    for number, place in ((28, "/elsewhere"), (2, str(tmp_path / "x"))):
        (outcome,) = ended(Inline(), [Call(stop, {"number": number, "place": place})], tmp_path)
        assert outcome.status == "failed"
    with pytest.raises(OSError, match="on purpose"):
        list(Inline().run([Call(stop, {"number": 28, "place": str(tmp_path / "x")})], tmp_path))


def test_what_cannot_be_sent_is_said_before_anything_is_done(tmp_path):
    with pytest.raises(UserError, match="cannot be sent to another process"):
        list(Local(1).run([Call(succeed, {"value": (each for each in ())})], tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_worker_with_another_program_refuses(tmp_path):
    from optscope.engine.execute import perform_there
    with pytest.raises(UserError, match="was edited during this command"):
        perform_there(Call(succeed, {"value": 1.0}), tmp_path, "another")


def test_an_earlier_failure_chooses_nothing_before_it_is_tried_again(tmp_path):
    from optscope.protocol.comparison import Arm, Comparison
    from optscope.protocol.events import Quiet
    from optscope.protocol.search import Grid
    from optscope.protocol.session import run_experiments
    comparison = Comparison("c", TASK, (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))),), PLAN, (), (1,))
    store = Store(tmp_path / "out")
    jobs = comparison.jobs(store.records())
    store.add_uses(job.use for job in jobs)
    for job in jobs:
        store.run_folder(job.work.id).write_failure("lost", "once")
    run_experiments([comparison], store, Inline(), Quiet())
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 3
    assert not list(tmp_path.glob("out/runs/*/failed.json"))


def test_a_gradient_that_is_not_a_number_shows_in_normalised_steps():
    for rule in (NormalizedSGD(lr=0.1), Graft(SGD(lr=0.1), SGD(lr=0.1))):
        weight = nn.Parameter(torch.ones(2))
        weight.grad = torch.tensor([torch.nan, 1.0])
        rule.optimizer([weight]).step()
        assert torch.isnan(weight).all()
