"""Data whose training part is not what is tested on: classes that are rare there, and cues that mislead here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.tasks.task import Data, Split


@dataclass(frozen=True)
class LongTail:
    """Data whose *training* classes are ever rarer, and whose test part is the rare ones alone.

    Of class c of C as many examples stay as fit n_c = n_0 · rarity^(−c/(C − 1)), the first of them, n_0 being the
    size of the smallest class; the last class is `rarity` times as rare as the first. Validation data are
    untouched. Of the test part the `tested` rarest classes are kept, so that accuracy is theirs.

    Cui et al. 2019, arXiv 1901.05555, section 5.1 (long-tailed CIFAR).

    Raises:
        UserError: unless rarity >= 1 and tested >= 1.
    """

    data: Callable[[], Data]
    rarity: float
    tested: int = 3

    def __post_init__(self) -> None:
        if not self.rarity >= 1 or self.tested < 1:
            raise UserError("LongTail: rarity must be a number >= 1 and tested a whole number >= 1; "
                            f"got {self.rarity!r} and {self.tested!r}")

    def __call__(self) -> Data:
        """Return the data, thinned once, then kept."""
        return _thinned(self)


@dataclass(frozen=True)
class Cued:
    """Images with a simple cue beside what they show: a bright square, whose place says the class.

    In training and validation images the place is that of the class, in test images that of another, drawn at
    random: accuracy there is the share of images of which the model believes what they show. The square is `side`
    pixels wide, and stands for class c at the c-th of places along the upper edge, then the lower one. Ours.

    Raises:
        UserError: unless side is a whole number >= 1.
    """

    data: Callable[[], Data]
    side: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise UserError(f"Cued: side must be a whole number >= 1; got {self.side!r}")

    def __call__(self) -> Data:
        """Return the data, marked once, then kept."""
        return _cued(self)

    def marked(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return images `(n, channels, height, width)` with the squares of these classes `(n,)`.

        Raises:
            UserError: when the squares do not fit.
        """
        images = images.clone()
        height, width = images.shape[-2:]
        along = width // (self.side + 1)
        if int(classes.max()) >= 2 * along or 2 * self.side > height:
            raise UserError(f"Cued: squares of {self.side} pixels for {int(classes.max()) + 1} classes do not fit "
                            f"into images of {height} x {width}: give a smaller side")
        for c in classes.unique().tolist():
            x, y = c % along * (self.side + 1), 0 if c < along else height - self.side
            images[classes == c, :, y:y + self.side, x:x + self.side] = 1.0
        return images


@lru_cache(maxsize=4)
def _thinned(source: LongTail) -> Data:
    data = source.data()
    train, test = data.train.first(None), data.test.first(None)
    members = [torch.nonzero(train.targets == c).reshape(-1) for c in range(int(train.targets.max()) + 1)]
    smallest, steps = min(map(len, members)), max(len(members) - 1, 1)
    kept = [own[:max(1, round(smallest * source.rarity ** (-c / steps)))] for c, own in enumerate(members)]
    few, rare = torch.cat(kept).sort().values, test.targets >= len(members) - source.tested
    return Data(Split(train.inputs[few], train.targets[few]), data.validation,
                Split(test.inputs[rare], test.targets[rare]))


@lru_cache(maxsize=4)
def _cued(source: Cued) -> Data:
    data = source.data()
    train, validation, test = (part.first(None) for part in (data.train, data.validation, data.test))
    count = int(train.targets.max()) + 1
    drawn = torch.Generator().manual_seed(0)
    others = (test.targets + torch.randint(1, count, test.targets.shape, generator=drawn, device="cpu")) % count
    told = (train, train.targets), (validation, validation.targets), (test, others)
    return Data(*(Split(source.marked(part.inputs, classes), part.targets) for part, classes in told))
