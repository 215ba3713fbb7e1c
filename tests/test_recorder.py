"""Recording somebody's own loop: nothing changes, nothing is lost, and the report is that of trainings of ours."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope import Recorder, lab
from optscope.errors import UserError
from optscope.evidence.recorded import recorded_in
from optscope.evidence.records import Metric
from optscope.files import RECORDED, Lines
from optscope.optim import AdamW, ScheduleFree
from optscope.probes.accuracy import Accuracy
from optscope.probes.edge import EdgeOfStability
from optscope.probes.probe import Probe, Reading
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from tiny import TASK, call

TRAIN = TASK.data().train
PAGE = (Path(__file__).parents[1] / "docs" / "your-loop.md").read_text()


def network():
    """A network with all that a look could disturb: dropout, running statistics, and a layer in eval mode."""
    model = nn.Sequential(nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
                          nn.Linear(8, 3))
    model[1].eval()
    return model


OPTIMISERS = {"sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
              "adam": lambda p: torch.optim.Adam(p, lr=0.02),
              "rule": lambda p: ScheduleFree(AdamW(lr=0.02, beta1=0.0)).optimizer(p)}


def loop(make, seed, recorder=None, steps=30, model=network, look=lambda step, model, optimizer: None):
    """Train a network, and return it with its optimiser and the next random numbers of everybody."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = model()
    optimizer = make(model.parameters())
    for step in range(1, steps + 1):
        where = torch.randint(0, 96, (16,))
        where[0] = random.randrange(96)
        inputs = TRAIN.inputs[where] + 0.01 * float(np.random.rand())
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), TRAIN.targets[where])
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.step(model, optimizer, loss)
        look(step, model, optimizer)
    return model, optimizer, (torch.rand(1), np.random.rand(), random.random())


def bits(model, optimizer, numbers):
    """All that a loop holds, as it can be compared."""
    state = [v for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
    return [*(t.clone() for t in (*model.state_dict().values(), *(p.grad for p in model.parameters()), *state)),
            torch.tensor([each.training for each in model.modules()]), *map(torch.as_tensor, numbers)]


@pytest.mark.parametrize("arm", OPTIMISERS)
def test_a_training_has_the_same_bits_with_and_without(arm, tmp_path):
    recorder = Recorder(tmp_path / "out", arm=arm, seed=1, task=TASK, every=7)
    recorded = loop(OPTIMISERS[arm], 1, recorder)
    alone = loop(OPTIMISERS[arm], 1)
    assert all(map(torch.equal, bits(*recorded), bits(*alone)))
    recorder.close()
    assert all(map(torch.equal, bits(*recorded), bits(*alone)))


def test_what_is_recorded_is_what_probes_find_of_the_same_moments(tmp_path):
    moments, losses = {}, []

    def look(step, model, optimizer):
        if step in (10, 20, 25):
            twin = copy.deepcopy(model)
            live = OPTIMISERS["adam"](twin.parameters())
            live.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            moments[step] = Snapshot(twin, TASK, 3, step, optimizer=live)

    class Heard(Recorder):
        def step(self, model, optimizer, loss):
            losses.append(float(loss.detach()))
            super().step(model, optimizer, loss)

    recorder = Heard(tmp_path / "out", arm="adam", seed=3, task=TASK, every=10)
    loop(OPTIMISERS["adam"], 3, recorder, 25, look=look)
    result = recorder.report()
    rows = result.records.where(arm="adam", seed=3)
    memory = None
    for step, snapshot in moments.items():
        for probe in (Accuracy(split="validation"), EdgeOfStability()):
            reading = probe(snapshot, memory if isinstance(probe, EdgeOfStability) else None)
            memory = reading.memory if isinstance(probe, EdgeOfStability) else memory
            for metric, value in reading.values.items():
                assert [row.value for row in rows.where(metric=metric, step=step)] == [value]
    assert [row.value for row in rows.where(metric="stability threshold")] == [pytest.approx(1900)] * 3  # 38/lr
    found = {row.step: row.value for row in rows.where(metric="training loss")}
    expected = {10: losses[:10], 20: losses[10:20], 25: losses[20:]}
    assert found == {step: pytest.approx(float(np.mean(some)), rel=1e-6) for step, some in expected.items()}
    final = Accuracy()(moments[25]).values
    assert {row.metric: row.value for row in rows if row.step is None and row.metric in final} == final
    assert not rows.where(metric="distance from initialisation")  # the recorder has not seen the start
    assert {"accuracy under l2 attack", "explained by all four"} <= set(rows.metrics())


def record(folder, arms=("sgd", "adam"), seeds=range(1, 8), closed=True, **more):
    for arm in arms:
        for seed in seeds:
            recorder = Recorder(folder, arm=arm, seed=seed, task=TASK, every=10, at_end=["Accuracy"], **more)
            loop(OPTIMISERS[arm], seed, recorder, 20)
            if closed:
                recorder.close()


def test_several_arms_and_seeds_make_the_report_of_a_comparison(tmp_path, monkeypatch, capsys):
    record(tmp_path / "out")
    assert call(monkeypatch, f"report {tmp_path / 'out'}") == 0
    shown = capsys.readouterr().out
    assert "sgd against adam: sgd's accuracy" in shown
    assert f"report: {tmp_path / 'out' / 'report.html'}" in shown
    result = lab.recorded(tmp_path / "out")
    assert {verdict.n for _, verdict in result.verdicts} == {7}
    assert [figure.name for figure in result.document.figures][:2] == ["training", "edge-of-stability"]
    assert any("chosen with equal effort is not known here" in said for said in result.document.warnings)


def test_what_is_not_closed_on_a_seed_is_shown_and_not_tested(tmp_path):
    record(tmp_path / "out", seeds=(1, 2))
    record(tmp_path / "out", arms=["adam"], seeds=[3], closed=False)
    record(tmp_path / "out", arms=["sgd"], seeds=[4])
    result = lab.recorded(tmp_path / "out")
    assert {verdict.n for _, verdict in result.verdicts} == {2}
    told = "\n".join(result.document.warnings)
    assert "not closed yet, or killed: adam with seed 3 (after step 20)" in told
    assert "of the seeds that every arm has: without sgd with seed 4" in told
    assert {row.seed for row in result.records if row.arm == "adam"} == {1, 2, 3}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_training_keeps_every_look(tmp_path):
    child = os.fork()
    if not child:
        recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=10, probes=["EdgeOfStability"])
        loop(OPTIMISERS["sgd"], 1, recorder, 1000,
             look=lambda step, *others: os.kill(os.getpid(), signal.SIGKILL) if step == 25 else None)
    os.waitpid(child, 0)
    rows = lab.recorded(tmp_path / "out").records
    assert [row.step for row in rows.where(metric="sharpness")] == [10, 20]
    assert [row.step for row in rows.where(metric="training loss")] == [10, 20]
    (path,) = (tmp_path / "out" / "runs").glob(f"*/{RECORDED}")
    with path.open("ab") as file:
        file.write(b'{"what":"rea')  # as a machine that goes down leaves it
    recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=10, probes=[], start=15)
    loop(OPTIMISERS["sgd"], 2, recorder, 10)
    (found,) = recorded_in(tmp_path / "out")
    assert sorted(found.losses) == [10, 20]  # that of step 20 is the new one's
    assert found.losses[20] != rows.where(metric="training loss", step=20)[0].value


def test_a_training_begun_anew_replaces_the_one_before_even_if_that_goes_on(tmp_path):
    first, second = (Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=5, probes=[]) for _ in range(2))
    loop(OPTIMISERS["sgd"], 1, second, 5)
    loop(OPTIMISERS["sgd"], 2, first, 20)
    (found,) = recorded_in(tmp_path / "out")
    assert list(found.losses) == [5]


@dataclass(frozen=True, repr=False)
class Failing(Probe):
    """Stops with an error of its author's."""

    @property
    def metrics(self):
        return (Metric("never"),)

    def measure(self, subject):
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True, repr=False)
class Measured(Probe):
    """Finds 1."""

    @property
    def metrics(self):
        return (Metric("one"),)

    def measure(self, subject):
        return Reading({"one": 1.0})


def test_a_probe_that_fails_stops_itself_alone_and_is_told_of(tmp_path):
    recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=5, probes=[Failing(), Measured()],
                        at_end=[Measured()])
    loop(OPTIMISERS["sgd"], 1, recorder, 20)
    result = recorder.report()
    assert [row.step for row in result.records.where(metric="one")] == [5, 10, 15, 20, None]
    assert sum("on purpose" in said for said in result.document.warnings) == 1


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=5)

    def full(self, line):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Lines, "append", full)
    with pytest.warns(UserWarning, match="recording to .* has stopped: .*No space left"):
        loop(OPTIMISERS["sgd"], 1, recorder, 20)


def test_a_loss_that_is_not_finite_makes_a_training_that_diverged(tmp_path):
    recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=5)
    loop(lambda p: torch.optim.SGD(p, lr=1e30), 1, recorder, 20)
    rows = recorder.report().records
    assert {row.status for row in rows} == {"diverged"}


def test_a_model_is_found_within_what_others_wrap_around_it(tmp_path):
    class Wrapped(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = network()
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    recorder = Recorder(tmp_path / "out", arm="adam", seed=1, task=TASK, every=1, at_end=[])
    optimizer = OPTIMISERS["adam"](model.parameters())
    functional.cross_entropy(model(TRAIN.inputs), TRAIN.targets).backward()
    optimizer.step()
    recorder.step(compiled, Wrapped(optimizer))
    found = recorder.report().records
    assert found.where(metric="stability threshold")[0].value == pytest.approx(1900)
    assert found[0].rule == "Adam(lr=0.02)"
    assert not found.where(metric="training loss")


def test_an_optimiser_that_steps_otherwise_than_the_one_it_holds_is_not_taken_for_it(tmp_path):
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    recorder = Recorder(tmp_path / "out", arm="lookahead", seed=1, task=TASK, every=1, at_end=[])
    model = network()
    recorder.step(model, Lookahead(OPTIMISERS["sgd"](model.parameters())))
    found = recorder.report().records
    assert found.where(metric="sharpness")
    assert not found.where(metric="stability threshold")
    assert found[0].rule == "Lookahead"


@pytest.mark.parametrize(("loss", "got"), [
    (torch.ones(2), r"a tensor of shape \(2,\)"), (np.ones(2), r"an array of shape \(2,\)"),
    ({"loss": 1.0}, "dict")])
def test_a_loss_that_is_not_one_number_is_refused_at_the_first_step(loss, got, tmp_path):
    recorder = Recorder(tmp_path / "out", arm="sgd", seed=1, task=TASK, every=100)
    model = network()
    with pytest.raises(UserError, match=f"the loss must be one number, .*; got {got}: hand over the mean"):
        recorder.step(model, OPTIMISERS["sgd"](model.parameters()), loss)
    recorder.step(model, OPTIMISERS["sgd"](model.parameters()), torch.ones(1))


@pytest.mark.parametrize(("said", "says"), [
    ({"every": 0}, "every must be a whole number, at least 1; got 0"),
    ({"seed": 2**32}, r"seed must be less than 2\*\*32, .*; got 4294967296"),
    ({"seed": True}, "seed must be a whole number, at least 0; got True"),
    ({"start": -1}, "start must be a whole number, at least 0; got -1"),
    ({"probes": ["Edge"]}, 'no probe "Edge"'),
    ({"at_end": ["BandNoise"]}, "BandNoise does not fit blobs"),
    ({"folder": "file"}, "the output folder .*file is a file"),
    ({"task": Task("other", TASK.model, TASK.data)}, "holds the report of recordings of blobs, which that of")])
def test_what_cannot_be_recorded_is_said_before_the_training(said, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Recorder("out", arm="a", seed=1, task=TASK, every=5)
    given = {"arm": "a", "seed": 1, "task": TASK, "every": 5} | said
    with pytest.raises(UserError, match=says):
        Recorder(given.pop("folder", "out"), **given)


def test_a_folder_without_recordings_and_a_garbled_one_are_told(tmp_path):
    with pytest.raises(UserError, match=r"nothing that optscope\.Recorder has recorded"):
        lab.recorded(tmp_path)
    record(tmp_path / "out", arms=["sgd"], seeds=[1])
    (path,) = (tmp_path / "out" / "runs").glob(f"*/{RECORDED}")
    path.write_text('{"what": "begun"}\n')
    with pytest.raises(UserError, match="is not what a recorder writes"):
        lab.recorded(tmp_path / "out")


# Loops of others: the lines that the page gives

def lines(heading):
    """The lines of the page below a heading."""
    return re.search(rf"^## {heading}\n+```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]


def looks(recorder):
    return [row.step for row in recorder.report().records.where(metric="sharpness")]


def new_recorder(folder):
    return Recorder(folder, arm="adamw", seed=1, task=TASK, every=4, at_end=["Accuracy"])


@pytest.mark.filterwarnings("ignore")  # of the library
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = TASK.model()

        def training_step(self, batch, index):
            return functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    recorder = new_recorder(tmp_path / "out")
    known = {"Callback": lightning.Callback, "recorder": recorder}
    exec(lines("Lightning"), known)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(TRAIN.inputs, TRAIN.targets), 12)
    lightning.Trainer(max_epochs=1, callbacks=[known["Record"]()], logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, accelerator="cpu").fit(Module(), data)
    assert looks(recorder) == [4, 8]


@pytest.mark.filterwarnings("ignore")  # of the library
def test_the_trainer_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TASK.model()

        def forward(self, x, labels=None):
            logits = self.net(x)
            return {"logits": logits} if labels is None else {
                "loss": functional.cross_entropy(logits, labels), "logits": logits}

    recorder = Recorder(tmp_path / "out", arm="adamw", seed=1, task=Task("blobs", Net, TASK.data, output="logits"),
                        every=4, at_end=["Accuracy"])
    known = {"TrainerCallback": transformers.TrainerCallback, "recorder": recorder}
    exec(lines("The Trainer of Hugging Face"), known)
    data = [{"x": x, "labels": y} for x, y in zip(TRAIN.inputs, TRAIN.targets, strict=True)]
    told = transformers.TrainingArguments(tmp_path / "trainer", per_device_train_batch_size=12, num_train_epochs=1,
                                          report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True)
    transformers.Trainer(Net(), told, train_dataset=data, callbacks=[known["Record"]()]).train()
    assert looks(recorder) == [4, 8]


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    recorder, accelerator = new_recorder(tmp_path / "out"), accelerate.Accelerator(cpu=True)
    model = TASK.model()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    text = textwrap.dedent(lines("Accelerate"))
    for _ in range(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(TRAIN.inputs), TRAIN.targets)
        exec(text, {"accelerator": accelerator, "optimizer": optimizer, "recorder": recorder, "model": model,
                    "loss": loss})
    assert looks(recorder) == [4, 8]
