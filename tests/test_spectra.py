"""Spectra: the singular values that probes keep, against numpy's, and the pictures made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy
import torch
from torch import nn

from optscope.analyses.spectra import MOST, _series, kept, spectra
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.run import watch_id
from optscope.engine.store import Store
from optscope.engine.train import train
from optscope.engine.watch import Watch
from optscope.evidence.records import Records
from optscope.lab import compare
from optscope.optim import SGD, ByKind, Muon, SignSGD
from optscope.probes.accuracy import Accuracy
from optscope.probes.anatomy import StepAnatomy
from optscope.probes.geometry import Geometry
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import OptimiserSettings, Settings
from optscope.report.figures import draw
from optscope.report.section import Section
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from tiny import TASK

DEMO = Comparison("demo", TASK, (Arm("SGD", SGD(lr=0.1)), Arm("sign", SignSGD(lr=0.01))), Plan(2, 32),
                  (Accuracy(),), (1, 2), described=(Geometry(),), watched=(StepAnatomy(),), moments=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The records and the folder of the comparison."""
    store = Store(tmp_path_factory.mktemp("spectra"))
    return run_experiments([DEMO], store, Inline(), Quiet()).records, store


def by_numpy(tensor):
    return np.linalg.svd(tensor.detach().double().flatten(1).numpy(), compute_uv=False)


def test_singular_values_of_matrices_and_kernels_are_kept_in_full_and_descending():
    torch.manual_seed(0)
    x, y = torch.rand(8, 2), torch.arange(8) % 2
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5), nn.Linear(7, 4))
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y))
    arrays = Geometry()(Snapshot(model, task)).arrays
    assert {name for name in arrays if "singular" in name} == {f"singular values of {i}.weight" for i in (0, 2)}
    for i in (0, 2):
        np.testing.assert_allclose(arrays[f"singular values of {i}.weight"], by_numpy(model[i].weight), rtol=1e-9)


@pytest.mark.parametrize("rule", [SGD(lr=0.1), ByKind(matrices=Muon(lr=0.02), rest=SGD(lr=0.1))], ids=repr)
def test_those_of_a_step_are_of_what_the_optimiser_then_does(rule):
    """Of the batch of all examples, that the probe looks at, so that the next step is the one measured."""
    found, before = {}, {}

    def watch(snapshot):
        found.update(StepAnatomy(examples=96)(snapshot).arrays)
        before.update({name: p.detach().clone() for name, p in snapshot.model.named_parameters()})
    trained = train(TASK, rule, Plan(steps=1, batch=96), 1, at=(0,), watch=watch).snapshot.model
    for name in ("0.weight", "2.weight"):
        moved = trained.get_parameter(name).detach() - before[name]
        np.testing.assert_allclose(found[f"singular values of {name}"], by_numpy(moved), rtol=2e-3, atol=1e-6)


def test_a_comparison_draws_the_mean_spectra_of_its_final_weights_and_last_steps(done):
    records, store = done
    weights, steps = spectra(DEMO, records, store).figures
    assert (weights.name, steps.name) == ("weight-spectra", "step-spectra")
    assert [panel.title for panel in weights.panels] == [panel.title for panel in steps.panels] == [
        "0.weight", "2.weight"]
    final = records.where(phase="final")
    for arm in ("SGD", "sign"):
        runs = list(dict.fromkeys(row.run for row in final.where(arm=arm)))
        for panel in weights.panels:
            series = next(s for s in panel.series if s.label == arm)
            each = np.array([by_numpy(store.run_folder(run).weights()[panel.title]) for run in runs])
            expected = np.sqrt(each[0] * each[1])
            half = scipy.stats.t.ppf(0.975, 1) * np.abs(np.log(each[0] / each[1])) / 2
            np.testing.assert_allclose(series.y, expected, rtol=1e-6)
            np.testing.assert_allclose(series.high, expected * np.exp(half), rtol=1e-6)
            np.testing.assert_allclose(series.low, expected * np.exp(-half), rtol=1e-6)
            assert list(series.x) == list(range(1, len(expected) + 1))
        rank = np.mean([row.value for row in final.where(arm=arm, metric="effective rank")])
        assert f"{arm} {rank:.2g} %" in weights.title
        last = np.mean([row.value for row in final.where(arm=arm, metric="step effective rank", step=6)])
        assert f"{arm} {last:.2g} %" in steps.title
    assert "singular value" in draw(weights)


def test_of_several_moments_the_last_counts(done):
    records, store = done
    reading = watch_id(Watch(StepAnatomy(), 2))
    found = kept(DEMO, records, store, "SGD", reading)
    runs = list(dict.fromkeys(row.run for row in records.where(phase="final", arm="SGD")))
    assert found.keys() == {"0.weight", "2.weight"}
    for run, values in zip(runs, found["0.weight"], strict=True):
        arrays = store.run_folder(run).reading_arrays(reading)
        assert np.array_equal(values, arrays["singular values of 0.weight at 6"])
        assert not np.array_equal(values, arrays["singular values of 0.weight at 3"])


def test_a_seed_whose_matrix_is_zero_has_no_spectrum():
    one, zero = np.array([2.0, 1e-9]), np.zeros(2)
    assert (_series("a", [one, zero]).x, _series("a", [one, zero]).y) == ([1], pytest.approx([2.0]))
    assert _series("a", [zero]).y == []


def test_what_was_not_measured_or_did_not_end_is_not_drawn(done):
    records, store = done
    assert spectra(replace(DEMO, described=(), watched=()), records, store) == Section(figures=[])
    assert spectra(DEMO, Records(), store) == Section(figures=[])
    lost = Records(replace(row, status="diverged") if row.arm == "sign" else row for row in records)
    for figure in spectra(DEMO, lost, store).figures:
        assert [series.label for panel in figure.panels for series in panel.series] == ["SGD", "SGD"]


@dataclass(frozen=True)
class Deep:
    """Eight layers, of which the first has two equal inputs' worth of rank one."""

    def __call__(self) -> nn.Module:
        model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(8)), nn.Linear(2, 3))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        return model


def test_of_deep_models_six_matrices_are_drawn_and_of_each_what_is_above_rounding(tmp_path):
    given = replace(DEMO, task=replace(TASK, model=Deep()), arms=(Arm("still", SGD(lr=1e-12)),), watched=())
    store = Store(tmp_path)
    figure, = spectra(given, run_experiments([given], store, Inline(), Quiet()).records, store).figures
    assert [panel.title for panel in figure.panels] == [f"{i}.weight" for i in (0, 2, 3, 5, 6, 8)]
    assert len(figure.panels) == MOST
    assert "Of 9 matrices 6, evenly from the first to the last." in figure.caption
    first, last = figure.panels[0].series[0], figure.panels[-1].series[0]
    assert first.y == pytest.approx([2.0], rel=1e-6)
    assert len(last.y) == 2


def test_a_report_has_the_spectra_of_weights(tmp_path):
    chosen = {"sgd": OptimiserSettings(lr=[0.1]), "adam": OptimiserSettings(lr=[0.01])}
    result = compare(TASK, tmp_path / "out", executor=Inline(),
                     settings=Settings(optimisers=chosen, seeds=2, epochs=8, batch=16, examples=20))
    page = result.report.read_text()
    assert "Singular values of the trained weights: effective rank SGD" in page
    assert "Singular values of the next step at the end: step effective rank SGD" in page
    assert not result.failures
