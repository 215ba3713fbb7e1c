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
    FasterAbove,
    FasterTuned,
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


def _claims() -> tuple[Claim, ...]:
    found: list[tuple[str, str, str, Callable[[Records], Verdict], str]] = []
    for depth in DEPTHS:
        L = f"L={depth}"
        found += [
            (f"C1 {L}", f"Polar flow ends near the least l1 norm: {L}, E/Q at most {NEAR:g} at κ Σ|x*|^(2/L) = "
             f"{STRENGTH:g}, from a fifth of the threshold", "abstract", NearLeast(depth), "a median above "
             f"{NEAR:g}"),
            (f"C2 flow {L}", f"At starts where plain flow errs, polar flow has at most half its error ({L}; exact "
             "limits)",
             "abstract", LessError(depth, "cells"), "polar flow not better at a fifth of the threshold"),
            (f"C2 descent {L}", "At starts where plain descent errs, polar descent has at most half its error "
             f"({L})",
             "abstract", LessError(depth, "descents"), "polar descent not better at a fifth of the threshold"),
            (f"C3 dose {L}", f"The larger κ, the smaller the excess ({L})", "abstract: magnification",
             DoseResponse(depth), "a rank correlation above -0.9"),
            (f"C3 collapse {L}", f"Finished polar descents end where plain flow from ρα does ({L})",
             "abstract: magnification; formula derived", Collapse(depth), "a median distance above 1 % of ‖x*‖"),
            (f"C5 rate {L}", f"The residual decays exponentially, at the predicted rate ({L})",
             "abstract (L = 2); formula derived", Exponential(depth), "a slope off by more than 5 %"),
            (f"C8 {L}", f"Plain flow needs a tiny start for the same bias ({L})", "abstract",
             PlainNeedsSmallStarts(depth), f"E/Q below {NEAR:g} at a fifth of the threshold"),
            (f"T4 {L}", f"At five times the threshold polar flow gains at most a fifth ({L})", "derived",
             FadesAbove(depth), "a large gain there")]
    for depth, alpha in ((2, 3e-2), (3, 1e-2)):
        found.append((f"C6a L={depth}", "Same start above the threshold, same step: polar descent needs at most "
                      f"half the iterations to zero loss (L={depth}, α={alpha:g})", "abstract: convergence speed",
                      FasterAbove(depth, alpha), "a median ratio above one half"))
    for depth, alpha in ((2, 1e-3), (3, 1e-3)):
        found.append((f"C6b L={depth}", "Same start, same step: only polar descent comes within 5 % of x* "
                      f"(L={depth}, α={alpha:g})", "abstract: convergence speed", OnlyPolarArrives(depth, alpha),
                      "on most seeds both arrive, or neither"))
    for depth in (2, 3):
        for percent in (5.0, 1.0):
            found.append((f"C6c L={depth} {percent:g} %", "Start, step and ratio tuned for each: polar descent "
                          f"needs at most half the iterations to {percent:g} % error "
                          f"(L={depth})", "abstract: convergence speed",
                          FasterTuned(depth, percent), "a median ratio above one half"))
    for depth in (2, 3):
        found += [(f"T5 dense L={depth}", f"A dense x* is not recovered by polar flow (L={depth})", "negative "
                   "control",
                   DenseFails(depth), "an error below one half"),
                  (f"T5 tiny L={depth}", "From a tiny start, polar flow with κ = 1 is worse than plain "
                   f"(L={depth})",
                   "negative control", TinyIsWorse(depth), "a smaller error")]
    found += [
        ("C3 flow", "The polar flow ends exactly where the plain flow from ρ x0 does", "derived", flow_equivalence,
         f"a distance above {EXACT:g}"),
        ("C4", "The flow keeps its invariants", "abstract; formulas derived", invariants, "a drift above "
         f"{EXACT:g}"),
        ("C5 zero", "The polar flow ends at zero loss", "abstract", zero_loss, f"a residual above {EXACT:g}"),
        ("C7", "Over depths, sparsities, numbers of measurements and starts, polar flow halves the error in most "
         "cells",
         "abstract: experiments", in_most_cells, "fewer than half of the cells"),
        ("T5 plain", "With κ = 1/r² the polar flow is the plain flow", "negative control", plain_control,
         f"a distance above {EXACT:g}"),
        ("B bounds", "The l1 bounds of both flows hold", "derived", bounds, "an excess above its bound"),
        ("B torch", "The ratio of torch's weight_norm, 1/r0², never magnifies the start", "derived",
         torch_never_magnifies, "a magnification above 1"),
        ("N identity", "PolarSGD without a ratio is SGD on torch's weight_norm", "ours", identity,
         "a difference above 1e-10"),
        ("R photographs", "The polar limit reconstructs photographs as well as basis pursuit (errors within 12 "
         "%)", "ours",
         as_basis_pursuit, "errors that differ by more"),
        ("R start", "From the same start the polar limit reconstructs photographs better than the plain "
         "limit", "ours",
         better_than_plain, "an interval below 0"),
        ("R noise", "On noisy data (diabetes) the lasso predicts better than interpolation of the least l1 "
         "norm", "ours",
         lasso_predicts_better, "an interval below 0")]
    for arm in ARMS:
        found += [(f"N equal {arm}", f"A small CNN trained with {arm} is as accurate as SGD's (within {EQUAL:g} "
                   "points)",
                   "ours", AsAccurate(arm), "a difference outside the margin"),
                  (f"N flow {arm}", f"At its chosen learning rate, {arm} follows its flow (stretch at most 10 "
                   "%)", "ours",
                   FollowsFlow(arm), "a median stretch above 10 %")]
        found += [(f"N {metric} {arm}", f"A small CNN trained with {arm} is {text} than SGD's", "ours",
                   Corrected(arm, metric), "an interval below 0") for metric, _, _, text in MEASURES]
    return tuple(sorted((Claim(*each) for each in found), key=lambda claim: claim.id))


CLAIMS = _claims()
