"""The committed reports, judged anew from their summary.csv: no verdict has changed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from optscope.evidence.columns import read_csv, write_csv
from optscope.evidence.records import Records
from optscope.protocol.comparison import Calls, Comparison

RESULTS = Path(__file__).parents[1] / "results"
STUDIES = sorted(path.name for path in RESULTS.iterdir())


def study_of(name):
    return import_module(f"optscope.studies.{name}").STUDY


@pytest.fixture(scope="module", params=STUDIES)
def report(request):
    """A study, its committed verdicts by claim, and its records."""
    study, folder = study_of(request.param), RESULTS / request.param
    judged = {each["claim"]: each for each in json.loads((folder / "verdicts.json").read_text())}
    return study, judged, read_csv(folder / "summary.csv")


def test_no_verdict_has_changed(report):
    study, judged, records = report
    scales = {each["scale"] for each in judged.values()}
    assert len(scales) == 1
    now = {claim.id: verdict for claim, verdict in study.judge(records, scales.pop())}
    new = {name: now.pop(name) for name in now.keys() - judged.keys()}  # claims that came after the report
    assert {verdict.outcome for verdict in new.values()} <= {"undecided"}
    assert {name: verdict.outcome for name, verdict in now.items()} == {name: each["outcome"]
                                                                        for name, each in judged.items()}
    for name, verdict in now.items():
        if judged[name]["effect"] is not None:
            assert verdict.effect == pytest.approx(judged[name]["effect"], rel=1e-9, abs=1e-12), name
        assert verdict.n == judged[name]["n"], name


def test_rows_have_the_factors_that_experiments_name_now(report):
    study, _, records = report
    experiments = [e for scale in study.costs if scale in ("desk", "long") for e in study.experiments(scale)]
    now = {(e.name, arm.name): dict(arm.factors)
           for e in experiments if isinstance(e, Comparison) for arm in e.arms}
    there = {(row.experiment, row.arm): dict(row.factors) for row in records}
    if study.name != "restrained_instability":  # all of it is calls
        assert now.keys() & there.keys()
    for place in now.keys() & there.keys():
        assert there[place] == now[place]
    run = {row.experiment for row in records}
    given = [(e.name, call.factors) for e in experiments if isinstance(e, Calls) and e.name in run
             for call in e.calls]
    for name, factors in given:
        assert not factors or records.where(experiment=name, **factors)


def test_a_report_is_written_as_it_is_read(report, tmp_path):
    _, _, records = report
    write_csv(records, tmp_path / "summary.csv")
    again = read_csv(tmp_path / "summary.csv")
    assert len(again) == len(records)
    other = [(a, b) for a, b in zip(again, records, strict=True)
             if a.factors != b.factors or repr(replace(a, factors={})) != repr(replace(b, factors={}))]
    assert other[:3] == []


def test_one_experiment_can_be_judged_without_the_others(report):
    study, _, records = report
    names = list(dict.fromkeys(row.experiment for row in records))
    for experiment in names[::max(1, len(names) // 6)]:
        alone = Records(records.where(experiment=experiment))
        assert len(study.judge(alone, "smoke")) == len(study.claims)
