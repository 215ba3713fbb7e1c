#!/usr/bin/env bash
# Precision, recall, density and coverage of the package prdc change when all data are divided by 255.
#
# Expected: the four numbers compare distances with distances, so that they do not depend on units: bytes 0..255 and the
# same images in [0, 1] give the same numbers.
# Happens:  on data with few distinct values distances tie, exactly as bytes and by chance of rounding as fractions. With
# integers 0..3 (500 points in 4 dimensions, k = 5) precision is .902 (so it is in integer arithmetic) and .964 after
# division by 255 in float32, .946 in float64: ties with the k-th neighbour fall inside or outside by their last bit.
# Why it matters: 8-bit images, binarised or quantised data and one-hot tables are such data; two papers that scale them
# otherwise do not compare, and a ranking of generators can turn.
# Source: prdc 0.2 with scikit-learn 1.9.1 and numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "prdc==0.2" "scikit-learn==1.9.1" "numpy==2.4.6" "scipy==1.17.1"
env/bin/python - <<'PY'
import contextlib
import importlib.metadata
import io

import numpy as np
import prdc

print("prdc", importlib.metadata.version("prdc"))
rng = np.random.default_rng(0)
real, fake = rng.integers(0, 4, (2, 500, 4))


def numbers(unit, dtype):
    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc((real / unit).astype(dtype), (fake / unit).astype(dtype), 5)
    return {name: round(float(value), 3) for name, value in found.items()}


def by_integers():
    """Precision in exact arithmetic: squared distances of integers."""
    def squares(a, b):
        return ((a[:, None].astype(np.int64) - b[None]) ** 2).sum(2)
    radius = np.sort(squares(real, real), axis=1)[:, 5]  # the point itself is the nearest
    return float((squares(real, fake) < radius[:, None]).any(0).mean())


exact = by_integers()
print("precision in integers", exact)
found = {(unit, dtype.__name__): numbers(unit, dtype) for dtype in (np.float32, np.float64) for unit in (1, 2, 255)}
for key, value in found.items():
    print("divided by", *key, value)
for name in ("float32", "float64"):
    assert found[1, name] == found[2, name], "powers of two keep ties"
    assert abs(found[1, name]["precision"] - exact) < 1e-9
    assert found[255, name]["precision"] - exact > 0.02, "changed: independent of units now"
PY
