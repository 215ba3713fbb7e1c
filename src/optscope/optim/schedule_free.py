"""Schedule-free: any rule with an average of its path in the place of a falling learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.combinator import Combinator, advance, portions, stepped
from optscope.optim.pieces import Room
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class ScheduleFree(Combinator):
    """Take gradients between a rule's own path z and its running mean x, which is what the rule stands for.

        y = (1 − beta) z + beta x                  where gradients are taken: the weights in training
        z ← z + s                                  s the rule's step, at y
        x ← (1 − c) x + c z                        c = γ²/Σ γ²,  γ the largest rate so far
        step of y = c (z − y) + (1 − beta (1 − c)) s       with z before its step

    What is measured are the weights x. There is no momentum but this, so the rule has none:
    `ScheduleFree(AdamW(lr=1e-3, beta1=0.0))` and `ScheduleFree(SGD(lr=1.0))` are the authors' two. Over the first
    `warmup` steps the rate grows from lr/warmup to lr. A plan's schedule is not for it. Decay of the rule acts at y
    as in their code, and statistics of batch normalisation are those at y.

    Defazio et al. 2024, arXiv 2405.15682, equations 4 to 6; weights c as in their package schedulefree 1.4 (r = 0,
    power 2).

    Raises:
        UserError: unless 0 < beta < 1 and warmup is a whole number >= 0.
    """

    rule: Rule
    beta: Hyper = 0.9
    warmup: int = 0

    def __post_init__(self) -> None:
        check_hyper("ScheduleFree", "beta", self.beta, high=1.0, open_low=True)
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise UserError(f"ScheduleFree: warmup must be a whole number >= 0; got {self.warmup!r}")

    @property
    def proportional(self) -> bool:
        """A step also moves towards z, which its own rate does not multiply."""
        return False

    @property
    def averages(self) -> bool:
        """It stands for x."""
        return True

    @property
    def own_schedule(self) -> bool:
        """It needs none."""
        return True

    def _weighed(self, state: State, scale: float) -> tuple[float, float, State]:
        """Return the factor on the rate, the share c of the new point in the mean, and what counts them.

        The rate in units of the rule's own is enough, for only ratios of γ count.
        """
        done = float(state["step"])
        scale *= min(1.0, (done + 1) / self.warmup) if self.warmup else 1.0
        largest = max(float(state["largest"]), scale)
        total = float(state["total"]) + largest**2
        counts = {"step": done + 1, "largest": largest, "total": total}
        return scale, largest**2 / total if total else 0.0, counts

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the rule's state, its path "z", and the counts "step", "largest" rate and "total" weight."""
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return {"rule": self.rule.init(params, layout), "z": params.clone(),
                "step": zero, "largest": zero, "total": zero}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the step of y, and the new z, counts and state of the rule."""
        scale, c, counts = self._weighed(state, scale)
        s, inner = self.rule.seek(gradient, state["rule"], params, layout, scale)
        step = c * (state["z"] - params) + (1 - per_member(self.beta, params) * (1 - c)) * s
        numbers = {name: torch.tensor(value, dtype=torch.float64, device="cpu") for name, value in counts.items()}
        return step, {"rule": inner, "z": state["z"] + s, **numbers}

    def evaluated(self, state: State, params: Tensor, layout: Layout) -> Tensor:
        """Return x = z + (y − z)/beta."""
        x: Tensor = state["z"] + (params - state["z"]) / per_member(self.beta, params)
        return x

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the rule's in-place states, each with its path "z"; they share the counts."""
        counts = {name: torch.zeros((), dtype=torch.float64, device="cpu") for name in ("step", "largest", "total")}
        return [{"rule": state, "z": p.detach().clone(), **counts}
                for state, p in zip(self.rule.begin(params, layout), params, strict=True)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Move y and z in place, by way of x where y is what moves; tensor by tensor where the rule joins none."""
        scale, c, counts = self._weighed(max(states, key=lambda state: float(state["step"])), scale)
        for name, value in counts.items():
            for count in {id(state[name]): state[name] for state in states}.values():
                count.fill_(value)
        beta: float = self.beta  # type: ignore[assignment]
        grads: Sequence[Tensor] | Slopes = slopes if self.asks else slopes()
        room, moving = Room(), all(target is param for target, param in zip(targets, params, strict=True))
        for some in portions(params, self.rule):
            given = grads if callable(grads) else [grads[i] for i in some]
            there, paths, inner = [params[i] for i in some], [states[i]["z"] for i in some], [
                states[i]["rule"] for i in some]
            if moving:  # two passes beside the rule's own, where a step in room of its own takes four
                means = room.like(there)
                for x, y, z in zip(means, there, paths, strict=True):
                    torch.lerp(y, z, 1 - 1 / beta, out=x)
                advance(self.rule, paths, given, inner, there, scale)
                for x, y, z in zip(means, there, paths, strict=True):
                    torch.lerp(x, z, 1 - beta * (1 - c), out=y)
                continue
            steps = stepped(self.rule, given, inner, there, scale, room.like(there))
            for i, step, z in zip(some, steps, paths, strict=True):
                targets[i].add_(z - params[i], alpha=c).add_(step, alpha=1 - beta * (1 - c))
                z.add_(step)

    def to_evaluation_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Turn y into x."""
        for p, state in zip(params, states, strict=True):
            p.lerp_(state["z"], 1 - 1 / self.beta)  # type: ignore[operator]

    def to_training_(self, params: Sequence[Tensor], states: Sequence[State]) -> None:
        """Turn x into y."""
        for p, state in zip(params, states, strict=True):
            p.lerp_(state["z"], 1 - self.beta)  # type: ignore[operator]
