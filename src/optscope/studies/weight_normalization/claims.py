"""The claims C1 to C8 of the paper's abstract, what was derived from its model, and our own; tested on records."""

from __future__ import annotations

from collections.abc import Callable

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Records
from optscope.studies.weight_normalization.judging import (
    DEPTHS,
    EXACT,
    NEAR,
    STRENGTH,
    Collapse,
    DenseFails,
    DoseResponse,
    Exponential,
    FadesAbove,
    Faster,
    LessError,
    NearLeast,
    OnlyPolarArrives,
    PlainNeedsSmallStarts,
    TinyIsWorse,
    bounds,
    flow_equivalence,
    in_most_cells,
    invariants,
    plain_control,
    torch_never_magnifies,
    zero_loss,
)
from optscope.studies.weight_normalization.judging_ours import (
    ARMS,
    EQUAL,
    MEASURES,
    AsAccurate,
    Corrected,
    FollowsFlow,
    as_basis_pursuit,
    better_than_plain,
    identity,
    lasso_predicts_better,
)
from optscope.studies.weight_normalization.judging_starts import Predicted, Waiting, polar_filters_err_less

Row = tuple[str, str, str, Callable[[Records], Verdict], str]
"""Id, sentence, source, test, and what would refute it."""

TUNED = "Start, step and ratio tuned for each: polar descent needs at most half the iterations"


def _of_every_depth(depth: int) -> list[Row]:
    L = f"L={depth}"
    return [
        (f"C1 {L}", f"Polar flow ends within {NEAR:.0%} of the least l1 norm ({L}, κ Σ|x*|^(2/L) = "
         f"{STRENGTH:g}, from a fifth of the threshold)", "abstract", NearLeast(depth), "a larger median excess"),
        (f"C2 flow {L}", f"Where plain flow errs, polar flow has at most half its error ({L}, exact limits)",
         "abstract", LessError(depth, "cells"), "polar flow not better at a fifth of the threshold"),
        (f"C2 descent {L}", f"Where plain descent errs, polar descent has at most half its error ({L})",
         "abstract", Waiting(LessError(depth, "descents")), "polar descent not better at a fifth of the threshold"),
        (f"C3 dose {L}", f"The larger κ, the smaller the excess ({L})", "abstract: magnification",
         DoseResponse(depth), "a rank correlation above -0.9"),
        (f"C3 collapse {L}", f"Finished polar descents end where plain flow from ρα does ({L})",
         "abstract: magnification; formula derived", Collapse(depth), "a median distance above 1 % of ‖x*‖"),
        (f"C5 rate {L}", f"The residual decays exponentially, at the predicted rate ({L})",
         "abstract (L = 2); formula derived", Exponential(depth), "a slope off by more than 5 %"),
        (f"C8 {L}", f"Plain flow needs a tiny start for the same bias ({L})", "abstract",
         PlainNeedsSmallStarts(depth), f"an excess below {NEAR:.0%} at a fifth of the threshold"),
        (f"T4 {L}", f"At five times the threshold polar flow gains at most a fifth ({L})", "derived",
         FadesAbove(depth), "a larger gain")]


def _of_two_depths(depth: int, above: float, below: float) -> list[Row]:
    L = f"L={depth}"
    return [
        (f"C6a {L}", "Same start above the threshold, same step: polar descent needs at most half the iterations "
         f"to zero loss ({L}, α={above:g})", "abstract: speed",
         Faster(depth, "table", "κ=10", "iterations to residual 1e-5", above, f"α = {above:g}"), "more than half"),
        (f"C6b {L}", f"Same start, same step: only polar descent comes within 5 % of x* ({L}, α={below:g})",
         "abstract: speed", OnlyPolarArrives(depth, below), "on most seeds both arrive, or neither"),
        *((f"C6c {L} {percent:g} %", f"{TUNED} to {percent:g} % error ({L})", "abstract: speed",
           Faster(depth, "speed", "polar", "iterations", percent, f"to {percent:g} % error, tuned"),
           "more than half of them") for percent in (5.0, 1.0)),
        (f"T5 dense {L}", f"A dense x* is not recovered by polar flow ({L})", "negative control",
         DenseFails(depth), "an error below one half"),
        (f"T5 tiny {L}", f"From a tiny start, polar flow with κ = 1 is worse than plain ({L})", "negative control",
         TinyIsWorse(depth), "a smaller error")]


def _of_an_arm(arm: str) -> list[Row]:
    return [
        (f"N equal {arm}", f"A small CNN trained with {arm} is as accurate as SGD's (within {EQUAL:g} points)",
         "ours", AsAccurate(arm), "a difference outside the margin"),
        (f"N flow {arm}", f"At its chosen learning rate, {arm} follows its flow (stretch at most 10 %)", "ours",
         FollowsFlow(arm), "a larger median stretch"),
        *((f"N {metric} {arm}", f"A small CNN trained with {arm} is {text} than SGD's", "ours",
           Corrected(arm, metric), "an interval below 0") for metric, _, _, text in MEASURES)]


LESS = "polar descent has at most half of plain descent's error"
NEARER: list[Row] = [
    ("U starts L=2", f"From unequal starts, one norm a factor, {LESS} (L=2)", "abstract: starts",
     LessError(2, "unequal"), "polar descent not better at a fifth of the threshold"),
    ("U starts L=3", f"From unequal starts, one norm a factor, {LESS} (L=3, from 0.6 of the threshold)",
     "abstract: starts", LessError(3, "unequal", (0.6,)), "polar descent not better"),
    ("U parts L=2", f"With a norm for each part of x, {LESS} (L=2)", "ours", LessError(2, "apart"),
     "polar descent not better at a fifth of the threshold"),
    *((f"D {arm}", f"A convolution with readout trained by {arm} ends where the theory of the diagonal model says",
       "derived", Predicted(arm), "a median distance above 1 % of ‖x*‖") for arm in ("SGD", "PolarSGD")),
    ("D error", "Trained with one norm a filter by PolarSGD, the convolution has at most half the error of SGD's, "
     "from the same filters", "abstract, on a network", polar_filters_err_less, "PolarSGD not better")]

ONCE: list[Row] = [
    ("C3 flow", "The polar flow ends exactly where the plain flow from ρ x0 does", "derived", flow_equivalence,
     f"a distance above {EXACT:g}"),
    ("C4", "The flow keeps its invariants", "abstract; formulas derived", invariants, f"a drift above {EXACT:g}"),
    ("C5 zero", "The polar flow ends at zero loss", "abstract", zero_loss, f"a residual above {EXACT:g}"),
    ("C7", "Over depths, sparsities, measurements and starts, polar flow halves the error in most cells",
     "abstract: experiments", in_most_cells, "fewer than half of the cells"),
    ("T5 plain", "With κ = 1/r² the polar flow is the plain flow", "negative control", plain_control,
     f"a distance above {EXACT:g}"),
    ("B bounds", "The l1 bounds of both flows hold", "derived", bounds, "an excess above its bound"),
    ("B torch", "The ratio of torch's weight_norm, 1/r0², never magnifies the start", "derived",
     torch_never_magnifies, "a magnification above 1"),
    ("N identity", "PolarSGD without a ratio is SGD on torch's weight_norm", "ours", identity,
     "a difference above 1e-10"),
    ("R photographs", "The polar limit reconstructs photographs as well as basis pursuit (errors within 12 %)",
     "ours", as_basis_pursuit, "errors that differ by more"),
    ("R start", "From the same start the polar limit reconstructs photographs better than the plain one", "ours",
     better_than_plain, "an interval below 0"),
    ("R noise", "On noisy data the cross-validated lasso predicts better than the polar limit, which interpolates",
     "ours", lasso_predicts_better, "an interval below 0")]

CLAIMS = tuple(sorted((Claim(*row) for row in (
    *(row for depth in DEPTHS for row in _of_every_depth(depth)),
    *_of_two_depths(2, 3e-2, 1e-3), *_of_two_depths(3, 1e-2, 1e-3), *ONCE, *NEARER,
    *(row for arm in ARMS for row in _of_an_arm(arm)))), key=lambda claim: claim.id))
