"""What was seen twice: numbers of a study beside the same ones by an independent way."""

from __future__ import annotations

import math

from optscope.analyses.outlook import outlooks
from optscope.evidence.claims import SCALES, Scale
from optscope.evidence.records import Records
from optscope.protocol.study import Study
from optscope.report.section import Check, Section, joined
from optscope.report.tables import Table, number


def beside_the_claims(study: Study, records: Records, scale: Scale) -> Section:
    """Return what a report says of a study's claims beside the verdicts: what is open, what was seen twice."""
    outlook = Section(tables=[outlooks(study, records)] if scale != SCALES[0] else [])
    return joined([outlook, seen_twice(study, records)])


def seen_twice(study: Study, records: Records) -> Section:
    """Return a row and a check for every number that the study finds in two ways and that was measured."""
    rows, checks = [], []
    for each in study.twice:
        difference = each.difference(records)
        if math.isnan(difference):
            continue
        first, second = each.numbers(records)
        unit = " of it" if each.relative else ""
        kept = difference <= each.allowed
        rows.append((each.text, f"{each.first}\n{number(first)}", f"{each.second}\n{number(second)}",
                     number(difference, 2) + unit, number(each.allowed, 2) + unit, "yes" if kept else "no"))
        checks.append(Check(f"seen twice: {each.text}", kept, f"{number(first)} by {each.first}, {number(second)} "
                            f"by {each.second}; {number(each.allowed, 2)}{unit} is allowed"))
    table = Table("Seen twice", ("what", "one way", "another", "difference", "allowed", "kept"), rows,
                  "The same number in two ways that share no code; the difference was allowed before the runs.")
    return Section(tables=[table] if rows else [], checks=checks)
