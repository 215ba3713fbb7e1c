"""The list of analyses: what is said of any comparison, each of what it finds in the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from optscope.analyses.caveats import fairness, reservations
from optscope.analyses.charts import accuracies, axes, edge, measures, rounding, training
from optscope.analyses.differences import Differences, measured
from optscope.analyses.examples import right
from optscope.analyses.grafts import grafts
from optscope.analyses.headline import nothing_to_compare
from optscope.analyses.momentum import momentum
from optscope.analyses.spectra import spectra
from optscope.analyses.target import target
from optscope.engine.store import Store
from optscope.evidence.records import Records
from optscope.protocol.comparison import Comparison
from optscope.protocol.settings import Settings
from optscope.report.section import Section, joined

Analysis = Callable[[Comparison, Records], Section]
"""Something that is said of a comparison; a section of nothing where it does not fit."""

ALWAYS: tuple[Analysis, ...] = (reservations, fairness, training)
"""What is said even where nothing can be compared."""


def usual(settings: Settings, store: Store) -> tuple[Analysis, ...]:
    """Return the analyses of a comparison under such settings, in the order of the report."""
    differences = Differences(settings.margin, partial(right, store=store))
    return (*((grafts,) if settings.graft else ()), reservations, fairness, differences, measured, accuracies,
            rounding, measures, partial(axes, judge=differences.found), training, target, edge,
            partial(spectra, store=store), partial(momentum, margin=settings.margin))


def of_a_study(comparison: Comparison, records: Records) -> Section:
    """Return what is said of a comparison within a study, whose own claims and pictures say the rest."""
    tuned = any(arm.search for arm in comparison.arms)
    return joined(each(comparison, records) for each in (reservations, measured, *((fairness,) if tuned else ())))


def said(comparison: Comparison, records: Records, analyses: Sequence[Analysis]) -> Section:
    """Return what the analyses say; where nothing can be compared, only why, and what is always said."""
    nothing = nothing_to_compare(comparison, records)
    if nothing:
        return joined([Section([nothing]), *(each(comparison, records) for each in ALWAYS)])
    return joined(each(comparison, records) for each in analyses)
