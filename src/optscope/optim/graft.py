"""Grafting: the length of one rule's step on the direction of another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.optim.combinator import Combinator, at_hand, known, multiple, portions
from optscope.optim.pieces import Room
from optscope.optim.rule import Gradient, Rule, Slopes, State
from optscope.optim.sign import Per, block_norms, check_per, norms_of, safe_inverse, shared
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class Graft(Combinator):
    """Step as far as `magnitude` would, where `direction` would go.

        step = ‖M‖ · D / ‖D‖                       over each layer, module, or the model; 0 where D = 0

    with M and D the two rules' steps from the same gradient and weights; each keeps its own state. Momentum
    and weight decay of a part belong to its step. Agarwal et al. 2020, arXiv 2002.11803, algorithm 1; used
    for GANs in arXiv 2210.04319.

    `lr` is the magnitude's: the direction's cancels, unless its step is not proportional to it; a schedule then
    reaches both.

    >>> from optscope.optim import SGD, Adam
    >>> Graft(magnitude=Adam(lr=0.001), direction=SGD(lr=1.0))
    Graft(magnitude=Adam(lr=0.001), direction=SGD(lr=1.0))

    Raises:
        UserError: unless per is "layer", "module" or "model".
    """

    _inner = "magnitude"

    magnitude: Rule
    direction: Rule
    per: Per = "layer"

    def __post_init__(self) -> None:
        check_per("Graft", self.per)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the states of both parts."""
        return {"magnitude": self.magnitude.init(params, layout),
                "direction": self.direction.init(params, layout)}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return ‖M‖ · D/‖D‖ and both new states."""
        (inside, outside), (turning, _) = self.magnitude.split_scale(scale), self.direction.split_scale(scale)
        gradient = known(gradient, params)
        m, m_state = self.magnitude.seek(gradient, state["magnitude"], params, layout, inside)
        d, d_state = self.direction.seek(gradient, state["direction"], params, layout, turning)
        length = block_norms(m, layout, self.per)
        step = d * (length * safe_inverse(block_norms(d, layout, self.per)))
        return step * outside, {"magnitude": m_state, "direction": d_state}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the in-place states of both parts.

        Where norms join layers, and the direction has to be made, with "scratch", room for it.
        """
        parts = zip(self.magnitude.begin(params, layout), self.direction.begin(params, layout), strict=True)
        states: list[State] = [{"magnitude": m, "direction": d} for m, d in parts]
        if self.per != "layer" and not at_hand(self.direction):
            for state, p in zip(states, params, strict=True):
                state["scratch"] = torch.zeros_like(p)
        return states

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the grafted step in place, portion by portion where nothing joins them."""
        (inside, outside), (turning, _) = self.magnitude.split_scale(scale), self.direction.split_scale(scale)
        together = [list(range(len(params)))]
        several = portions(params, self.magnitude, self.direction) if self.per == "layer" else together
        grads: Sequence[Tensor] | Slopes = slopes if self.asks else slopes()
        room = Room()

        def made(rule: Rule, name: str, factor: float, some: list[int]) -> tuple[Sequence[Tensor], float]:
            given, there = grads if callable(grads) else [grads[i] for i in some], [params[i] for i in some]
            kept = [states[i]["scratch"] for i in some if name == "direction" and "scratch" in states[i]]
            return multiple(rule, given, [states[i][name] for i in some], there, factor,
                            lambda: kept or room.like(there))  # the direction's where the magnitude's step was

        for some in several:
            lengths = []
            for part in portions([params[i] for i in some], self.magnitude):
                m, number = made(self.magnitude, "magnitude", inside, [some[i] for i in part])
                lengths.append(norms_of(m) * abs(number))
            d, number = made(self.direction, "direction", turning, some)
            factors = shared(torch.cat(lengths), self.per) * safe_inverse(shared(norms_of(d), self.per))
            sign = (number > 0) - (number < 0)
            for i, step, factor in zip(some, d, factors.unbind(), strict=True):
                targets[i].addcmul_(step, factor.expand_as(step), value=outside * sign)  # as fast as by a number
