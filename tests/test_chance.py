"""What an answer scores that never looks at the input, and whether it is beaten, against counts made by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.probes.chance import Chance
from optscope.probes.probe import Snapshot
from optscope.tasks.task import Task


class Fixed(nn.Module):
    """Answers with what its input says in its columns."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def taken(train, test, **settings):
    task = Task.from_tensors(Fixed, train, test, validation=train, bounds=None, **settings)
    return Chance()(Snapshot(Fixed(), task)).values


def sign_test(wins, losses):
    """Return the share of all ways to split the examples that are at least as good, by enumeration."""
    n = wins + losses
    return sum(sum(ways) >= wins for ways in product((0, 1), repeat=n)) / 2**n


@pytest.mark.parametrize(("wins", "losses"), [(7, 0), (6, 0), (11, 2), (10, 2), (0, 0), (3, 6)])
def test_a_classifier_is_held_against_the_commonest_class_of_the_training_part(wins, losses):
    """Both right on 3 examples, both wrong on 2, one of them on the others."""
    named = [1] * (3 + wins) + [0] * losses + [0, 0]
    y = torch.tensor([1] * 3 + [0] * wins + [1] * losses + [2, 2])  # 1 is the commonest in the training part
    named[3:3 + wins] = [0] * wins
    x = 1000 * functional.one_hot(torch.tensor(named), 3).float()  # so sure that its log loss is the worse one
    labels = torch.tensor([1] * 7 + [0] * 2 + [2])
    values = taken((torch.zeros(10, 3), labels), (x, y))
    assert values["accuracy of the commonest class"] == pytest.approx(100 * (3 + losses) / len(y))
    assert values["better than chance"] == (2 * sign_test(wins, losses) <= 0.025)
    assert "loss of the mean" not in values


@pytest.mark.parametrize(("knows", "better"), [(2.0, 1), (0.0, 0)])
def test_a_model_that_always_names_the_common_class_may_still_know_the_rare_one(knows, better):
    """One example in 10 is of class 1; logits that tell which, and never enough to be named."""
    y = (torch.arange(200) % 10 == 0).long()
    noise = 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    x = torch.stack([torch.full((200,), 4.0), 1.5 + knows * (y - 0.5) + noise], dim=1)
    values = taken((torch.zeros(200, 2), y), (x, y))
    assert values == {"accuracy of the commonest class": 90.0, "better than chance": better}
    assert float((x.argmax(1) == y).double().mean()) == 0.9


def test_a_regression_is_held_against_the_mean_of_the_training_targets():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(50, 2, generator=generator)
    train = (torch.zeros(4, 2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 5.0]]))
    mean = torch.tensor([1.5, 2.0])
    good = taken(train, (y + 0.1, y), kind="regression", loss=functional.mse_loss)
    assert good["loss of the mean"] == pytest.approx(float(((y - mean) ** 2).mean()), rel=1e-6)
    assert good["better than chance"] == 1
    noise = mean + 1.5 * torch.randn(50, 2, generator=generator)
    assert taken(train, (noise, y), kind="regression", loss=functional.mse_loss)["better than chance"] == 0
    same = taken(train, (mean.expand(50, 2), y), kind="regression", loss=functional.mse_loss)
    assert same["better than chance"] == 0
    absolute = taken(train, (y, y), kind="regression", loss=functional.l1_loss)
    assert absolute["loss of the mean"] == pytest.approx(float((y - mean).abs().mean()), rel=1e-6)


def test_what_has_no_mean_of_the_outputs_shape_is_refused():
    y = torch.arange(6.0)
    with pytest.raises(UserError, match=r"needs targets that are numbers of the outputs' shape"):
        taken((torch.zeros(6, 2), y), (torch.zeros(6, 2), y), kind="regression",
              loss=lambda out, target: (out[:, 0] - target).square().mean())


def test_a_model_that_draws_lots_passes_in_no_more_than_the_level():
    generator = torch.Generator().manual_seed(1)
    passed = []
    for _ in range(200):
        y = torch.randint(0, 2, (40,), generator=generator)
        x = functional.one_hot(torch.randint(0, 2, (40,), generator=generator), 2).float()
        passed.append(taken((x, torch.zeros(40, dtype=torch.long)), (x, y))["better than chance"])
    share = sum(passed) / len(passed)
    assert share <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 200)
