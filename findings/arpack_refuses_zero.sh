#!/usr/bin/env bash
# scipy's eigs, eigsh and svds stop at an operator that is zero, and blame a starting vector that is not.
#
# Expected: the eigenvalues and singular values of the zero operator are 0, as numpy.linalg, and scipy's own PROPACK and
# LOBPCG solvers of svds, say.
# Happens:  the three that run ARPACK raise ArpackError -9, "Starting vector is zero", though v0 is all ones: it is the
# operator's image of it that is. There is no way round by another v0.
# Why it matters: curvature tools take Hessians, Jacobians of games and Fisher matrices as operators. They are exactly zero
# where gradients underflow (a discriminator that parts everything, a network whose ReLUs are dead, a loss at 0 in
# float32): there sharpness 0 is the right answer, an event worth recording, and the run stops instead, with advice
# that leads to the starting vector.
# Source: scipy 1.17.1, scipy/sparse/linalg/_eigen/arpack.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "scipy==1.17.1" "numpy==2.4.6"
env/bin/python - <<'PY'
import numpy as np
import scipy
from scipy.sparse.linalg import ArpackError, aslinearoperator, eigs, eigsh, svds

print("scipy", scipy.__version__)
n = 40
v0, zero = np.ones(n), aslinearoperator(np.zeros((n, n)))
tried = {
    "numpy.linalg.eigvals": lambda: np.linalg.eigvals(np.zeros((n, n)))[:2],
    "svds, PROPACK": lambda: svds(zero, k=2, v0=v0, solver="propack", return_singular_vectors=False),
    "svds, LOBPCG": lambda: svds(np.zeros((n, n)), k=2, solver="lobpcg", return_singular_vectors=False),
    "eigs": lambda: eigs(zero, k=2, v0=v0, return_eigenvectors=False),
    "eigsh": lambda: eigsh(zero, k=2, v0=v0, return_eigenvectors=False),
    "svds, ARPACK": lambda: svds(zero, k=2, v0=v0, return_singular_vectors=False),
}
for name, find in tried.items():
    try:
        found = find()
        print(f"{name}: {found}")
        assert not np.any(found) and name in list(tried)[:3], "changed"
    except ArpackError as error:
        print(f"{name}: {error}")
        assert "-9" in str(error) and name in list(tried)[3:], "changed"
PY
