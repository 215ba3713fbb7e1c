"""Files that were changed in any way are read, refused in a sentence, or made anew; none runs code."""

from __future__ import annotations

from scripts.fuzz import KINDS, fuzzed


def test_changed_files_of_every_kind_lead_to_a_sentence_at_most(tmp_path):
    found = fuzzed(1200, 1, tmp_path)
    assert found["crashes"] == []
    assert found["inputs"] > 1000
    assert found["kinds"].keys() == KINDS.keys()
