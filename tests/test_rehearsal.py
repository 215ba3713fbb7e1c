"""What a comparison will do, done once and small: arms that cannot step, probes that stop, plans that are short."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope import lab
from optscope.engine.execute import Inline
from optscope.engine.place import Place
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.errors import UserError
from optscope.evidence.records import Metric, Records
from optscope.optim import SGD, Adam, Foreign, Graft, Players, Rounded, SignSGD
from optscope.probes.accuracy import Accuracy
from optscope.probes.edge import EdgeOfStability
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.probe import Probe, Reading
from optscope.protocol import remembered
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.kits import Predictors
from optscope.protocol.rehearse import planned, rehearsed, trainings
from optscope.protocol.remembered import Remembered
from optscope.protocol.search import Grid
from optscope.protocol.settings import OptimiserSettings, Settings
from optscope.tasks.check import check_task
from optscope.tasks.fresh import fresh_model
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import Perceptron
from optscope.tasks.mixtures import Ring
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from tiny import TASK

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
PLAN = Plan(2, 16)
RING = gan("ring", Perceptron((8, 8, 2)), Perceptron((2, 8, 1)), Ring(points=256), bounds=None)


def task(model=lambda: nn.Linear(6, 3), x=X, y=Y, **settings):
    return Task.from_tensors(model, (x, y), (x, y), **({"bounds": None} | settings))


class Picky(torch.optim.SGD):
    """SGD of matrices."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                assert p.dim() == 2, f"matrices alone\nnot {p.dim()} axes"
        return super().step(closure)


class Late(torch.optim.SGD):
    """SGD that waits for its third step."""

    def step(self, closure=None):
        self.made = getattr(self, "made", 0) + 1
        return super().step(closure) if self.made > 2 else None


class Never(torch.optim.SGD):
    """SGD that forgets to step."""

    def step(self, closure=None):
        return None


class Hoarding(torch.optim.SGD):
    """SGD whose momentum lies outside its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                kept = getattr(self, "kept", {})
                kept[id(p)] = kept.get(id(p), 0) * 0.9 + p.grad
                self.kept = kept
                p.data.add_(kept[id(p)], alpha=-group["lr"])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x)


class Growing(Model):
    def forward(self, x):
        if self.training:
            self.register_parameter(f"p{len(list(self.parameters()))}", nn.Parameter(torch.zeros(1)))
        return super().forward(x)


class Caching(Model):
    def forward(self, x):
        logits = super().forward(x)
        if self.training:
            logits = logits + getattr(self, "last", 0)
            self.last = logits[:1]
        return logits


class Counting(Model):
    """What it learns lies in no buffer."""

    def forward(self, x):
        if self.training:
            self.mean = x.mean(0)
        return super().forward(x - getattr(self, "mean", 0))


class Unused(Model):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(6, 3)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 5, sparse=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.embed(x).mean(1))


def seeded_itself():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def own_stream(x, generator):
    return x + torch.tensor(np.random.default_rng().normal(size=x.shape), dtype=x.dtype)


BATCH_NORM = task(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))
REFUSED = {
    "matrices alone": (task(), Foreign(Picky, lr=0.1), PLAN,
                       r"arm cannot step the parameter bias of shape \(3,\): .*ByKind\(matrices=Foreign\(.*\)$"),
    "a class of torch for matrices": (task(), Foreign("torch.optim:Muon", lr=0.1), PLAN,
                                      r"cannot step the parameter bias of shape \(3,\)"),
    "sparse gradients": (task(Sparse, x=torch.randint(20, (40, 7))), SGD(lr=0.1), PLAN,
                         r"step the parameter embed.weight of shape \(20, 5\): .*sparse=False"),
    "a class inside a graft": (task(), Graft(Foreign(Hoarding, lr=0.1), SGD(lr=1.0)), PLAN,
                               "cannot be used inside Graft"),
    "one example": (BATCH_NORM, SGD(lr=0.1), Plan(2, 1), "training batch of 1 examples stopped with ValueError"),
    "more parameters": (task(Growing), SGD(lr=0.1), PLAN, "other parameters after a batch than before"),
    "cached activations": (task(Caching), SGD(lr=0.1), PLAN, "training batch .* stopped with RuntimeError"),
    "state outside": (task(Counting), SGD(lr=0.1), PLAN, "a saved model gives other outputs"),
    "augmentation of its own": (task(augment=own_stream), SGD(lr=0.1), PLAN, "draw from the generator"),
    "augmentation that drops": (task(augment=lambda x, g: x[1:]), SGD(lr=0.1), PLAN, "as many examples"),
    "augmentation that raises": (task(augment=lambda x, g: x.view(-1, 7)), SGD(lr=0.1), PLAN,
                                 "augment stopped with RuntimeError"),
    "a player's class": (RING, Players(discriminator=SGD(lr=0.1), generator=Foreign(Picky, lr=0.1)), PLAN,
                         r"arm cannot step the parameter 0.bias of shape \(8,\): .*Picky steps matrices only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_sentence_that_names_arm_and_parameter(name):
    given, rule, plan, words = REFUSED[name]
    check_task(given)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=words) as said:
        rehearse(given, {"arm": rule}, plan)
    assert "\n" not in str(said.value)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("given", "rule", "words"), [
    (task(), Foreign(Never, lr=0.1), "Never', lr=0.1) change no weight."),
    (task(), Foreign(Late, lr=0.1), "Late', lr=0.1) changes no weight."),
    (task(), Foreign("torch.optim:AdamW", lr=0.1), "decays weights by 0.01, its default"),
    (task(), SGD(lr=1e39), "its smallest rate, diverges within 3 steps"),
    (task(seeded_itself), SGD(lr=0.1), "every seed starts from the same weights"),
    (task(Unused), SGD(lr=0.1), "does not depend on the parameters spare.weight, spare.bias: not trained"),
], ids=["never moves", "moves late", "decay", "diverges", "one start", "unused parameters"])
def test_what_is_odd_is_said(given, rule, words):
    found = rehearse(given, {"arm": rule}, PLAN)
    assert words in " ".join(found.said)
    assert not found.silent | found.broken | found.single


def test_good_arms_are_not_spoken_of_and_games_go_the_same_way():
    assert rehearse(TASK, {"SGD": SGD(lr=0.1), "Adam": Adam(lr=0.01)}, PLAN, (Accuracy(),), (EdgeOfStability(),),
                    lambda rule: Rounded(rule, 3)) == rehearse(TASK, {}, PLAN)
    assert rehearse(RING, {"a": Players(discriminator=SGD(lr=0.1), generator=Adam(lr=0.1))}, PLAN).said == []


@dataclass(frozen=True, repr=False)
class Stubborn(Probe):
    """Refuse, stop, or measure from some number of examples on."""

    name: str = "x"
    least: int = 0
    kind: type[Exception] = UserError

    @property
    def metrics(self):
        return (Metric(self.name),)

    def measure(self, subject):
        if len(subject.inputs) < self.least:
            raise self.kind(f"needs {self.least} examples")
        return Reading({self.name: 1.0})


def test_probes_that_stop_are_left_out_and_silent_ones_are_told_beforehand_once():
    fine, patient = Stubborn("a"), Stubborn("b", least=90)  # the test part has 96 examples
    silent, stops = Stubborn("c", least=99), Stubborn("d", least=99, kind=ZeroDivisionError)
    arms = Arm("SGD", SGD(lr=0.1)), Arm("sign", SignSGD(lr=0.1))
    given = Comparison("c", TASK, arms, PLAN, (fine, patient, silent, stops), (1,), watched=(
        replace(stops, name="e"),), described=(replace(silent, name="f"),))
    found = rehearsed(given)
    assert [each.name for each in found.comparison.probes] == ["a", "b", "c"]
    assert found.comparison.watched == ()
    stopped = [sentence for sentence in found.known if "is left out" in sentence]
    assert len(stopped) == 2
    assert all("ZeroDivisionError: needs 99 examples" in sentence for sentence in stopped)
    told = [sentence for sentence in found.before if "nothing is measured" in sentence]
    assert len(told) == 1
    assert "(name='c', least=99) and" in told[0]
    with pytest.raises(UserError, match=r"learning rates are chosen by .* nothing of an untrained .*: needs 999"):
        rehearsed(replace(given, validation=Stubborn("loss", least=999)))


def test_what_was_rehearsed_is_known_the_next_time_and_nothing_else_is(tmp_path, monkeypatch):
    done, real = [], remembered.rehearse
    monkeypatch.setattr(remembered, "rehearse", lambda *given: done.append(given) or real(*given))

    def found(comparison):
        memory = Remembered(tmp_path)
        before = len(done)
        told = rehearsed(comparison, memory.rehearse)
        memory.write()
        return told, len(done) - before

    silent, stops = Stubborn("c", least=99), Stubborn("d", least=99, kind=ZeroDivisionError)
    arms = Arm("SGD", SGD(lr=0.1)), Arm("hoarding", Foreign(Hoarding, lr=0.1))
    given = Comparison("c", TASK, arms, PLAN, (Stubborn("a"), silent, stops), (1, 2), twin_seeds=(1,),
                       watched=(replace(stops, name="e"), replace(silent, name="f")))
    first, count = found(given)
    assert count == 1
    assert found(given) == (first, 0)
    assert (first.comparison.single, len(first.comparison.probes)) == (("hoarding",), 2)
    assert found(replace(given, seeds=(1, 2, 3), name="other"))[1] == 0  # of which a rehearsal knows nothing
    for change in ({"plan": Plan(2, 17)}, {"twin_seeds": ()}, {"probes": given.probes[1:]}, {"arms": arms[:1]},
                   {"arms": arms[::-1]}, {"arms": (replace(arms[0], rule=SGD(lr=0.2)), arms[1])},
                   {"probes": (*given.probes, given.watched[0]), "watched": given.watched[1:]},
                   {"task": replace(TASK, name="another")}, {"task": replace(TASK, bounds=None)},
                   {"place": Place(threads=2)}):
        assert [found(replace(given, **change))[1] for _ in range(2)] == [1, 0], change
    path = tmp_path / "rehearsed.json"
    for content in ("", "[]", "null", '{"a', path.read_text().replace("seconds", "minutes")):
        path.write_text(content)
        assert [found(given)[1] for _ in range(2)] == [1, 0], content
    monkeypatch.setattr(remembered, "source_digest", lambda *modules: "other code")
    assert found(given)[1] == 1
    for _ in range(2):
        with pytest.raises(UserError, match="learning rates are chosen by"):
            found(replace(given, validation=Stubborn("loss", least=999)))


def test_an_arm_that_cannot_be_rounded_has_no_twins():
    arms = Arm("SGD", SGD(lr=0.1)), Arm("hoarding", Foreign(Hoarding, lr=0.1))
    found = rehearsed(Comparison("c", TASK, arms, PLAN, (Accuracy(),), (1, 2), twin_seeds=(1,)))
    assert found.comparison.single == ("hoarding",)
    assert any(sentence.startswith("hoarding has no rounding twins: ") for sentence in found.known)
    twins = [job.use for job in found.comparison.jobs(Records()) if job.use.phase == "twin"]
    assert {use.arm for use in twins} == {"SGD"}


def test_a_plan_is_told_and_a_short_one_said():
    x, y = torch.rand(320, 2), torch.arange(320) % 3
    given = Task.from_tensors(lambda: nn.Linear(2, 3), (x, y), (x, y), validation=(x, y))
    words = ("30 epochs of 2 steps on 128 examples each make 60 steps; 64 of 320 examples, "
             "others each time, are left out of an epoch")
    assert words in planned(given, Plan(30, 128))
    arms = Arm("SGD", SGD(lr=0.1)), Arm("sign", SignSGD(lr=0.1))
    short = rehearsed(Comparison("c", given, arms, Plan(30, 128), (Accuracy(),), (1,)))
    assert short.known[0] == ("c: 60 steps in all, fewer than 200, may be too few for any optimiser: give 100 "
                              "epochs or more, or a batch of 45 or fewer.")
    assert [Plan(*each).total(320) for each in ((100, 128), (99, 128), (30, 45), (30, 46))] == [200, 198, 210, 180]
    assert words in short.before[0]
    long = rehearsed(Comparison("c", given, arms, Plan(30, 32), (Accuracy(),), (1,)))
    assert long.known == []
    assert long.before == ["c: 30 epochs of 10 steps on 32 examples each make 300 steps",
                           "c: 2 trainings: 2 that are compared"]
    assert "a batch of 999 was asked for; there are 320" in rehearsed(
        Comparison("c", given, arms, Plan(30, 999), (Accuracy(),), (1,))).known[0]


def test_the_trainings_are_told_beforehand_and_are_those_that_are_done():
    rates = {"sgd": OptimiserSettings(lr=[0.1, 0.2]), "adam": OptimiserSettings(lr=[0.01, 0.02])}
    tiny = Settings(seeds=3, epochs=1, twin_seeds=2, tuning_seeds=2, examples=8, widen=0, optimisers=rates)
    given = comparison_of(TASK, tiny)
    assert trainings(given) == ("22 trainings: 8 to choose learning rates; 6 that are compared; "
                                "8 with steps rounded otherwise")
    assert f"blobs: {trainings(given)}" in rehearsed(given).before
    assert len(given.jobs(Records())) == 8
    fixed = replace(given, arms=tuple(replace(arm, search=None) for arm in given.arms), twin_seeds=(), widen=2)
    assert trainings(fixed) == "6 trainings: 6 that are compared"
    assert len(fixed.jobs(Records())) == 6
    assert "8 to choose learning rates, and more while a best rate lies" in trainings(replace(given, widen=1))


def test_a_refused_arm_leaves_no_folder_and_a_report_says_what_is_not_measured(tmp_path):
    rates = OptimiserSettings(lr=[0.1])
    settings = Settings(optimisers={"sgd": rates, "torch.optim:Muon": rates},
                        seeds=2, epochs=1, batch=16, twin_seeds=0, examples=8)
    with pytest.raises(UserError, match="Muon cannot step the parameter bias"):
        lab.compare(task(), tmp_path / "out", settings=settings, executor=Inline())
    assert not (tmp_path / "out").exists()
    arms = Arm("SGD", SGD(lr=0.1), Grid((0.1,))), Arm("sign", SignSGD(lr=0.1), Grid((0.1,)))
    result = lab.compare(task(), tmp_path / "out", settings=settings, arms=arms, executor=Inline())
    page = (result.report.parent / "report.md").read_text()
    assert result.failures == ()
    assert "noise and attacks are not measured: the inputs have no bounds (bounds=None)" in page
    assert "1 epoch of 2 steps on 16 examples each make 2 steps" in page
    assert "2 steps in all, fewer than 200, may be too few for any optimiser: give 100 epochs or more.\n" in page


class Flat(nn.Module):
    """The other's outputs `(n, 1)` as `(n,)`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        return self.body(x).squeeze(-1)


def test_outputs_without_an_axis_are_measured_like_those_with_one():
    y = X.sum(1)
    flat = task(Flat, y=y, kind="regression", loss=functional.mse_loss)
    column = task(lambda: Flat().body, y=y[:, None], kind="regression", loss=functional.mse_loss)
    check_task(flat)
    probes = [*Predictors().probes(flat, 8), *Predictors().describing(flat, 8), EdgeOfStability()]
    readings = [{type(p).__name__: dict(p(Snapshot(fresh_model(each, 0), each, rule=SGD(lr=0.1))).values)
                 for p in probes} for each in (flat, column)]
    lower = "Lipschitz lower bound"  # its upper ones need a chain of layers, which one of the models is
    for name, found in readings[0].items():
        kept = [lower] if name == "Lipschitz" else list(found)
        other = [readings[1][name][key] for key in kept]
        assert [found[key] for key in kept] == pytest.approx(other, rel=1e-4), name
    with torch.no_grad():
        loss = (fresh_model(flat, 0)(X) - y).square().mean()
    assert readings[0]["Accuracy"]["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_the_lower_bound_of_a_linear_model_without_an_axis_is_the_norm_of_its_weights():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0, 4.0]))

        def forward(self, x):
            return x @ self.w

    given = task(Line, x=X[:, :2], y=X[:, 0], kind="regression", loss=functional.mse_loss)
    found = Lipschitz(examples=4)(Snapshot(fresh_model(given, 0), given)).values["Lipschitz lower bound"]
    assert 10**found == pytest.approx(5)  # the 3-4-5 triangle


def test_what_is_not_measured_is_named():
    said = Predictors().left_out
    assert "need kind=\"classification\"" in said(task(y=X, kind="regression", loss=functional.mse_loss))[0]
    assert "images of 8 x 8 or more; the inputs have shape (6,)" in said(task(bounds=(0.0, 1.0)))[0]
    images = task(x=torch.rand(40, 1, 8, 8), bounds=(0.0, 1.0))
    assert said(images) == []
    assert len(comparison_of(images, Settings()).probes) == len(Predictors().probes(images, 1000))
