"""The Fréchet inception distance as papers quote it, computed by torch-fidelity where the user has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.probes.coverage import generated
from optscope.probes.needs import Need
from optscope.probes.probe import Probe, Reading, Subject


class Pictures(Dataset[Tensor]):
    """Images `(n, 3, height, width)` of bytes, one at a time and without labels, as torch-fidelity wants them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def pictures(images: Tensor, bounds: tuple[float, float] | None) -> Pictures:
    """Return images `(n, 1 or 3, height, width)` within `bounds` as bytes in colour, rounded to the nearest.

    >>> pictures(torch.tensor([0.0, 0.5, 2.0]).view(1, 1, 1, 3), (0.0, 1.0))[0][2]
    tensor([[  0, 128, 255]], dtype=torch.uint8)

    Raises:
        UserError: when they have no bounds, or are not images.
    """
    if bounds is None or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise UserError("FID compares images (n, 1 or 3, height, width) of a game with bounds; got "
                        f"{tuple(images.shape)} with bounds {bounds}")
    low, high = bounds
    scaled = (images - low) * (255 / (high - low))
    return Pictures((scaled + 0.5).clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1))


@dataclass(frozen=True, repr=False)
class FID(Probe):
    """Measure the Fréchet distance of `samples` generated images from a split's, in the features of Inception.

    It needs `pip install torch-fidelity` (with torchvision), which downloads the network's weights the first time.
    The distance is biased upward by few samples, so only values of the same numbers of images compare; papers
    mostly take 50,000 and the training part. What is handed to torch-fidelity is tested, against a stand-in; the
    network itself was never run by the authors of optscope.

    Heusel et al. 2017, arXiv 1706.08500; torch-fidelity (Obukhov et al. 2020).

    Raises:
        UserError: when torch-fidelity is missing, or what is generated are no images with bounds.
    """

    needs: ClassVar[tuple[Need, ...]] = ("generator", "float input")
    samples: int = 50_000

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"FID compares distributions: samples must be at least 2; got {self.samples!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The distance."""
        return (Metric("FID", "", "lower", "Fréchet distance in the features of Inception, by torch-fidelity"),)

    def measure(self, subject: Subject) -> Reading:
        """Hand both sets of images to torch-fidelity."""
        real = pictures(subject.leaf.cpu(), subject.bounds)
        try:
            from torch_fidelity import calculate_metrics
        except ImportError as error:
            raise UserError("FID is computed by torch-fidelity, which is not installed: pip install "
                            "torch-fidelity") from error
        fake = pictures(generated(subject, self.samples).cpu(), subject.bounds)
        # Without save_cpu_ram it would start processes that read the images, though they are in memory.
        found = calculate_metrics(input1=fake, input2=real, fid=True, cuda=False, save_cpu_ram=True, verbose=False)
        return Reading({"FID": float(found["frechet_inception_distance"])})
