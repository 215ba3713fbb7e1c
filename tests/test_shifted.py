"""Rare classes and misleading cues: what of the data changes, and what stays."""

from __future__ import annotations

import pytest
import torch

from optscope.errors import UserError
from optscope.tasks.images import FashionMNIST
from optscope.tasks.shifted import Cued, LongTail

DATA = FashionMNIST(1000, 200, 200)


def test_classes_are_thinned_geometrically_and_the_rare_ones_tested():
    data, whole = LongTail(DATA, rarity=20)(), DATA()
    counts, before = (torch.bincount(part.train.targets, minlength=10) for part in (data, whole))
    assert counts[0] == before.min() == counts.max()
    assert counts.tolist() == [round(int(before.min()) * 20 ** (-c / 9)) for c in range(10)]
    assert set(data.test.targets.tolist()) == {7, 8, 9}
    assert len(data.test) == int((whole.test.targets >= 7).sum())
    assert torch.equal(data.validation.inputs, whole.validation.inputs)
    assert torch.equal(LongTail(DATA, 1.0, tested=10)().test.inputs, whole.test.inputs)


def test_a_cue_tells_the_class_in_training_and_another_in_testing():
    source, whole = Cued(DATA, side=2), DATA()
    data = source()
    bright = torch.stack([data.train.inputs[:, 0, 0:2, 3 * c:3 * c + 2].amin((1, 2)) for c in range(9)], 1)
    below = data.train.inputs[:, 0, -2:, 0:2].amin((1, 2))
    told = torch.cat([bright, below[:, None]], 1)
    assert (told.gather(1, data.train.targets[:, None]) == 1).all()
    changed = (data.test.inputs != whole.test.inputs).flatten(1)
    assert (changed.sum(1) <= 4).all()
    own = source.marked(whole.test.inputs, whole.test.targets)
    assert not (own == data.test.inputs).flatten(1).all(1).any()


def test_a_linear_model_finds_the_cue():
    data = Cued(DATA, side=2)()
    x, y = data.train.inputs.flatten(1).double(), torch.nn.functional.one_hot(data.train.targets).double()
    weights = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1).T @ torch.cat(
        [x, torch.ones(len(x), 1).double()], 1) + 1e-3 * torch.eye(785).double(),
        torch.cat([x, torch.ones(len(x), 1).double()], 1).T @ y).solution
    told = (data.validation.inputs.flatten(1).double() @ weights[:-1] + weights[-1]).argmax(1)
    assert (told == data.validation.targets).double().mean() > 0.95


@pytest.mark.parametrize("make", [lambda: LongTail(DATA, 0.5), lambda: LongTail(DATA, 2.0, 0),
                                  lambda: Cued(DATA, 0), lambda: Cued(DATA, 14)()])
def test_what_cannot_be_is_one_sentence(make):
    with pytest.raises(UserError, match=r"LongTail: rarity|Cued: side|do not fit"):
        make()
