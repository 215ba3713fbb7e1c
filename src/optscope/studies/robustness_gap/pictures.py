"""The pictures of the robustness study, from its records and arrays."""

from __future__ import annotations

import numpy as np

from optscope.analyses.charts import along_axis, by_arm
from optscope.evidence.picture import Figure, ImageGrid, Panel, Picture, Series
from optscope.evidence.records import Metric, Records
from optscope.evidence.stats import mean_interval, paired_difference
from optscope.protocol.study import Arrays
from optscope.studies.robustness_gap.claims import PLACES
from optscope.theory.three_frequency import PAPER, adversarial_risk, sign_trajectory

ARMS = ("SGD", "Adam", "RMSProp", "Adam length × SGD direction")
NOISE = Metric("accuracy under gaussian noise", "%", axis="noise variance")
L2 = Metric("accuracy under l2 attack", "%", axis="l2 radius")
LINF = Metric("accuracy under linf attack", "%", axis="linf radius")
BANDS = Metric("drop under band noise", "points", axis="band, low to high frequency")
CLEAN = Metric("accuracy", "%")
LIPSCHITZ = {"Lipschitz lower bound": "lower bound:\nsteepest slope seen",
             "Lipschitz upper bound": "upper bound:\nproduct of exact norms",
             "paper's spectral product": "the paper's product:\nno bound in general"}


def pictures(records: Records, arrays: Arrays) -> list[Figure]:
    """Return all pictures for which there are records."""
    found: list[Figure] = []
    for data in PLACES:
        mine = records.where(experiment=data, phase="final")
        if mine:
            found += [_perturbations(mine, data), _radii(mine, data), _bands(mine, data), _lipschitz(mine, data)]
    if records.where(experiment="filtered"):
        found.append(_filtered(records.where(experiment="filtered")))
    if "linear/GD/sampled/steps" in arrays:
        found.append(_linear(arrays))
    if "images/original" in arrays:
        found += [_spectrum(arrays), _filters(arrays), _attacked(arrays)]
    return found


def _arms(records: Records) -> list[str]:
    return [arm for arm in ARMS if arm in records.arms()]


def _gap(records: Records, metric: Metric, at: float) -> str:
    found = paired_difference(*records.pairs("SGD", "Adam", metric.name, at))
    return f"{_signed(found.estimate)} [{_signed(found.low)}, {_signed(found.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _perturbations(records: Records, data: str) -> Picture:
    noise, l2, linf = (at for _, at in PLACES[data])
    places = [(CLEAN, None, "clean"), (NOISE, noise, f"Gaussian noise\nvariance {noise:g}"),
              (L2, l2, f"l2 attack\nradius {l2:g}"), (LINF, linf, f"linf attack\nradius {linf:.3g}")]
    clean = paired_difference(*records.pairs("SGD", "Adam", "accuracy"))
    return Picture(
        f"perturbations-{data}",
        f"{data}: SGD − Adam is {_signed(clean.estimate)} points on clean images, {_gap(records, L2, l2)} under l2 "
        "attack",
        [by_arm(records, places, _arms(records), "test accuracy [%]")],
        "Mean over seeds with 95 % t intervals. What no attack of the ensemble fools may still be foolable: "
        "accuracies under attack are upper bounds.")


def _radii(records: Records, data: str) -> Picture:
    panels = [along_axis(records, metric, _arms(records)) for metric in (NOISE, L2, LINF)]
    return Picture(f"radii-{data}", f"{data}: accuracy as noise and attacks grow", panels,
                   "Mean over seeds with 95 % t intervals.")


def _bands(records: Records, data: str) -> Picture:
    def total(arm: str) -> float:
        return sum(float(np.mean(records.values(arm, BANDS.name, band))) for band in range(1, 10))
    sums = ", ".join(f"{arm} {total(arm):.1f}" for arm in ("SGD", "Adam", "RMSProp"))
    return Picture(f"bands-{data}", f"{data}: accuracy lost to noise in bands 1 to 9, summed: {sums} points",
                   [along_axis(records, BANDS, _arms(records))],
                   "Each band holds a tenth of the DCT coefficients and so of the noise's energy; band 0 is the "
                   "lowest. Mean over seeds with 95 % t intervals.")


def _lipschitz(records: Records, data: str) -> Picture:
    def between(arm: str) -> str:
        low, high = (10 ** float(np.median(records.values(arm, f"Lipschitz {end} bound")))
                     for end in ("lower", "upper"))
        return f"{low:.3g} and {high:.3g}"

    places = [(Metric(name, "log10", "lower"), None, text) for name, text in LIPSCHITZ.items()]
    return Picture(
        f"lipschitz-{data}",
        f"{data}: the Lipschitz constant lies between {between('SGD')} for SGD, "
        f"{between('Adam')} for Adam (medians)",
        [by_arm(records, places, _arms(records), "Lipschitz constant, l2 to l2 [log10]")],
        "Mean of log10 over seeds with 95 % t intervals; single seeds can be far off, so the title has medians. "
        "The constant of each network lies between its two bounds. The product of the norms of reshaped kernels, "
        "which the paper prints, is no bound where a network convolves; for an MLP it is the upper bound.")


def _filtered(records: Records) -> Picture:
    series = []
    for name in ("low energy", "high frequencies"):
        mine = records.where(removed=name)
        kept = [(keep, mine.where(keep=keep)) for keep in reversed(mine.levels("keep"))]
        points = [(100 - keep, mean_interval(rows.values(rows[0].arm, "accuracy"))) for keep, rows in kept]
        series.append(Series.over(f"{name} removed", [x for x, _ in points], [m for _, m in points],
                                  seeds=mine.seeds(*mine.arms())))
    unfiltered = mean_interval(records.values("unfiltered", "accuracy"))
    return Picture("filtered", "Clean accuracy after training without part of the frequencies",
                   [Panel("coefficients removed from training images [%]", "clean test accuracy [%]", series,
                          levels={"unfiltered": unfiltered.estimate,
                                  "1 point below": unfiltered.estimate - 1})],
                   "SGD, test images unfiltered; mean over seeds with 95 % t intervals.")


def _linear(arrays: Arrays) -> Picture:
    errors = []
    steps = np.asarray(arrays["linear/signGD/sampled/steps"], dtype=np.float64)[1:]
    theory = sign_trajectory(PAPER, 0.01, steps)
    for k, name in enumerate(("frequency 0", "frequency 1", "frequency 2 (empty)")):
        series = []
        for rule in ("GD", "signGD", "Adam", "RMSProp"):
            x = np.asarray(arrays[f"linear/{rule}/sampled/steps"], dtype=np.float64)[1:]
            y = np.asarray(arrays[f"linear/{rule}/sampled/errors"], dtype=np.float64)[1:, k]
            series.append(Series(rule, x.tolist(), y.tolist()))
        series.append(Series("signGD, closed form", steps.tolist(),
                             np.abs(theory[:, k] - PAPER.target[k]).tolist(), mark="theory"))
        errors.append(Panel("step", "error of the weight, |w − w*|", series, name, log_x=True))
    risks = [Series(rule, np.asarray(arrays[f"linear/{rule}/sampled/steps"])[1:].tolist(),
                    np.asarray(arrays[f"linear/{rule}/sampled/adversarial"])[1:].tolist())
             for rule in ("GD", "signGD", "Adam", "RMSProp")]
    risks.append(Series("signGD, closed form", steps.tolist(), adversarial_risk(PAPER, theory).tolist(),
                        mark="theory"))
    final = {s.label: s.y[-1] for s in risks}
    return Picture("linear", f"Equal fit, different robustness: adversarial risk GD {final['GD']:.1f}, "
                   f"signGD {final['signGD']:.1f}, Adam {final['Adam']:.1f}, RMSProp {final['RMSProp']:.1f}",
                   [*errors, Panel("step", "adversarial risk (l2 radius √2)", risks, "risk", log_x=True)],
                   "Three-frequency regression, fresh batches of 5000, mean over seeds. Only GD leaves the weight "
                   "on the empty frequency alone.")


def _spectrum(arrays: Arrays) -> Picture:
    series = []
    for data in PLACES:
        if f"images/energy {data}" in arrays:
            diagonal = np.diagonal(np.asarray(arrays[f"images/energy {data}"], dtype=np.float64))
            series.append(Series(data, list(range(len(diagonal))), diagonal.tolist()))
    return Picture("spectrum", "Spectral energy along the diagonal of the DCT",
                   [Panel("frequency along the diagonal", "mean |DCT coefficient|", series, log_y=True)],
                   "A straight line here is an exponential fall; the coefficient at 0 is the mean brightness.")


def _filters(arrays: Arrays) -> ImageGrid:
    keys = ["original", *(f"{kind}, keep {keep} %" for kind in ("low energy removed", "high frequencies removed")
                          for keep in (50, 10, 3))]
    rows = ["original", *(f"{kind} {keep} %" for kind in ("strongest", "lowest") for keep in (50, 10, 3))]
    return ImageGrid("filters", "What filtered training images look like", rows, [""] * 6,
                     [list(np.asarray(arrays[f"images/{key}"], dtype=np.float64)) for key in keys],
                     "Strongest: the DCT coefficients of largest size are kept, image by image; lowest: those of "
                     "lowest frequency. With half of them nothing seems to be missing.")


def _attacked(arrays: Arrays) -> ImageGrid:
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    classes = {who: [names[int(c)] for c in np.asarray(arrays[f"images/classes {who}"])]
               for who in ("clean", "SGD", "Adam")}
    called = "; ".join(f"{who}'s model calls its row {', '.join(classes[who])}" for who in ("SGD", "Adam"))
    return ImageGrid("attacked", "Images attacked within l2 radius 1 look the same and are called something else",
                     ["clean", "SGD", "Adam"], classes["clean"],
                     [list(np.asarray(arrays[f"images/{key}"], dtype=np.float64))
                      for key in ("clean", "attacked SGD", "attacked Adam")],
                     f"First row: test images with their classes. Then attacked, each against one model: {called}.")
