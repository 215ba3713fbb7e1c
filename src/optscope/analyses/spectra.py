"""Spectra: the singular values of every matrix that training left, and of the next step on it, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optscope.engine.store import Store
from optscope.engine.work import probe_id, watch_id
from optscope.evidence.picture import Panel, Picture, Series
from optscope.evidence.records import Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.words import listed
from optscope.probes.anatomy import StepAnatomy
from optscope.probes.geometry import Geometry
from optscope.probes.singular import KEPT
from optscope.protocol.comparison import Comparison
from optscope.report.section import Section
from optscope.report.tables import number

MOST = 6
"""So many matrices are drawn, evenly from the first to the last."""
LEAST = 1e-6
"""From this share of the largest on singular values are drawn: they are right to 1e-8 of it."""

Spectra = Mapping[str, Sequence[NDArray[np.float64]]]
"""Matrix to its singular values, descending, of every seed."""


def spectra(comparison: Comparison, records: Records, store: Store) -> Section:
    """Return the spectra of trained weights, and of the steps that would come next, where they were measured."""
    taken = [(probe, probe_id(probe)) for probe in (*comparison.probes, *comparison.described)]
    taken += [(watch.probe, watch_id(watch)) for watch in comparison.watches]
    figures = []
    for kind, name, title, rank in (
            (Geometry, "weight-spectra", "Singular values of the trained weights", "effective rank"),
            (StepAnatomy, "step-spectra", "Singular values of the next step at the end", "step effective rank")):
        for reading in [reading for probe, reading in taken if isinstance(probe, kind)][:1]:
            found = {arm.name: kept(comparison, records, store, arm.name, reading) for arm in comparison.arms}
            figures += [_picture(found, name, f"{title}: {_ranks_said(comparison, records, rank)}")
                        ] if any(found.values()) else []
    return Section(figures=figures)


def kept(comparison: Comparison, records: Records, store: Store, arm: str, reading: str) -> Spectra:
    """Return what the final runs of an arm kept of a reading, of the last moment where it was taken at several."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    runs = records.where(experiment=comparison.name, phase="final", arm=arm, status="ok")
    for run in dict.fromkeys(row.run for row in runs):
        last: dict[str, tuple[int, NDArray[np.float64]]] = {}
        for key, array in store.run_folder(run).reading_arrays(reading).items():
            if key.startswith(KEPT):
                name, _, step = key.removeprefix(KEPT).partition(" at ")
                last[name] = max(last.get(name, (-1, array)), (int(step or 0), array), key=lambda each: each[0])
        for name, (_, array) in last.items():
            found.setdefault(name, []).append(array)
    return found


def _ranks_said(comparison: Comparison, records: Records, rank: str) -> str:
    """Return the mean of a metric of every arm, in words."""
    _, rows = comparison.measured(records)
    means = {arm.name: mean_interval(rows.values(arm.name, rank)).estimate for arm in comparison.arms}
    return f"{rank} " + listed(f"{arm} {number(mean, 2)} %" for arm, mean in means.items() if np.isfinite(mean))


def _picture(found: Mapping[str, Spectra], name: str, title: str) -> Picture:
    matrices = list(dict.fromkeys(matrix for spectra in found.values() for matrix in spectra))
    at = sorted(set(np.linspace(0, len(matrices) - 1, min(MOST, len(matrices))).round().astype(int).tolist()))
    panels = [Panel("place by size", "singular value", [
        _series(arm, spectra[matrices[i]]) for arm, spectra in found.items() if matrices[i] in spectra],
        matrices[i], log_y=True) for i in at]
    some = f" Of {len(matrices)} matrices {MOST}, evenly from the first to the last." * (len(matrices) > MOST)
    return Picture(name, title, panels, "Kernels of convolutions count as matrices (out, rest). Of a steep curve "
                   "few directions matter, of a level one, as Muon's steps have it, all alike. Geometric "
                   "means over seeds, with t intervals of 95 %; what is below a millionth of a matrix's largest is "
                   f"left out.{some}")


def _series(arm: str, seeds: Sequence[NDArray[np.float64]]) -> Series:
    """Return the geometric mean over seeds of each singular value, with the t interval of its logarithm."""
    logs = np.log([np.maximum(values, LEAST * values[0]) for values in seeds if values[0] > 0] or [[np.nan]])
    found = [mean_interval(column) for column in logs.T]
    drawn = [f for f in found if f.estimate > found[0].estimate + np.log(LEAST)]
    mean, low, high = ([float(np.exp(getattr(f, name))) for f in drawn] for name in ("estimate", "low", "high"))
    return Series(arm, list(range(1, len(drawn) + 1)), mean, low, high, n=[f.n for f in drawn])
