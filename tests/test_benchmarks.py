"""Bars of benchmarks/: those that need no rival answer rightly, and the page says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import all_bars, table
from benchmarks.diagonal import conditions
from benchmarks.lipschitz import check_pair

ROOT = Path(__file__).parents[1]
RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
TABLE, _, MISSED = (ROOT / "docs" / "benchmarks.md").read_text().partition("What is missed, and why:")


def test_the_page_has_every_bar_that_was_measured():
    named = set(re.findall(r"^\| (B\d+) \|", TABLE, re.MULTILINE))
    assert named == set(RESULTS) | {"B15"} == set(all_bars())  # which needs a GPU


@pytest.mark.parametrize("bar", RESULTS)
def test_what_is_missed_is_said(bar):
    result = RESULTS[bar]
    shown = table(result)
    for name, most in result.get("limit", {}).items():
        missed = result["ratio"][name] > most
        assert f"at most {most:g}: {'MISSED' if missed else 'met'}" in shown
        assert not missed or f"- {bar}: " in MISSED


def test_lipschitz_bounds_hold_where_the_constant_is_known():
    assert check_pair().count("<=") == 6


def test_the_conditions_of_a_limit_tell_it_from_another_solution():
    A, start, nu = np.random.default_rng(0).normal(size=(3, 8)), 0.1, np.array([0.5, -1.0, 0.3])
    parts = start * np.exp(np.stack([A.T @ nu, -A.T @ nu]))
    y = A @ (parts[0] - parts[1])
    assert conditions(A, y, start, parts) < 1e-14
    kernel = np.linalg.svd(A)[2][-1]
    assert conditions(A, y, start, parts + 0.01 * np.abs(kernel)) > 1e-3  # y is met as before
