"""The answer of a study in a sentence, and what every family of its claims is about."""

from __future__ import annotations

from collections.abc import Sequence

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.words import listed
from optscope.protocol.study import Study
from optscope.report.section import Section

NAMED = 4
"""So many claims that fail are named."""


def answered(study: Study, verdicts: Sequence[tuple[Claim, Verdict]], scale: Scale) -> Section:
    """Return how many claims hold, fail and are undecided, the claims, and what their families are about."""
    outcomes = [verdict.outcome for _, verdict in verdicts]
    failing = [claim.id for claim, verdict in verdicts if verdict.outcome == "fails"]
    named = f" ({listed(failing)})" if 0 < len(failing) <= NAMED else ""
    summary = (f"Of {len(verdicts)} claims {outcomes.count('holds')} hold, {outcomes.count('fails')} fail{named} "
               f"and {outcomes.count('undecided')} are undecided at {scale} scale.")
    return Section([summary], verdicts, families=list(study.families.items()))
