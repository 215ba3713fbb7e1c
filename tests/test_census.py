"""The page of optimisers is what its rows say; a handful of them is taken again."""

from __future__ import annotations

import json

import pytest
from scripts.census import END, PAGE, ROWS, START, table, taken

FOUND = json.loads(ROWS.read_text(encoding="utf-8"))
KNOWN = {row["path"]: row for row in FOUND["rows"]}


def test_the_page_is_made_of_its_rows_and_none_crashes():
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(START)[2].partition(END)[0].strip() == table(FOUND["rows"], FOUND["versions"])
    assert not [row["path"] for row in FOUND["rows"] if "crashed" in row]


@pytest.mark.parametrize("path", ["torch.optim:Muon", "torch.optim:LBFGS", "torch.optim:SparseAdam"])
def test_a_row_is_what_an_optimiser_does(path):
    def tame(row):
        """Leave out models on which it diverged: whether and when is a matter of last bits, so of processors."""
        kept = [model for model, said in KNOWN[path]["trained"].items() if "diverges" not in said]
        return row | {"trained": {model: row["trained"][model] for model in kept}}

    assert tame(taken(path)) == tame(KNOWN[path])
