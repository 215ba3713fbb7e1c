"""The page on unusual models says what a run says; a handful of its rows is run again."""

from __future__ import annotations

import pytest
from scripts.unusual import ENTRIES, PAGE, row

ROWS = PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_a_row_for_every_entry_and_none_crashes():
    names = [line.split(" | ")[0].removeprefix("| ") for line in ROWS if line.startswith("| ")]
    assert names[1:] == list(ENTRIES)
    assert not [line for line in ROWS if "**" in line]


@pytest.mark.parametrize("name", [
    "lock in the model", "model that returns a dict", "summed loss", "loss with parameters", "one-hot labels",
    "sparse embedding", "weights made by functional_call", "one example is nan", "examples of different sizes",
])
def test_a_row_is_what_a_run_says(name):
    assert row(name) in ROWS
