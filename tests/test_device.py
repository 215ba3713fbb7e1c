"""Rules, probes and trainings on an accelerator that any machine can pretend: the CPU's numbers, and few waits.

A pretended device changes torch for the whole process, so that each table is made in one of its own. Where there is
a real accelerator, probes and trainings are compared on it too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import probes_on_device
import training_on_device
from optscope.tasks.fresh import seeded
from test_rules import ROWS, rules


def printed(script, *arguments):
    """What a script beside this one prints, read as JSON."""
    first = [Path(__file__).with_name("pretend.py")] if arguments in ((), ("pretend",)) else []
    done = subprocess.run([sys.executable, "-W", "error", *first, Path(__file__).with_name(script), *arguments],
                          text=True, capture_output=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def table():
    """For every rule the largest difference from the CPU, and the waits in a step."""
    return printed("on_device.py")


def test_the_pretended_device_refuses_to_mix_and_counts_as_a_gpu_does(table):
    assert table["mixed"] == "RuntimeError"
    assert table["reads before, after float()"] == [0, 1]
    assert table["moved"] > 1e-3
    assert len(table["rules"]) == len(ROWS)


@rules
def test_a_rule_steps_on_a_device_as_on_the_cpu_and_waits_for_nothing(rule, table):
    difference, waits = table["rules"][repr(rule)]
    assert difference < 1e-12
    kinds = [type(each).__name__ for each in rule.walk()]
    if "Foreign" not in kinds:  # others wait as they please
        assert waits <= 2 * 2 * kinds.count("Shampoo")  # of each side of a matrix: whether `eigh` has converged


WAITS = {"Accuracy": 7, "Checkpoint": 3 + 2, "Chance": 7, "Margin": 7, "GaussianNoise": 7, "BandNoise": 8,
         "SensitivityMap": 7, "FirstStep": 7, "GradientNoise": 10, "PolarDrift": 3, "HessianTrace": 8,
         "Coverage": 4, "Modes": 3, "Samples": 3, "Classes": 3, "FID": 4,
         "Geometry": 6 + 10,  # matrices: of each the singular values
         "DescentSplit": 9 + 4,  # parts by Hessians: whether the loss of each is a mean
         "TopEigenvalues": 8 + 10,  # products, here and below: Lanczos looks at each before the next
         "PreconditionedSharpness": 11 + 10, "EdgeOfStability": 14 + 20 + 12, "SpectralDensity": 6 + 5,
         "LayerSharpness": 6 + 29 * 7,  # layers, and products of each
         "RobustAccuracy": 9 + 38,  # attacks (six with the checks), each once in 16 steps, and radii
         "BatchSharpness": 6 + 3,  # batches
         "StepAnatomy": 8 + 3 * 10,  # matrices: of each polar factor and singular values
         "Rotation": 3 + 20,  # products
         "Lipschitz": 5 + 5 * 12}  # runs of layers: the norm of each, and those of its kernels twice
"""How often a probe may wait for the device, with what that grows with; any other as often as most may."""
MOST = 8


@pytest.fixture(scope="module")
def probed():
    """For every row of `probes_on_device` the largest relative difference from the CPU, and the waits."""
    return printed("probes_on_device.py", "pretend")


@pytest.mark.parametrize("row", probes_on_device.ROWS, ids=probes_on_device.name)
def test_a_probe_reads_on_a_device_what_it_reads_on_the_cpu_and_hardly_waits(row, probed):
    difference, waits = probed[probes_on_device.name(row)]
    assert difference <= (1e-5 if row[0] == "transformer" else 1e-6)  # torch has another kernel of attention there
    assert waits <= WAITS.get(type(row[2]).__name__, MOST)


class Numbers:
    """What torch knows of two devices' generators: a state each."""

    def __init__(self, used):
        self.used, self.states, self.asked = used, [torch.tensor([1]), torch.tensor([2])], 0

    def is_available(self):
        return True

    def is_initialized(self):
        return self.used

    def device_count(self):
        return 2

    def get_rng_state(self, device):
        self.asked += 1
        return self.states[device.index]

    def set_rng_state(self, state, device):
        self.states[device.index] = state


@pytest.mark.parametrize("used", [True, False])
def test_generators_of_devices_in_use_are_left_as_they_were(monkeypatch, used):
    numbers = Numbers(used)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: numbers)
    with seeded(3):
        numbers.states[1] = torch.tensor([9])
    assert numbers.states[1].item() == (2 if used else 9)
    assert numbers.asked == (2 if used else 0)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_probes_on_the_accelerator_that_is_there():
    found = printed("probes_on_device.py", torch.accelerator.current_accelerator().type)
    for name, (difference, _) in found.items():
        assert difference <= 0.05, name  # float32 sums in another order; searches stop a step sooner or later


@pytest.fixture(scope="module")
def trained():
    """For every row of `training_on_device` how far from the CPU, the waits of an epoch, how far when resumed."""
    return printed("training_on_device.py", "pretend")


@pytest.mark.parametrize("row", training_on_device.ROWS)
def test_a_training_on_a_device_has_the_cpus_numbers_and_waits_at_most_twice_an_epoch(row, trained):
    difference, waits, resumed = trained[row]
    assert difference <= 1e-6
    assert resumed == 0.0  # from a saved state, to the bit
    # Rprop looks at its signs, and `eigh` whether it has converged: two sides of two matrices, three steps
    assert waits <= 2 + 12 * ("Shampoo" in row) or "Rprop" in row


def test_a_run_on_a_device_leaves_what_it_leaves_on_the_cpu(trained):
    there, here = trained["run"], trained["run on the cpu"]
    assert (there.pop("numerics"), here.pop("numerics")) == ("pretend", "cpu")
    assert there == here
    assert there["status"] == "ok"
    assert there["broken"] == ["{}", "{}"]


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_trainings_on_the_accelerator_that_is_there():
    found = printed("training_on_device.py", torch.accelerator.current_accelerator().type)
    there, here = found.pop("run"), found.pop("run on the cpu")
    assert there["status"] == "ok"
    assert there["loss"] == pytest.approx(here["loss"], rel=0.05)
    for row, (difference, _, resumed) in found.items():
        # Dropout draws on the device, signs turn on a bit: only where there is neither the CPU's numbers are met.
        if row.startswith(("words", "weighted", "trained loss", "game")):
            assert difference <= 1e-3, row
        assert resumed == 0.0, row
