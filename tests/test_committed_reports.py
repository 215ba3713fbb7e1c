"""The committed reports, judged anew from their summary.csv: no verdict has changed but those that are named."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from optscope.evidence.columns import write_csv
from optscope.evidence.records import Records
from optscope.protocol.comparison import Calls, Comparison

RESULTS = Path(__file__).parents[1] / "results"
STUDIES = sorted(path.name for path in RESULTS.iterdir())
CHANGED = {"marginal_momentum": {"C4 rotten-tomatoes full"}}
"""Claims that stand on fewer than six pairs, which held by another test: docs/statistics.md says why."""
READ_ANEW = {"C4 few-shot", "C4 rotten-tomatoes 16", "C4 rotten-tomatoes 128", "C4 rotten-tomatoes full"}
"""Claims of fine-tuning whose numbers have changed: of equal dev accuracies the dev loss now says which is best."""


def study_of(name):
    return import_module(f"optscope.studies.{name}").STUDY


@pytest.fixture(scope="module", params=STUDIES)
def report(request):
    """A study, its committed verdicts by claim, and its records."""
    study, folder = study_of(request.param), RESULTS / request.param
    judged = {each["claim"]: each for each in json.loads((folder / "verdicts.json").read_text())}
    return study, judged, study.read(folder / "summary.csv")


def test_no_verdict_has_changed_but_those_that_are_named(report):
    study, judged, records = report
    scales = {each["scale"] for each in judged.values()}
    assert len(scales) == 1
    now = {claim.id: verdict for claim, verdict in study.judge(records, scales.pop())}
    new = {name: now.pop(name) for name in now.keys() - judged.keys()}  # claims that came after the report
    assert {verdict.outcome for verdict in new.values()} <= {"undecided"}
    assert now.keys() == judged.keys()
    changed = {name for name in now if now[name].outcome != judged[name]["outcome"]}
    assert changed == CHANGED.get(study.name, set())
    assert {now[name].outcome for name in changed} <= {"undecided"}
    for name, verdict in now.items():
        if judged[name]["effect"] is not None and name not in READ_ANEW:
            assert verdict.effect == pytest.approx(judged[name]["effect"], rel=1e-9, abs=1e-12), name
        assert verdict.n == judged[name]["n"], name


def test_names_of_old_become_the_factors_that_experiments_name_now(report):
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


def test_a_report_written_with_factors_is_read_as_it_is(report, tmp_path):
    study, _, records = report
    write_csv(records, tmp_path / "summary.csv")
    again = study.read(tmp_path / "summary.csv")
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
