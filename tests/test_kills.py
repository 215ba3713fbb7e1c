"""Killed and cut off at sixty moments, a comparison loses nothing; and the disk that forgets does forget."""

from __future__ import annotations

import json
import os
import random
import sys

import pytest
from scripts.kills import FIGURES, killed, power_cuts, real_kills
from scripts.power_cut import Disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are followed by /proc")


def test_only_what_was_forced_to_disk_outlasts_a_cut(tmp_path):
    disk = Disk(tmp_path / "out")
    (tmp_path / "out" / "before").write_bytes(b"0")
    with disk.watched():
        for name in ("named", "forced", "neither"):
            file = os.open(tmp_path / "out" / name, os.O_WRONLY | os.O_CREAT)
            os.write(file, b"abc")
            if name == "forced":
                os.fsync(file)
            os.close(file)
            if name == "forced":
                folder = os.open(tmp_path / "out", os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
        (tmp_path / "out" / "forced").rename(tmp_path / "out" / "renamed")
        (tmp_path / "out" / "inner").mkdir()
        (tmp_path / "out" / "before").unlink()
    last = disk.moments[-1]
    assert last.before == "os.remove before"
    assert last.left("killed", random.Random(0)) == {
        "before": b"0", "named": b"abc", "renamed": b"abc", "neither": b"abc", "inner": None}
    assert last.left("dropped", random.Random(0)) == {"before": b"0", "named": b"", "forced": b"abc"}
    torn = [last.left("torn", random.Random(seed)) for seed in range(20)]
    assert {tree["renamed"] for tree in torn} == {tree["before"] + b"bc" for tree in torn} - {b"0bc"} | {b"abc"}
    assert len({tree["named"] for tree in torn}) > 2
    mixed = [last.left("mixed", random.Random(seed)) for seed in range(40)]
    assert all(tree["before"] == b"0" for tree in mixed)
    assert {"forced" in tree for tree in mixed} == {"renamed" in tree for tree in mixed} == {True, False}


def test_cut_off_at_many_moments_the_same_comparison_ends_with_the_same_numbers(tmp_path):
    found = power_cuts(57, 1, tmp_path)
    assert found.broken == []
    assert sum(number for what, number in found.counts.items() if what.startswith("cuts")) == 57
    assert found.counts["finished results and readings kept"] > 100


def test_killed_at_several_moments_the_command_ends_with_the_same_numbers_and_leaves_nobody(tmp_path):
    found = real_kills("a session of two workers", 3, 1, tmp_path)
    assert found.broken == []
    assert killed(found) >= 3


def test_the_page_says_what_was_counted():
    counted = json.loads(FIGURES.read_text(encoding="utf-8"))
    page = FIGURES.with_suffix(".md").read_text(encoding="utf-8")
    kills = inputs = 0
    for what, found in counted.items():
        assert not [*found.get("broken promises", []), *found.get("crashes", [])], what
        for kind, number in found.get("counts", {}).items():
            kills += number * kind.startswith(("cuts", "killed"))
        inputs += found.get("inputs", 0)
    assert f"{inputs:,} inputs" in page
    assert f"{kills} kills and cuts" in page
