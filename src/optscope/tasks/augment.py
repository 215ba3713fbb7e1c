"""Random changes of training images that leave their class as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optscope.errors import UserError


@dataclass(frozen=True)
class FlipCrop:
    """Mirror each image left to right with probability 1/2, and shift it by up to `pad` pixels each way.

    A shift is a random crop, of the image's own size, from the image with `pad` zeros around it; `pad=0` only
    mirrors. Images are `(n, channels, height, width)`; every image draws its own mirroring and shift.

    >>> images = torch.rand(128, 3, 32, 32)
    >>> FlipCrop(pad=2)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([128, 3, 32, 32])

    Reference: Ma, Pan, Farahmand, arXiv 2308.06703, and the authors' code (pad 2).

    Raises:
        UserError: when `pad` is not a whole number of at least 0.
    """

    pad: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.pad, int) or self.pad < 0:
            raise UserError(f"FlipCrop: pad must be a whole number of pixels, 0 or more; got {self.pad!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return new images, drawing from `generator`; the inputs stay as they are."""
        n, _, height, width = inputs.shape
        padded = nn.functional.pad(inputs, (self.pad,) * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (n, C, shifts, shifts, H, W)
        down, across = torch.randint(2 * self.pad + 1, (2, n), generator=generator, device="cpu")
        images = crops[torch.arange(n, device="cpu"), :, down, across]
        mirrored = torch.rand(n, generator=generator, device="cpu") < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        return images
