"""What differs between arms: the claims on every metric, the choice that they come to, and the numbers behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optscope.analyses.choice import RULE, choice
from optscope.analyses.examples import Right
from optscope.analyses.findings import Finding, findings, places
from optscope.analyses.headline import ORDER, headline
from optscope.analyses.joined import claims
from optscope.analyses.scorecard import quality_name, scorecard
from optscope.evidence.claims import Verdict
from optscope.evidence.level import ALPHA
from optscope.evidence.paired import FEWEST
from optscope.evidence.records import Records
from optscope.evidence.stats import seeds_needed, smallest_p
from optscope.protocol.compared import Compared
from optscope.report.measures import Measure
from optscope.report.section import Check, Section
from optscope.report.tables import metric_table


@dataclass(eq=False)
class Differences:
    """The analysis that answers a comparison: see `optscope.analyses.findings.findings`.

    `right` finds which test examples each model was right about.
    """

    margin: float | str | None
    right: Callable[[Compared, Records], Right]
    _last: tuple[Compared, Records, list[Finding]] | None = None

    def found(self, comparison: Compared, records: Records) -> list[Finding]:
        """Return the findings of a comparison, which are found once for all that is said of it."""
        if self._last is None or self._last[0] is not comparison or self._last[1] is not records:
            self._last = (comparison, records,
                          findings(comparison, records, self.margin, self.right(comparison, records)))
        return self._last[2]

    def __call__(self, comparison: Compared, records: Records) -> Section:
        """Return the choice, all at a glance, a line an arm, every claim, and which tests judge them."""
        found = self.found(comparison, records)
        checks = [Check(f"{comparison.name}: one test an answer, its p corrected", True,
                        judged_by(comparison, [each.verdict for each in found])),
                  Check(f"{comparison.name}: the choice follows a fixed rule", True, RULE),
                  Check(f"{comparison.name}: the answer has a fixed order", True, ORDER)]
        if not found:
            return Section(checks=checks)
        table, card = scorecard(comparison, records, found)
        return Section([choice(comparison, records, found)], claims(found, comparison.arms[0].name),
                       checks=checks, summaries=[table], openers=[card],
                       details=headline(comparison, records, found).splitlines(),
                       measures=by_seed(comparison, records))


def by_seed(comparison: Compared, records: Records) -> list[Measure]:
    """Return what arms are compared on, with every arm's value on every seed."""
    mine = records.where(experiment=comparison.name, phase="final")
    return [Measure(quality_name(place), {arm.name: dict(zip(mine.seeds(arm.name), mine.values(
        arm.name, place.metric.name, place.at), strict=True)) for arm in comparison.arms})
            for place in places(comparison, mine)]


def measured(comparison: Compared, records: Records) -> Section:
    """Return the table of all that was measured on the trained models of a comparison, where anything was."""
    metrics, found = comparison.measured(records)
    return Section(tables=[metric_table(found, metrics, comparison.arms[0].name)] if metrics else [])


def judged_by(comparison: Compared, verdicts: Sequence[Verdict]) -> str:
    """Return which test judges claims, what it takes for granted, and what an exact one could have shown."""
    n, family = len(comparison.seeds), max(1, sum(not math.isnan(verdict.p) for verdict in verdicts))
    common = ("intervals are of single tests, over seeds" if family == 1 else
              f"p are Holm-corrected over all {family} tests; intervals are of single tests, over seeds")
    if n < FEWEST:
        return f"the exact sign-flip test on paired seeds, whose p is {smallest_p(n):.2g} at least; {common}"
    least = smallest_p(n) * family
    exact = (f"an exact test of {n} seeds, whose p is {smallest_p(n):.2g} at least, could show nothing among so "
             f"many tests (it takes {seeds_needed(family)} seeds), so what is shown rests on that"
             if least > ALPHA else f"an exact test of {n} seeds could show as much")
    return f"Student's t test on paired seeds, which takes differences for normal; {common}; {exact}"
