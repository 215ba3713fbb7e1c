"""The two halves of the seeds: a claim is judged on each as well, which shows how much hangs on the seeds."""

from __future__ import annotations

from dataclasses import replace

from optscope.errors import UserError
from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.records import Records

FEWEST = 4
"""Of fewer seeds no halves are taken."""


def halves(records: Records) -> tuple[Records, Records]:
    """Return the records of every second seed of each experiment, and of the others; both have what is not by seed.

    >>> from optscope.evidence.records import Record
    >>> rows = Records(Record("demo", "a", seed, "loss", 0.1) for seed in (3, 5, 8, 9))
    >>> [part.seeds("a") for part in halves(rows)]
    [[3, 8], [5, 9]]
    """
    side: dict[tuple[str, int], int] = {}
    for experiment in dict.fromkeys(row.experiment for row in records):
        seeds = sorted({row.seed for row in records.where(experiment=experiment, phase="final") if row.arm})
        if len(seeds) >= FEWEST:
            side |= {(experiment, seed): i % 2 for i, seed in enumerate(seeds)}
    first, second = (Records(row for row in records if row.phase != "final" or not row.arm
                             or side.get((row.experiment, row.seed), half) == half) for half in (0, 1))
    return first, second


def on_halves(claim: Claim, records: Records, parts: tuple[Records, Records], scale: Scale) -> Verdict:
    """Return a claim's verdict on records, and beside it those on the parts, where its n is shared by them."""
    verdict = claim.judge(records, scale)
    if verdict.n < FEWEST:
        return verdict
    try:
        found = tuple(claim.judge(part, scale) for part in parts)
    except UserError:  # a bootstrap of too few, say
        return verdict
    return replace(verdict, halves=found) if all(0 < half.n < verdict.n for half in found) else verdict
