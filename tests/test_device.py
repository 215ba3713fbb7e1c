"""Rules on an accelerator that a machine without one can pretend: the CPU's numbers, and no wait inside a step.

A pretended device changes torch for the whole process, so that the table is made in one of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_rules import ROWS, rules


@pytest.fixture(scope="module")
def table():
    """What `on_device.py` found: for every rule the largest difference from the CPU, and the waits in a step."""
    script = Path(__file__).with_name("on_device.py")
    done = subprocess.run([sys.executable, "-W", "error", script], text=True, capture_output=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_pretended_device_refuses_to_mix_and_counts_as_a_gpu_does(table):
    assert table["mixed"] == "RuntimeError"
    assert table["reads before, after float()"] == [0, 1]
    assert table["moved"] > 1e-3
    assert len(table["rules"]) == len(ROWS)


@rules
def test_a_rule_steps_on_a_device_as_on_the_cpu_and_waits_for_nothing(rule, table):
    difference, waits = table["rules"][repr(rule)]
    assert difference < 1e-12
    if not any(type(each).__name__ == "Foreign" for each in rule.walk()):  # others wait as they please
        assert waits == 0
