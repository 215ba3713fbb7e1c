"""The diffs of docs/adding.md apply in order to a copy of the repository, in which what they add then works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from test_architecture import ROOT

DIFFS = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "docs" / "adding.md").read_text(encoding="utf-8"),
                   re.DOTALL | re.MULTILINE)
ADDED = ["tests/test_confidence.py", "tests/test_board.py", "tests/test_backwards.py"]
HELD = ["tests/test_architecture.py", "tests/test_public.py", "tests/test_rules.py"]


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository with all diffs applied."""
    copy = tmp_path_factory.mktemp("changed") / "optscope"
    copy.mkdir()
    for name in ("src", "tests", "docs", "scripts", "benchmarks", "findings"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bootstrap.py"):
        shutil.copyfile(ROOT / name, copy / name)
    (copy / "results").mkdir()
    for diff in DIFFS:
        done = subprocess.run(["git", "apply", "-"], cwd=copy, input=diff.encode(), capture_output=True,
                              env=os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)})
        assert done.returncode == 0, done.stderr.decode()
    return copy


def run(copy, *command):
    """Return what a command says in the copy."""
    done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(copy / "src")})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_there_is_a_diff_for_each_kind():
    assert len(DIFFS) == 5


def test_what_is_added_passes_its_tests_and_those_of_all(changed):
    said = run(changed, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *ADDED, *HELD, "-k",
               "(not test_rules or ignum) and not documents_run")
    assert re.search(r"\d\d passed", said), said
    listed = run(changed, "-c", "import optscope; from optscope import optim, studies; "
                 "print(optim.Signum(0.1), *studies.STUDIES, optscope.__file__)")
    assert "Signum" in listed
    assert "sureness" in listed
    assert str(changed) in listed


def test_the_study_runs(changed, tmp_path):
    said = run(changed, "-m", "optscope", "run", "sureness", "--scale", "smoke", "--out", str(tmp_path / "out"))
    assert "undecided  Sign steps make surer models" in said
    assert (tmp_path / "out" / "report.html").is_file()
