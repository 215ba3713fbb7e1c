"""Several attacks in turn, each on what those before it could not fool: the standard for a final verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from optscope.errors import UserError
from optscope.probes.apgd import APGD, TargetedAPGD
from optscope.probes.attack import Attack, Batch, in_turn
from optscope.probes.black_box import RandomSearch

STANDARD: tuple[Attack, ...] = (APGD(steps=50), TargetedAPGD(steps=50), RandomSearch(queries=500))


@final
@dataclass(frozen=True, repr=False)
class Ensemble(Attack):
    """Attacks that fail for different reasons, the cheapest first; an image leaves when one of them fools it.

    The standard is APGD on cross-entropy, APGD towards each of nine rivals, and a search without gradients. It
    follows AutoAttack (arXiv 2003.01690, section 5) without FAB, which found nothing more wherever we looked, with
    half the steps of APGD, and with a tenth of the random queries.

    Raises:
        UserError: unless attacks is a tuple of attacks, at least one.
    """

    attacks: tuple[Attack, ...] = STANDARD

    def __post_init__(self) -> None:
        if not self.attacks or not all(isinstance(a, Attack) for a in self.attacks):
            raise UserError("Ensemble: attacks must be a tuple of attacks, such as (PGD(), APGD()); "
                            f"got {self.attacks!r}")

    def search(self, batch: Batch) -> Tensor:
        """Return what the first attack to fool an image found, else what the last one tried."""
        return in_turn(batch, [attack.search for attack in self.attacks])

    def longer(self, times: int) -> Ensemble:
        """Return the ensemble with `times` the steps of each attack."""
        return replace(self, attacks=tuple(attack.longer(times) for attack in self.attacks))
