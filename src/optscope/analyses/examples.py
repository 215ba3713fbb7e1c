"""Which test examples every trained model was right about: what shows how much the test part's size leaves open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from optscope.engine.store import Store
from optscope.engine.work import probe_id
from optscope.evidence.records import Records
from optscope.probes.accuracy import Accuracy
from optscope.protocol.compared import Compared

Right = Mapping[str, Mapping[int, NDArray[np.bool_]]]
"""Arm and seed to a verdict an example."""


def right(comparison: Compared, records: Records, store: Store) -> Right:
    """Return the verdicts of a comparison's final models, of those that have them."""
    probe = next((probe for probe in comparison.probes if isinstance(probe, Accuracy)), None)
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    if probe is not None:
        reading = probe_id(probe)
        mine = records.where(experiment=comparison.name, phase="final")
        for arm, seed, run in dict.fromkeys((row.arm, row.seed, row.run) for row in mine):
            arrays = store.run_folder(run).reading_arrays(reading)
            if "correct" in arrays:
                found.setdefault(arm, {})[seed] = arrays["correct"]
    return found
