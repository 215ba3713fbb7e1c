"""The rules of the GAN study, and the learning rates that each is tuned over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optscope.optim import SGD, Adam, Graft, NormalizedSGD, Players, Rule, SignSGD
from optscope.protocol.comparison import Arm
from optscope.protocol.grafts import graft_name
from optscope.protocol.search import PlayerGrid
from optscope.studies.gan_grafting.claims import (
    ADA,
    ADA_GLOBAL,
    ADAM,
    DIR,
    DIR_GLOBAL,
    GRAFTED,
    HALVES,
    MODEL,
    MODULE,
    ROOT,
    SGDA,
    SIGN,
    UNIT,
)


def _rules(adam: Rule) -> dict[str, Rule]:
    """Return every rule of the study, with Adam's moments as they are given.

    The sign rule's length on SGD's direction is normalised descent by √n, run as such.
    """
    return {
        SGDA: SGD(lr=1.0), ADAM: adam, SIGN: SignSGD(lr=1e-3),
        ADA: Graft(adam, SGD(lr=1.0)), ADA_GLOBAL: Graft(adam, SGD(lr=1.0), per="model"),
        DIR: Graft(SGD(lr=1.0), adam), DIR_GLOBAL: Graft(SGD(lr=1.0), adam, per="model"),
        UNIT: NormalizedSGD(lr=0.1), MODEL: NormalizedSGD(lr=0.1, per="model"),
        ROOT: NormalizedSGD(lr=1e-3, rms=True), MODULE: NormalizedSGD(lr=1e-3, per="module", rms=True),
        graft_name(SGDA, SIGN): Graft(SGD(lr=1.0), SignSGD(lr=1.0)),
        graft_name(ADAM, SIGN): Graft(adam, SignSGD(lr=1.0)),
        graft_name(SIGN, ADAM): Graft(SignSGD(lr=1e-3), adam),
    }


RULES = _rules(Adam(lr=1e-3, beta1=0.5, beta2=0.9))
IMAGE_RULES = _rules(Adam(lr=1e-3, beta1=0.5))
"""With the moments that DCGANs are trained with; without normalisation Adam collapsed with both in pilots."""

# Learning rates by what sets the length of a step: (η_D), (η_G); twelve pairs on mixtures, nine on large images.
MIXED = {"SGD": ((0.01, 0.03, 0.1), (0.01, 0.03, 0.1, 0.3)), "Adam": ((3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2, 3e-2)),
         "unit": ((0.01, 0.03, 0.1), (0.01, 0.03, 0.1, 0.3)), "model": ((0.03, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)),
         "graft": ((1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2))}
IMAGED = {"SGD": ((0.03, 0.1, 0.3), (0.1, 0.3, 1.0)), "Adam": ((3e-4, 1e-3, 3e-3), (3e-4, 1e-3, 3e-3)),
          DIR: ((0.03, 0.1, 0.3), (0.03, 0.1, 0.3)), "model": ((0.03, 0.1, 0.3), (0.1, 0.3, 1.0)),
          "graft": ((3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2))}
NEAR = {"SGD": ((0.1, 0.3), (0.3, 1.0)), "Adam": ((3e-3, 1e-2), (3e-3, 1e-2)), DIR: ((0.03, 0.1), (0.03, 0.1)),
        "model": ((0.1, 0.3), (0.3, 1.0)), "graft": ((3e-3, 1e-2), (1e-2, 3e-2))}
"""Four pairs on digits, one of them the best of nine in the first report; all are ends, so the search goes on."""
LENGTHS = {SGDA: "SGD", DIR: "SGD", DIR_GLOBAL: "SGD", graft_name(SGDA, SIGN): "SGD", ADAM: "Adam", UNIT: "unit",
           MODEL: "model"}
"""What sets an arm's step length; "graft" where nothing is said: a root mean square about Adam's rate."""
IMAGE_ARMS = (SGDA, ADAM, ADA, DIR, ROOT, MODEL)
FASHION_ARMS = tuple(dict.fromkeys((*IMAGE_ARMS, *(graft_name(m, d) for m in GRAFTED for d in GRAFTED))))
"""All of the graft matrix, and what images are compared on besides."""
LATTICE_ARMS = (SGDA, ADAM, ADA, DIR, ROOT, MODEL)


def arms(names: Sequence[str], rates: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]],
         tuned: bool = True, rules: Mapping[str, Rule] = RULES) -> tuple[Arm, ...]:
    """Return arms in which both players follow one rule, with rates to try, or with the largest of those tried."""
    found = []
    for name in names:
        d, g = rates.get(name) or rates[LENGTHS.get(name, "graft")]
        rule = Players(discriminator=rules[name].with_(lr=d[-1]), generator=rules[name].with_(lr=g[-1]))
        found.append(Arm(name, rule, PlayerGrid(discriminator=d, generator=g) if tuned else None,
                         factors=HALVES.get(name, {})))
    return tuple(found)
