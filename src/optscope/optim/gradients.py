"""What is done to a gradient before a rule sees it: variance reduction, noise, a clip relative to the weights."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.optim.combinator import Around, Wrapper, count_step
from optscope.optim.per_layer import layer_norm
from optscope.optim.rule import Gradient, Hyper, Rule, Slopes, State, check_hyper, per_member
from optscope.optim.sign import safe_inverse
from optscope.vector import Layout


@dataclass(frozen=True, repr=False)
class MARS(Around):
    """Correct each gradient by how it differs from the last one, before a rule averages it.

        c = g + gamma · beta/(1 − beta) · (g − h),   c ← c/max(1, ‖c‖₂) of each layer
        h ← g                                              h₀ = 0
        exact: h = this batch's gradient at the weights before the last step, which at first are these

    `MARS(AdamW(lr=3e-3, beta1=0.95, beta2=0.99))` is the authors' MARS-AdamW, with the last batch's gradient in the
    place of this batch's at the last weights ("approximate", their default); around Lion and Muon the others.
    `beta` is the rule's first. They train vectors by plain AdamW: `ByKind(matrices=MARS(...), rest=AdamW(...))`.

    With `exact` a step takes two gradients, as in their algorithm 1, and noise that does not depend on the weights
    leaves g − h. Inside ByKind only that part's weights are then those before the step.

    Yuan et al. 2024, arXiv 2411.10438, algorithms 1 and 2, and the authors' code. Their approximate h is a
    reference to the gradient, which, where gradients are zeroed in place, has become this one: here it is a copy.

    >>> from optscope.optim import AdamW
    >>> MARS(AdamW(lr=3e-3)).evaluations, MARS(AdamW(lr=3e-3), exact=True).evaluations
    (1, 2)

    Raises:
        UserError: unless gamma >= 0 and 0 <= beta < 1, and the rule takes one gradient a step.
    """

    gamma: Hyper = 0.025
    beta: Hyper = 0.95
    exact: bool = False

    def __post_init__(self) -> None:
        check_hyper("MARS", "gamma", self.gamma)
        check_hyper("MARS", "beta", self.beta, high=1.0)
        if self.rule.asks:
            raise UserError(f"MARS: its rule must take one gradient a step; got {self.rule!r}")

    @property
    def asks(self) -> bool:
        """Whether it is exact."""
        return self.exact

    @property
    def evaluations(self) -> int:
        """Two where it is exact: here, and at the weights before the last step."""
        return 2 if self.exact else 1

    def _corrected(self, grad: Tensor, last: Tensor, like: Tensor, axes: int) -> Tensor:
        gamma, beta = (per_member(value, like) for value in (self.gamma, self.beta))
        factor = gamma * beta / (1 - beta)
        if isinstance(factor, Tensor):
            factor = factor.reshape(-1, *[1] * axes)
        c = grad + factor * (grad - last)
        return c / layer_norm(c, axes).clamp(min=1.0)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the rule's state and a zero "last" gradient, or the "last" weights."""
        last = params.clone() if self.exact else torch.zeros_like(params)
        return {"rule": self.rule.init(params, layout), "last": last}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the rule's step from the corrected gradient, and the new state."""
        grad = gradient(params)
        last = gradient(state["last"]) if self.exact else state["last"]
        parts = zip(layout.views(grad), layout.views(last), layout.shapes, strict=True)
        c = torch.cat([self._corrected(g, h, params, len(shape)).reshape(*params.shape[:-1], -1)
                       for g, h, shape in parts], dim=-1)
        step, inner = self.rule.scaled_update(c, state["rule"], params, layout, scale)
        return step, {"rule": inner, "last": params if self.exact else grad}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the rule's in-place states, each with its "last" gradient or weights."""
        return [{"rule": state, "last": p.detach().clone() if self.exact else torch.zeros_like(p)}
                for state, p in zip(self.rule.begin(params, layout), params, strict=True)]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the rule's step from the corrected gradient in place."""
        grads, last = slopes(), [s["last"] for s in states]
        before = slopes([h - p for h, p in zip(last, params, strict=True)]) if self.exact else last
        corrected = [self._corrected(g, h, g, g.dim()) for g, h in zip(grads, before, strict=True)]
        for h, now in zip(last, params if self.exact else grads, strict=True):
            h.copy_(now)
        self.rule.add_step_(targets, corrected, [s["rule"] for s in states], params, scale)


@dataclass(frozen=True, repr=False)
class Noisy(Wrapper):
    """Add Gaussian noise of standard deviation `sigma` to every gradient: Langevin dynamics around SGD.

        step = the rule's from g + sigma · ξ,   ξ ~ N(0, 1)

    `Noisy(SGD(lr), sigma)` is stochastic gradient Langevin dynamics at temperature T = lr · sigma²/2 (Welling, Teh
    2011), and the noise of private training at sigma = noise multiplier · clip/batch. The numbers are a function of
    the weights it starts from, of `seed` and of the step: rules and devices get the same, other starts others.

    Raises:
        UserError: unless sigma > 0, and the rule takes one gradient a step.
    """

    sigma: Hyper
    seed: int = 0

    def __post_init__(self) -> None:
        check_hyper("Noisy", "sigma", self.sigma, open_low=True)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UserError(f"Noisy: seed must be a whole number >= 0; got {self.seed!r}")
        if self.rule.asks:
            raise UserError(f"Noisy: its rule must take one gradient a step; got {self.rule!r}")

    def _start(self, params: Tensor) -> int:
        (total,) = to_floats(params.double().sum())
        bits: int = struct.unpack("<q", struct.pack("<d", total))[0]
        return (bits ^ (self.seed * 0x9E3779B97F4A7C15)) % 2**62

    def _drawn(self, start: int, step: int, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape[-1], generator=torch.Generator().manual_seed((start + step) % 2**62),
                            dtype=like.dtype, device="cpu")
        return drawn.to(like.device)

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return the rule's state, where each member's numbers start, and the steps made."""
        starts = [self._start(member) for member in params.reshape(-1, params.shape[-1])]
        return {"rule": self.rule.init(params, layout), "start": torch.tensor(starts, device="cpu"),
                "step": torch.tensor(0.0, device="cpu")}

    def seek(self, gradient: Gradient, state: State, params: Tensor, layout: Layout,
             scale: float = 1.0) -> tuple[Tensor, State]:
        """Return the rule's step from the noisy gradient, and the new state."""
        step = int(state["step"])
        noise = torch.stack([self._drawn(start, step, params) for start in state["start"].tolist()])
        grad = gradient(params) + per_member(self.sigma, params) * noise.reshape(params.shape)
        moved, inner = self.rule.scaled_update(grad, state["rule"], params, layout, scale)
        return moved, {**state, "rule": inner, "step": state["step"] + 1}

    def begin(self, params: Sequence[Tensor], layout: Layout) -> list[State]:
        """Return the rule's in-place states; they share where the numbers start, and a count of steps."""
        start = torch.tensor(self._start(layout.flatten([p.detach() for p in params])), device="cpu")
        count = torch.tensor(0.0, device="cpu")
        return [{"rule": state, "start": start, "step": count, "place": i, "sizes": list(layout.sizes)}
                for i, state in enumerate(self.rule.begin(params, layout))]

    def seek_(self, targets: Sequence[Tensor], slopes: Slopes, states: Sequence[State], params: Sequence[Tensor],
              scale: float = 1.0) -> None:
        """Add the rule's step from the noisy gradient in place."""
        sizes = states[0]["sizes"]
        whole = self._drawn(int(states[0]["start"]), int(count_step(states)), params[0].new_zeros(sum(sizes)))
        noise = whole.split(sizes)
        noisy = [g + self.sigma * noise[s["place"]].view(g.shape)
                 for g, s in zip(slopes(), states, strict=True)]
        self.rule.add_step_(targets, noisy, [s["rule"] for s in states], params, scale)


@dataclass(frozen=True, repr=False)
class RelativeClip(Rule):
    """SGD with decay whose gradient is clipped where it is longer than those that keep the weights' length.

        w ← (1 − lr · decay) w − lr · min(1, √(2 c · decay/lr) · ‖w‖/‖g‖) · g

    with norms over all matrices and kernels of hidden layers together, which normalisations behind them make free
    of scale; heads, embeddings and vectors take plain steps of SGD without decay. For such weights ‖w‖⁴ tends to
    lr/(2 decay) times the gradient's mean square at unit norm, and a step turns them by √(2 lr · decay): with c = 1
    the clip touches only what would turn them further.

    Li, Lyu, Arora et al. 2022, arXiv 2202.00980 (their abstract gives the factor √(2 decay/lr)).

    Raises:
        UserError: unless lr > 0, decay > 0 and c > 0.
    """

    lr: Hyper
    decay: Hyper
    c: Hyper = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "decay", "c"):
            check_hyper("RelativeClip", name, getattr(self, name), open_low=True)

    @property
    def proportional(self) -> bool:
        """No: the clip depends on the rate."""
        return False

    def init(self, params: Tensor, layout: Layout) -> State:
        """Return nothing: the rule has no memory."""
        return {}

    def update(self, grad: Tensor, state: State, params: Tensor, layout: Layout) -> tuple[Tensor, State]:
        """Return the step."""
        return self.scaled_update(grad, state, params, layout, 1.0)

    def scaled_update(self, grad: Tensor, state: State, params: Tensor, layout: Layout,
                      scale: float) -> tuple[Tensor, State]:
        """Return the step at `scale` times the rate."""
        lr, decay = scale * per_member(self.lr, grad), per_member(self.decay, grad)
        hidden = torch.tensor([kind in ("matrix", "convolution") for kind in layout.kinds], device=grad.device)
        free = layout.spread(hidden.to(grad.dtype))
        weights, length = (torch.linalg.vector_norm(x * free, dim=-1, keepdim=True) for x in (params, grad))
        longest = (2 * per_member(self.c, grad) * decay * lr) ** 0.5 * weights * safe_inverse(length)
        clipped = torch.where(length > 0, longest.clamp(max=lr), torch.zeros_like(longest))
        return -grad * (lr + (clipped - lr) * free) - lr * decay * free * params, state
