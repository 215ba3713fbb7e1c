"""One conformance table over every rule: a new rule is one more row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_optimizer as zoo
import torch
from scipy.linalg import inv, sqrtm
from torch import Tensor, nn

import optscope.optim as optim
from optscope.errors import UserError
from optscope.optim import (
    LAMB,
    LARS,
    MARS,
    PNM,
    SAM,
    SGD,
    SOAP,
    SVAG,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    AdaPNM,
    AdaRem,
    AdEMAMix,
    ByKind,
    Constant,
    Cosine,
    DAdaptAdam,
    DAdaptSGD,
    Decayed,
    Extrapolated,
    Foreign,
    GradientPenalty,
    Graft,
    ImplicitSGD,
    LaMAdam,
    Linear,
    Lion,
    MAdam,
    Momentum,
    Muon,
    NAdam,
    Noisy,
    NormalizedSGD,
    PolarSGD,
    Prodigy,
    RelativeClip,
    RMSProp,
    Rounded,
    Rule,
    Schedule,
    Scheduled,
    ScheduleFree,
    Shampoo,
    SignSGD,
    StepDecay,
)
from optscope.optim.muon import orthogonalized
from optscope.optim.rates import Rates
from optscope.optim.symmetric import symmetric
from optscope.optim.torch_bridge import optimizer_for
from optscope.vector import Layout

STEPS = 25


class Row(NamedTuple):
    rule: Rule
    torch_twin: Callable[[Any], torch.optim.Optimizer] | None = None
    atol: float = 1e-12


class SignTwin(torch.optim.Optimizer):
    """The obvious sign descent, for `Foreign` and as the twin of `SignSGD`."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()


class SquareTwin(SignTwin):
    """Descent at the square of its rate, so that nothing but its own rate under a schedule makes its steps."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= 100 * group["lr"] ** 2 * p.grad


class HalvingTwin(SignTwin):
    """Descent that makes its own rate smaller at every step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad
            group["lr"] *= 0.9


class SAMTwin(torch.optim.Optimizer):
    """Sharpness-aware minimisation around torch's SGD with momentum, as one writes it."""

    def __init__(self, params, lr, rho):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)

    @torch.no_grad()
    def step(self, closure):
        group = self.param_groups[0]
        norm = torch.cat([p.grad.reshape(-1) for p in group["params"]]).norm()
        shifts = [group["rho"] * p.grad / norm for p in group["params"]]
        for p, shift in zip(group["params"], shifts, strict=True):
            p += shift
        closure()
        for p, shift in zip(group["params"], shifts, strict=True):
            p -= shift
        self.inner.step()


class MARSTwin(torch.optim.Optimizer):
    """The exact MARS around torch's AdamW, as one writes it."""

    def __init__(self, params, lr, decay):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.AdamW(self.param_groups, lr=lr, betas=(0.95, 0.99), weight_decay=decay)
        self.past = None

    @torch.no_grad()
    def step(self, closure):
        params = self.param_groups[0]["params"]
        now, grads = [p.clone() for p in params], [p.grad for p in params]
        for p, past in zip(params, self.past or now, strict=True):
            p.copy_(past)
        closure()
        for p, weights, grad in zip(params, now, grads, strict=True):
            p.copy_(weights)
            c = grad + 0.025 * 0.95 / (1 - 0.95) * (grad - p.grad)
            p.grad = c / c.norm() if c.norm() > 1 else c
        self.past = now
        self.inner.step()


class ScheduleFreeTwin(torch.optim.Optimizer):
    """Schedule-free AdamW with three sequences, as in equations 4 to 6 of arXiv 2405.15682."""

    def __init__(self, params, lr, decay, warmup, beta=0.9, beta2=0.999):
        super().__init__(params, {"lr": lr})
        self.decay, self.warmup, self.beta, self.beta2 = decay, warmup, beta, beta2
        self.t, self.weights = 0, []

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        lr = self.param_groups[0]["lr"] * min(1, self.t / self.warmup)
        self.weights.append(max(lr, *(w**0.5 for w in self.weights), 0.0) ** 2)
        c = self.weights[-1] / sum(self.weights)
        for p in self.param_groups[0]["params"]:
            state = self.state[p] or {"z": p.clone(), "x": p.clone(), "v": torch.zeros_like(p)}
            self.state[p] = state
            state["v"] = self.beta2 * state["v"] + (1 - self.beta2) * p.grad**2
            d = p.grad / ((state["v"] / (1 - self.beta2**self.t)).sqrt() + 1e-8) + self.decay * p
            state["z"] = state["z"] - lr * d
            state["x"] = (1 - c) * state["x"] + c * state["z"]
            p.copy_((1 - self.beta) * state["z"] + self.beta * state["x"])


class MuonTwin(torch.optim.Optimizer):
    """Muon of matrices and kernels from the singular value decomposition; of vectors SGD.

    The polynomial acts on the singular values alone, so no product of matrices is the rule's.
    """

    def __init__(self, params, lr, decay=0.0, momentum=0.95):
        super().__init__(params, {"lr": lr})
        self.decay, self.momentum = decay, momentum

    @torch.no_grad()
    def step(self, closure=None):
        lr = self.param_groups[0]["lr"]
        for p in self.param_groups[0]["params"]:
            if p.ndim < 2:
                p -= lr * p.grad
                continue
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            m.mul_(self.momentum).add_(p.grad, alpha=1 - self.momentum)
            u, s, v = torch.linalg.svd(((1 - self.momentum) * p.grad + self.momentum * m).flatten(1),
                                       full_matrices=False)
            s = s / s.norm()
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            length = max(1, u.shape[0] / v.shape[1]) ** 0.5
            p.sub_(lr * (length * (u * s @ v).view_as(p) + self.decay * p))


class TrustTwin(torch.optim.Optimizer):
    """LARS, or (adam) LAMB, layer by layer, as one writes them."""

    def __init__(self, params, lr, decay, adam=False):
        super().__init__(params, {"lr": lr})
        self.decay, self.adam, self.t = decay, adam, 0

    @torch.no_grad()
    def step(self, closure=None):
        lr, self.t = self.param_groups[0]["lr"], self.t + 1
        for p in self.param_groups[0]["params"]:
            m = self.state[p].setdefault("m", torch.zeros_like(p))
            v = self.state[p].setdefault("v", torch.zeros_like(p))
            if self.adam:
                m.mul_(0.9).add_(0.1 * p.grad)
                v.mul_(0.999).add_(0.001 * p.grad**2)
                u = m / (1 - 0.9**self.t) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-6) + self.decay * p
                p.sub_(lr * (p.norm() / u.norm() if p.ndim > 1 else 1.0) * u)
            else:
                u = p.grad
                if p.ndim > 1:
                    u = 0.02 * p.norm() / (u.norm() + self.decay * p.norm()) * (u + self.decay * p)
                p.sub_(lr * m.mul_(0.9).add_(u))


class ShampooTwin(torch.optim.Optimizer):
    """Shampoo by scipy's roots of matrices."""

    def __init__(self, params, lr, every):
        super().__init__(params, {"lr": lr})
        self.every, self.t = every, 0

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            g, state = p.grad.reshape(p.shape[0], -1) if p.ndim > 1 else p.grad, self.state[p]
            if p.ndim < 2:
                state["s"] = state.get("s", 0.1) + g**2
                along = g / state["s"].sqrt()
            else:
                sums = state.setdefault("sums", [0.1 * torch.eye(n, dtype=p.dtype) for n in g.shape])
                for each, x in zip(sums, (g, g.T), strict=True):
                    each += x @ x.T
                if self.t % self.every == 0:
                    state["roots"] = [torch.tensor(inv(sqrtm(sqrtm(each.numpy()))).real) for each in sums]
                along = state["roots"][0] @ g @ state["roots"][1]
            p.sub_(self.param_groups[0]["lr"] * along.reshape(p.shape))
        self.t += 1


class SOAPTwin(torch.optim.Optimizer):
    """SOAP with a matrix's sides as one Kronecker product, which turns its flattened gradient."""

    def __init__(self, params, lr, decay, every, largest=99):
        super().__init__(params, {"lr": lr})
        self.decay, self.every, self.largest, self.t = decay, every, largest, -1

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for p in self.param_groups[0]["params"]:
            g, state = p.grad.reshape(p.shape[0] if p.ndim else 1, -1), self.state[p]
            sides = [i for i in range(2) if p.ndim > 1 and g.shape[i] <= self.largest]
            if self.t == 0:
                state.update(m=torch.zeros_like(g), v=torch.zeros(g.numel(), dtype=g.dtype),
                             sums=[0, 0], bases=[torch.eye(n, dtype=g.dtype) for n in g.shape])
            else:
                turn = torch.kron(*(basis.contiguous() for basis in state["bases"]))
                state["m"] = 0.95 * state["m"] + 0.05 * g
                state["v"] = 0.95 * state["v"] + 0.05 * (turn.T @ g.reshape(-1)) ** 2
                size = (state["v"] / (1 - 0.95**self.t)).sqrt() + 1e-8
                along = turn @ (turn.T @ state["m"].reshape(-1) / (1 - 0.95**self.t) / size)
                p.sub_(self.param_groups[0]["lr"] * (along.view_as(p) + self.decay * p))
            for i in sides:
                x = g if i == 0 else g.T
                state["sums"][i] = 0.95 * state["sums"][i] + 0.05 * x @ x.T
                if self.t == 0:
                    state["bases"][i] = torch.linalg.eigh(state["sums"][i]).eigenvectors.flip(1)
                elif self.t % self.every == 0:
                    basis = state["bases"][i]
                    order = torch.diag(basis.T @ state["sums"][i] @ basis).argsort(descending=True)
                    state["bases"][i] = torch.linalg.qr(state["sums"][i] @ basis[:, order]).Q
                    state["v"] = state["v"].reshape(g.shape).index_select(i, order).reshape(-1)


class AdafactorTwin(torch.optim.Optimizer):
    """torch's Adafactor of kernels as matrices, with an eps1 that is too small to matter."""

    def __init__(self, params, lr, **options):
        super().__init__(params, {"lr": lr})
        self.seen = [nn.Parameter(p.detach().flatten(1) if p.ndim > 1 else p.detach())
                     for p in self.param_groups[0]["params"]]  # the same numbers in memory
        self.inner = T.Adafactor(self.seen, lr=lr, **options)

    def step(self, closure=None):
        for p, seen in zip(self.param_groups[0]["params"], self.seen, strict=True):
            seen.grad = p.grad.view_as(seen)
        self.inner.step()


class AdaRemTwin(torch.optim.Optimizer):
    """AdaRem as the page has it, number by number."""

    def __init__(self, params, lr, decay):
        super().__init__(params, {"lr": lr})
        self.decay, self.t = decay, 0

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            e = self.state[p].setdefault("e", torch.zeros_like(p))
            b = p.grad.sign() * e / (e.abs().max() + 1e-8)
            p.sub_(self.param_groups[0]["lr"] * ((1 + 0.999**self.t * b) * p.grad + self.decay * p))
            e.mul_(0.9).add_(0.1 * p.grad)
        self.t += 1


class LaMAdamTwin(torch.optim.Optimizer):
    """LaMAdam in numpy, from normalised averages of the gradient and its square."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.t = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for p in self.param_groups[0]["params"]:
            g, state = p.grad.numpy(), self.state[p]
            mean, square, w, m = state.get("kept", (0 * g, 0 * g, 0 * g, 0 * g))
            variance, off = np.maximum(square - mean**2, 0), (g - mean) ** 2
            best = (off + variance) / (w * (off - variance) + off + variance + 1e-16)
            best = np.clip(best, 0.5, 0.98) if self.t > 1 else 0.98 + 0 * g
            total = best * w + 1 - best
            mean = (best * w * mean + (1 - best) * g) / total
            square = (best * w * square + (1 - best) * g**2) / total
            m = 0.9 * m + 0.1 * g / (np.sqrt(square) + 1e-15)
            state["kept"] = mean, square, total, m
            p.sub_(torch.tensor(self.param_groups[0]["lr"] * m / (1 - 0.9**self.t)))


class FlatTwin(torch.optim.Optimizer):
    """An optimiser of all weights as one numpy vector, as papers write it: `moved(w, g)` is where they go."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})
        self.lr, self.w0 = lr, None

    @torch.no_grad()
    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        w = np.concatenate([p.numpy().reshape(-1) for p in params])
        if self.w0 is None:
            self.w0, self.m, self.v, self.s = w, 0 * w, 0 * w, 0 * w
        there = self.moved(w, np.concatenate([p.grad.numpy().reshape(-1) for p in params]))
        for p, part in zip(params, torch.tensor(there).split([p.numel() for p in params]), strict=True):
            p.copy_(part.view_as(p))


class ProdigyTwin(FlatTwin):
    """Algorithm 4 of arXiv 2306.06101, each sum over all steps anew."""

    def __init__(self, params, lr, d0, beta1, beta2, decay):
        super().__init__(params, lr)
        self.d0, self.beta1, self.beta2, self.decay = d0, beta1, beta2, decay
        self.d, self.past = d0, []

    def moved(self, w, g):
        d, root = self.d, self.beta2**0.5
        self.past.append((d**2 / self.d0 * self.lr, g, w))
        ages = range(len(self.past) - 1, -1, -1)
        r = sum(root**age * c * (g @ (self.w0 - w)) for age, (c, g, w) in zip(ages, self.past, strict=True))
        s = sum(root**age * c * g for age, (c, g, _) in zip(ages, self.past, strict=True))
        self.d = max(d, r / np.abs(s).sum())
        self.m = self.beta1 * self.m + (1 - self.beta1) * d * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * d**2 * g**2
        return w - self.lr * d * (self.m / (np.sqrt(self.v) + self.d * 1e-8) + self.decay * w)


class DAdaptSGDTwin(FlatTwin):
    """SGD with D-Adaptation of arXiv 2301.07733, with momentum as a mean of z."""

    def __init__(self, params, lr, d0, momentum):
        super().__init__(params, lr)
        self.d, self.momentum, self.first, self.sum = d0, momentum, None, 0.0

    def moved(self, w, g):
        self.first = self.first or np.linalg.norm(g)
        rate = self.d * self.lr / self.first
        self.sum += rate * (g @ self.s)
        self.s = self.s + rate * g
        self.d = max(self.d, 2 * self.sum / np.linalg.norm(self.s))
        return self.momentum * w + (1 - self.momentum) * (self.w0 - self.s)


class DAdaptAdamTwin(FlatTwin):
    """Adam with D-Adaptation of arXiv 2301.07733."""

    def __init__(self, params, lr, d0, beta1, beta2, decay):
        super().__init__(params, lr)
        self.d, self.beta1, self.beta2, self.decay, self.r = d0, beta1, beta2, decay, 0.0

    def moved(self, w, g):
        rate, root = self.d * self.lr, self.beta2**0.5
        self.r = root * self.r + (1 - root) * rate * (g @ (self.s / (np.sqrt(self.v) + 1e-8)))
        self.m = self.beta1 * self.m + (1 - self.beta1) * rate * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.s = root * self.s + (1 - root) * rate * g
        self.d = max(self.d, self.r / ((1 - root) * np.abs(self.s).sum()))
        return (1 - rate * self.decay) * w - self.m / (np.sqrt(self.v) + 1e-8)


def sorted_adam(params, lr=0.01):
    """Adam in two groups, the last parameters first, each with numbers of its own."""
    params = list(params)
    groups = [{"params": params[1:]}, {"params": params[:1], "betas": (0.5, 0.9)}]
    return torch.optim.Adam(groups[:len(params)] if len(params) > 1 else params, lr=lr)


class split_by_hand(torch.optim.Optimizer):  # noqa: N801
    """Matrices and kernels by SGD; vectors by Adam without decay."""

    def __init__(self, params):
        params = list(params)
        super().__init__(params, {"lr": 0.05})
        self.both = (torch.optim.SGD([p for p in params if p.ndim > 1], lr=0.05, momentum=0.9),
                     torch.optim.AdamW([p for p in params if p.ndim < 2], lr=0.01, weight_decay=0.0))

    def step(self, closure=None):
        for each in self.both:
            each.step()


T = torch.optim
ROWS = [
    Row(SGD(lr=0.05), lambda p: T.SGD(p, lr=0.05)),
    Row(SGD(lr=0.05, momentum=0.9), lambda p: T.SGD(p, lr=0.05, momentum=0.9)),
    Row(SGD(lr=0.05, momentum=0.9, nesterov=True), lambda p: T.SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
    Row(Momentum(lr=0.5), lambda p: T.SGD(p, lr=0.05, momentum=0.9)),
    Row(Momentum(lr=0.05, beta=0.0), lambda p: T.SGD(p, lr=0.05)),
    Row(SVAG(Momentum(lr=0.5), level=3)),
    Row(SVAG(Decayed(Adam(lr=0.01), decay=0.1), level=2)),
    Row(SignSGD(lr=0.01), SignTwin),
    Row(NormalizedSGD(lr=0.01)),
    Row(NormalizedSGD(lr=0.01, per="model")),
    Row(NormalizedSGD(lr=0.01, per="module")),
    Row(NormalizedSGD(lr=0.01, rms=True)),
    Row(NormalizedSGD(lr=0.01, per="model", rms=True)),
    Row(PolarSGD(lr=0.05)),
    Row(PolarSGD(lr=0.05, ratio=2.0, per="layer")),
    Row(Decayed(PolarSGD(lr=0.05, per="layer"), decay=0.1)),
    Row(RMSProp(lr=0.01), lambda p: T.RMSprop(p, lr=0.01)),
    Row(RMSProp(lr=0.01, alpha=0.9, eps=1e-4), lambda p: T.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-4)),
    Row(Adam(lr=0.01), lambda p: T.Adam(p, lr=0.01)),
    Row(Adam(lr=0.01, beta1=0.5, beta2=0.9, eps=1e-3),
        lambda p: T.Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-3)),
    Row(AdamW(lr=0.01, decay=0.1), lambda p: T.AdamW(p, lr=0.01, weight_decay=0.1)),
    Row(Decayed(SGD(lr=0.05, momentum=0.9), decay=0.1),
        lambda p: T.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1)),
    Row(Decayed(Adam(lr=0.01), decay=0.1), lambda p: T.Adam(p, lr=0.01, weight_decay=0.1)),
    Row(Graft(Adam(lr=0.01), SGD(lr=1.0))),
    Row(Graft(SGD(lr=0.05, momentum=0.9), Adam(lr=1.0), per="model")),
    Row(Graft(Adam(lr=0.01), SGD(lr=1.0), per="module")),
    Row(Graft(SGD(lr=0.05), SGD(lr=1.0, momentum=0.9, nesterov=True), per="model")),
    Row(Graft(SGD(lr=0.05, momentum=0.5), SGD(lr=1.0, momentum=0.9))),
    Row(Graft(AdamW(lr=0.01), Foreign("torch.optim:NAdam", lr=0.1))),
    Row(Graft(Adam(lr=0.01), Adam(lr=0.5)), lambda p: T.Adam(p, lr=0.01)),
    Row(Scheduled(Adam(lr=0.01), StepDecay(at=(0.5,), factor=0.1), steps=STEPS)),
    Row(Scheduled(Graft(RMSProp(lr=0.01), SignSGD(lr=1.0)), Cosine(warmup=0.2), steps=STEPS)),
    Row(Rounded(SGD(lr=0.05, momentum=0.9), k=3), lambda p: T.SGD(p, lr=0.05, momentum=0.9)),
    Row(Rounded(Scheduled(AdamW(lr=0.01), Cosine(), steps=STEPS), k=7, steps=10)),
    Row(Rounded(Foreign("torch.optim:NAdam", lr=0.01), k=5), lambda p: T.NAdam(p, lr=0.01)),
    Row(Foreign("torch.optim:RAdam", lr=0.01), lambda p: T.RAdam(p, lr=0.01)),
    Row(Foreign(SignTwin, lr=0.02), lambda p: SignTwin(p, lr=0.02)),
    Row(Foreign(SquareTwin, lr=0.02), lambda p: SquareTwin(p, lr=0.02)),
    Row(Foreign(HalvingTwin, lr=0.1), lambda p: HalvingTwin(p, lr=0.1)),
    Row(Foreign("torch.optim:Rprop", lr=0.01, step_sizes=(0.0, 50.0)),
        lambda p: T.Rprop(p, lr=0.01, step_sizes=(0.0, 50.0))),
    Row(Foreign(sorted_adam, lr=0.02), lambda p: sorted_adam(p, lr=0.02)),
    Row(SAM(SGD(lr=0.05, momentum=0.9), rho=0.1), lambda p: SAMTwin(p, lr=0.05, rho=0.1)),
    Row(SAM(Decayed(Adam(lr=0.01), decay=0.1))),
    Row(Graft(SAM(SGD(lr=0.05)), Adam(lr=1.0))),
    Row(ScheduleFree(AdamW(lr=0.01, beta1=0.0, decay=0.1), warmup=5),
        lambda p: ScheduleFreeTwin(p, lr=0.01, decay=0.1, warmup=5)),
    Row(ScheduleFree(SGD(lr=0.05), beta=0.8)),
    Row(ByKind(matrices=SGD(lr=0.05, momentum=0.9), rest=AdamW(lr=0.01, decay=0.1)), split_by_hand),
    Row(ByKind(matrices=SAM(SGD(lr=0.05)), rest=ScheduleFree(SGD(lr=0.01)))),
    Row(ByKind(matrices=Muon(lr=0.05, decay=0.1), rest=SGD(lr=0.05)), lambda p: MuonTwin(p, lr=0.05, decay=0.1)),
    Row(ByKind(matrices=Muon(lr=0.05, nesterov=False, length="match_rms_adamw"), rest=AdamW(lr=0.01))),
    Row(Lion(lr=0.01, decay=0.1), lambda p: zoo.Lion(p, lr=0.01, weight_decay=0.1)),
    Row(Adagrad(lr=0.05), lambda p: T.Adagrad(p, lr=0.05)),
    Row(NAdam(lr=0.01, decay=0.1), lambda p: T.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
        1e-9),  # torch 2.13 keeps the product of momenta in float32
    Row(Adafactor(lr=0.05, exponent=0.5, clip=1.5, eps2=2.0), lambda p: AdafactorTwin(
        p, lr=0.05, beta2_decay=-0.5, d=1.5, eps=(1e-30, 2.0))),
    Row(Adafactor(lr=0.5), lambda p: AdafactorTwin(p, lr=0.5, eps=(1e-30, 1e-3)), 1e-8),  # at this rate chaotic
    Row(AdEMAMix(lr=0.01, decay=0.1), lambda p: zoo.AdEMAMix(p, lr=0.01, weight_decay=0.1, weight_decouple=True)),
    Row(AdEMAMix(lr=0.01, alpha=3.0, warmup=20),
        lambda p: zoo.AdEMAMix(p, lr=0.01, weight_decay=0.0, alpha=3.0, t_alpha_beta3=20)),
    Row(LARS(lr=1.0, trust=0.02, decay=0.1), lambda p: TrustTwin(p, lr=1.0, decay=0.1)),
    Row(LAMB(lr=0.02, decay=0.1), lambda p: TrustTwin(p, lr=0.02, decay=0.1, adam=True)),
    Row(Shampoo(lr=0.05, eps=0.1), lambda p: ShampooTwin(p, lr=0.05, every=1)),
    Row(Shampoo(lr=0.05, eps=0.1, every=4), lambda p: ShampooTwin(p, lr=0.05, every=4)),
    Row(Graft(Adam(lr=0.01), Shampoo(lr=1.0, eps=0.1))),
    Row(SOAP(lr=0.01, decay=0.1, every=3, largest=3),
        lambda p: SOAPTwin(p, lr=0.01, decay=0.1, every=3, largest=3)),
    Row(PNM(lr=0.05, decay=0.1), lambda p: zoo.PNM(p, lr=0.05, betas=(0.9, 1.0), weight_decay=0.1)),
    Row(PNM(lr=0.05, negative=0.5)),
    Row(AdaPNM(lr=0.01, decay=0.1), lambda p: zoo.AdaPNM(p, lr=0.01, weight_decay=0.1), 1e-6),  # eps elsewhere
    Row(AdaRem(lr=0.05, decay=0.1), lambda p: AdaRemTwin(p, lr=0.05, decay=0.1)),
    Row(MAdam(lr=0.01, low=0.999), lambda p: T.Adam(p, lr=0.01)),
    Row(MAdam(lr=0.01, decay=0.1)),
    Row(LaMAdam(lr=0.01), lambda p: LaMAdamTwin(p, lr=0.01)),
    Row(MARS(AdamW(lr=0.01, beta1=0.95, beta2=0.99, decay=0.1)), lambda p: zoo.MARS(
        p, lr=0.01, weight_decay=0.1, optimize_1d=True), 1e-6),  # eps elsewhere
    Row(MARS(AdamW(lr=0.01, beta1=0.95, beta2=0.99, decay=0.1), exact=True),
        lambda p: MARSTwin(p, lr=0.01, decay=0.1)),
    Row(Noisy(SGD(lr=0.05), sigma=0.3)),
    Row(Noisy(Adam(lr=0.01), sigma=0.3, seed=2)),
    Row(RelativeClip(lr=0.05, decay=0.1)),
    Row(Prodigy(lr=0.5, d0=1e-3, decay=0.1), lambda p: zoo.Prodigy(p, lr=0.5, d0=1e-3, weight_decay=0.1), 1e-6),
    Row(Prodigy(lr=0.5, beta1=0.8, beta2=0.99, decay=0.1, d0=0.01),
        lambda p: ProdigyTwin(p, lr=0.5, d0=0.01, beta1=0.8, beta2=0.99, decay=0.1)),
    Row(DAdaptSGD(lr=0.5, momentum=0.8, d0=0.1), lambda p: DAdaptSGDTwin(p, lr=0.5, d0=0.1, momentum=0.8)),
    Row(Decayed(DAdaptSGD(d0=0.03), decay=0.1)),
    Row(DAdaptAdam(lr=0.5, beta1=0.8, beta2=0.99, decay=0.1, d0=1e-3),
        lambda p: DAdaptAdamTwin(p, lr=0.5, d0=1e-3, beta1=0.8, beta2=0.99, decay=0.1)),
    Row(Extrapolated(SGD(lr=0.05), ahead=0.1)),
    Row(GradientPenalty(SGD(lr=0.05, momentum=0.9), weight=0.02)),
    Row(ImplicitSGD(lr=0.1, gradients=2)),
    Row(Scheduled(PolarSGD(lr=0.05), StepDecay(at=(0.5,), factor=0.1), steps=STEPS)),
]
rules = pytest.mark.parametrize("rule", [row.rule for row in ROWS], ids=repr)


def tensors(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Layers of several shapes: a matrix, a vector, a scalar, a convolution kernel."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
            for shape in [(4, 3), (3,), (), (2, 2, 3, 3)]]


def gradient(params: Tensor, t: int) -> Tensor:
    """A deterministic, noisy, non-quadratic gradient, with one coordinate that is always zero."""
    g = torch.sin(3 * params + t) + 0.3 * params
    return torch.cat([g[..., :-1], torch.zeros_like(g[..., -1:])], dim=-1)


def run_pure(rule: Rule, params: Tensor, layout: Layout, steps: int = STEPS) -> Tensor:
    state = rule.init(params, layout)
    for t in range(steps):
        step, state = rule.seek(partial(gradient, t=t), state, params, layout)
        params = params + step
    return params


def made(rule: Rule) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimiser of tensors that are known by their shapes alone."""
    return (lambda params: optimizer_for(params, rule)) if rule.needs_model else rule.optimizer


def give(params: list[nn.Parameter], layout: Layout, t: int) -> None:
    """Give the parameters the gradient where they are."""
    flat = layout.flatten([p.detach() for p in params])
    for p, g in zip(params, layout.views(gradient(flat, t)), strict=True):
        p.grad = torch.empty_like(p).copy_(g)


def run_optimizer(make: Callable[[Any], torch.optim.Optimizer], start: list[Tensor],
                  steps: int = STEPS) -> Tensor:
    layout = Layout.of(start)
    params = [nn.Parameter(t.clone()) for t in start]
    optimizer = make(params)
    for t in range(steps):
        give(params, layout, t)
        optimizer.step(partial(give, params, layout, t))
    return layout.flatten([p.detach() for p in params])


@pytest.mark.parametrize("row", [row for row in ROWS if row.torch_twin], ids=lambda row: repr(row.rule))
def test_equals_its_torch_twin_in_float64(row):
    start = tensors()
    layout = Layout.of(start)
    twin = run_optimizer(row.torch_twin, start)
    assert (twin - layout.flatten(start)).abs().max() > 1e-3
    torch.testing.assert_close(run_pure(row.rule, layout.flatten(start), layout), twin, rtol=0, atol=row.atol)


@rules
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_in_place_path_equals_pure_path(rule, dtype, atol):
    start = tensors(dtype=dtype)
    layout = Layout.of(start)
    pure = run_pure(rule, layout.flatten(start), layout)
    torch.testing.assert_close(run_optimizer(made(rule), start), pure, rtol=0, atol=atol)


@pytest.mark.parametrize("rule", [SignSGD(lr=0.01), Lion(lr=0.01, decay=0.1), AdEMAMix(lr=0.01, decay=0.1),
                                  NAdam(lr=0.01, decay=0.1), Adagrad(lr=0.01)], ids=repr)
def test_steps_are_the_same_in_chunks(rule, monkeypatch):
    whole = run_optimizer(rule.optimizer, tensors())
    monkeypatch.setattr("optscope.optim.pieces.CHUNK", 5)
    assert torch.equal(run_optimizer(rule.optimizer, tensors()), whole)


@pytest.mark.parametrize("rule", [
    Graft(Adam(lr=0.01), SGD(lr=1.0, momentum=0.9)), Graft(Adam(lr=0.01), SGD(lr=1.0), per="model"),
    Graft(NormalizedSGD(lr=0.01), Lion(lr=1.0)), ScheduleFree(AdamW(lr=0.01, beta1=0.0, decay=0.1)),
    Graft(ScheduleFree(SGD(lr=0.1)), Adam(lr=1.0)),
], ids=repr)
def test_combinators_step_the_same_in_portions(rule, monkeypatch):
    """Of a few numbers each, in several precisions and with a kernel whose channels come last."""
    def run():
        start = [t.to(dtype) for dtype in (torch.float32, torch.float64) for t in tensors()]
        start = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in start]
        return run_optimizer(rule.optimizer, start)
    whole = run()
    monkeypatch.setattr("optscope.optim.combinator.PORTION", 5)
    torch.testing.assert_close(run(), whole, rtol=0, atol=1e-6)  # norms of several precisions round to the highest


@pytest.mark.parametrize(("rule", "twin"), [
    (AdamW(lr=0.01, decay=0.1), lambda p: T.AdamW(p, lr=0.01, weight_decay=0.1, fused=True)),
    (SGD(lr=0.05, momentum=0.9, nesterov=True),
     lambda p: T.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True)),
    (SGD(lr=0.05), lambda p: T.SGD(p, lr=0.05, fused=True)),
], ids=["AdamW", "Nesterov", "SGD"])
def test_fused_kernels_have_torchs_bits_in_several_precisions(rule, twin):
    start = [t.to(dtype) for dtype in (torch.float32, torch.float64) for t in tensors()]
    assert torch.equal(run_optimizer(rule.optimizer, start), run_optimizer(twin, start))


@rules
def test_step_added_to_zeros_is_the_step(rule):
    params, grads = tensors(1), tensors(2)
    layout = Layout.of(params)
    flat, grad = layout.flatten(params), layout.flatten(grads)

    def slope(weights):
        return grad + weights - flat

    def slopes(shifts=None):
        return grads if shifts is None else [g + shift for g, shift in zip(grads, shifts, strict=True)]
    step, _ = rule.seek(slope, rule.init(flat, layout), flat, layout)
    if rule.proportional:
        expected = 0.5 * step
    else:
        halved = rule.with_(lr=rule.lr / 2)
        expected, _ = halved.seek(slope, halved.init(flat, layout), flat, layout)
    zeros = [torch.zeros_like(p) for p in params]
    rule.seek_(zeros, slopes, rule.begin(params, layout), params, scale=0.5)
    torch.testing.assert_close(layout.flatten(zeros), expected, rtol=0, atol=1e-13)


@rules
def test_update_changes_no_input_and_draws_no_random_number(rule):
    layout = Layout.of(tensors())
    params, grad = layout.flatten(tensors(1)), layout.flatten(tensors(2))
    _, state = rule.seek(lambda _: grad, rule.init(params, layout), params, layout)
    before = copy.deepcopy((params, grad, state))
    rng = torch.get_rng_state()
    rule.seek(lambda _: grad, state, params, layout)
    assert torch.equal(torch.get_rng_state(), rng)
    assert same((params, grad, state), before)


@rules
def test_members_on_the_leading_axis_equal_separate_runs(rule):
    layout = Layout.of(tensors())
    members = torch.stack([layout.flatten(tensors(seed)) for seed in range(3)])
    together = run_pure(rule, members, layout)
    apart = torch.stack([run_pure(rule, member, layout) for member in members])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_in_bfloat16_is_torchs_to_its_rounding(length, nesterov):
    shapes = (12, 5), (5, 12), (12, 5), (7, 7)
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    rule = Muon(lr=0.05, decay=0.1, nesterov=nesterov, length=length, precision="bfloat16")
    theirs = run_optimizer(lambda p: T.Muon(p, lr=0.05, nesterov=nesterov, adjust_lr_fn=length), start, steps=3)
    ours = run_optimizer(rule.optimizer, start, steps=3)
    moved = float((theirs - Layout.of(start).flatten(start)).norm())
    assert float((ours - theirs).norm()) < 2**-7 * moved  # products of many matrices at once round otherwise
    exact = run_optimizer(rule.with_(precision=None).optimizer, start, steps=3)
    assert float((exact - theirs).norm()) > float((ours - theirs).norm())


SPECTRA = {"even": torch.ones, "power": lambda k: 1 / torch.arange(1, k + 1),
           "one": lambda k: 1e-3 + torch.eye(k)[0], "rank": lambda k: (torch.arange(k) < k / 4).float(),
           "decay": lambda k: torch.logspace(0, -8, k)}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (256, 300)])
def test_newton_schulz_in_float32_is_as_exact_as_plain_iterations(shape, spectrum):
    """Against the polynomial of singular values in float64; long matrices go in pairs, large ones by halves."""
    a, b, c = 3.4445, -4.7750, 2.0315
    draw, k = torch.Generator().manual_seed(0), min(shape)
    u, v = (torch.linalg.qr(torch.randn(n, k, generator=draw).double()).Q for n in shape)
    given = (u * SPECTRA[spectrum](k).double() @ v.T).float()
    left, s, right = torch.linalg.svd(given.double(), full_matrices=False)
    s, plain = s / s.norm(), given / given.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
        gram = plain @ plain.T
        plain = a * plain + (b * gram + c * gram @ gram) @ plain
    error, allowed = (float((x - left * s @ right).norm() / s.norm()) for x in (orthogonalized(given), plain))
    assert error < max(1.3 * allowed, 4e-6)
    assert torch.equal(orthogonalized(torch.stack([given, 2 * given]))[1], orthogonalized(given))


@pytest.mark.parametrize("rule", [Muon(lr=0.05, decay=0.1), SOAP(lr=0.01, decay=0.1, every=2, largest=200),
                                  Shampoo(lr=0.05, eps=0.1, every=2)], ids=repr)
def test_in_place_path_equals_pure_path_of_large_matrices(rule):
    """Of which it takes half of each symmetric product, wide and tall."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((130, 600), (600, 130))]
    layout = Layout.of(start)
    pure = run_pure(rule, layout.flatten(start), layout, steps=4)
    assert (pure - layout.flatten(start)).abs().max() > 1e-3
    torch.testing.assert_close(run_optimizer(rule.optimizer, start, steps=4), pure, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [130, 192, 200])
def test_half_a_symmetric_product_is_all_of_it(n, monkeypatch):
    x = torch.randn(2, n, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = x.new_empty(2, n, n)
    for a, b in ((x, x.mT), (x.mT.contiguous().mT, x.mT)):
        torch.testing.assert_close(symmetric(a, b, out), x @ x.mT, rtol=0, atol=1e-11)
    gram = out / n
    monkeypatch.setattr("optscope.optim.symmetric.LARGE", 0)
    expected = 0.5 * gram @ gram - 2 * gram
    torch.testing.assert_close(symmetric(gram, gram, out, gram, alpha=0.5, beta=-2.0), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(symmetric(x, x.mT, gram, gram, alpha=0.5, beta=n), x @ x.mT * 1.5, rtol=0, atol=1e-9)


def test_muon_refuses_vectors_by_name():
    with pytest.raises(UserError, match=r"'bias' of shape .3,. is none: write ByKind"):
        Muon(lr=0.1).optimizer_of(nn.Linear(4, 3))


def test_soap_turns_both_sides():
    """Of a square matrix, whose products have full rank: else rounding chooses among eigenvectors of 0."""
    start = [torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()]
    rule = SOAP(lr=0.01, decay=0.1, every=3)
    twin = run_optimizer(lambda p: SOAPTwin(p, lr=0.01, decay=0.1, every=3), start, steps=12)
    assert (twin - start[0].reshape(-1)).abs().max() > 0.01
    torch.testing.assert_close(run_optimizer(rule.optimizer, start, steps=12), twin, rtol=0, atol=1e-9)


def test_soap_is_the_zoos_on_matrices():
    """pytorch_optimizer 4.1.0 follows the authors' code, which turns the basis in float32."""
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).double() for shape in ((5, 5), (7,))]
    rule = SOAP(lr=0.01, decay=0.1, every=3)
    make = partial(zoo.SOAP, lr=0.01, weight_decay=0.1, precondition_frequency=3)
    ours, theirs = (run_optimizer(each, start, steps=8) for each in (rule.optimizer, make))
    moved = (theirs - Layout.of(start).flatten(start)).norm()
    assert (ours - theirs).norm() < 2e-3 * moved


FEW = 8
"""Steps in which rounding errors cannot grow, as they do later where a rule and this gradient are chaotic."""
SCHEDULES = [Constant(), StepDecay(at=(0.3, 0.6)), Cosine(warmup=0.2), Linear()]


def run_scheduled(rule: Rule, schedule: Schedule, start: list[Tensor]) -> Tensor:
    """Train as the engine does: the schedule multiplies the rates of the optimiser."""
    def make(params):
        optimizer = made(rule)(params)
        rates, step, done = Rates(optimizer), optimizer.step, iter(range(FEW))

        def at_its_rate(closure=None):
            rates.set(schedule(next(done) / FEW))
            step(closure)
        optimizer.step = at_its_rate
        return optimizer
    return run_optimizer(make, start, FEW)


@rules
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_twins_and_schedules_around_a_rule_are_the_rule(rule, schedule):
    """A twin of divisor 1, a graft on itself and a schedule held by the rule all train what the arm trains."""
    start = tensors()
    arm, layout = run_scheduled(rule, schedule, start), Layout.of(start)
    close = partial(torch.testing.assert_close, expected=arm, rtol=0, atol=1e-11)
    close(run_scheduled(Rounded(rule, 1), schedule, start))
    close(run_scheduled(Graft(rule, rule), schedule, start))
    inside = Scheduled(rule, schedule, FEW)
    close(run_optimizer(made(inside), start, FEW))
    close(run_pure(inside, layout.flatten(start), layout, FEW))
    single = tensors(dtype=torch.float32)
    torch.testing.assert_close(run_scheduled(Rounded(rule, 1), schedule, single),
                               run_scheduled(rule, schedule, single), rtol=0, atol=1e-4)


def test_a_schedule_reaches_a_rate_that_is_read_in_another_way():
    """SquareTwin on a constant gradient moves by the sum of squared rates, HalvingTwin by 0.9ᵗ of each."""
    for rule, moved in ((Foreign(SquareTwin, lr=0.1), lambda t, f: (10 * 0.1 * f) ** 2),
                        (Foreign(HalvingTwin, lr=0.1), lambda t, f: 0.1 * 0.9**t * f)):
        expected = -sum(moved(t, 1 - t / 4) for t in range(4))
        for made in (rule, Rounded(rule, 1), Graft(rule, SGD(lr=1.0)), Decayed(rule, 0.0)):
            weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
            optimizer = made.optimizer([weight])
            rates = Rates(optimizer)
            for t in range(4):
                weight.grad = torch.ones_like(weight)
                rates.set(Linear()(t / 4))
                optimizer.step()
            assert float(weight.detach()) == pytest.approx(expected, rel=1e-12)


@rules
def test_repr_is_the_rule(rule):
    names = {**vars(optim), "inf": float("inf")}
    assert eval(repr(rule), names) == rule
    assert hash(eval(repr(rule), names)) == hash(rule)


@rules
def test_state_dict_round_trip_is_bit_exact(rule, tmp_path):
    start = tensors()
    layout = Layout.of(start)

    def advance(params, optimizer, steps):
        for t in steps:
            give(params, layout, t)
            optimizer.step(partial(give, params, layout, t))

    params = [nn.Parameter(t.clone()) for t in start]
    optimizer = made(rule)(params)
    advance(params, optimizer, range(5))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    restored = made(rule)(copies)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(params, optimizer, range(5, 10))
    advance(copies, restored, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


@rules
def test_learning_rate_can_be_changed_and_scales_the_first_step(rule):
    layout = Layout.of(tensors())
    params, grad = layout.flatten(tensors(1)), layout.flatten(tensors(2))
    changed = rule.with_(lr=rule.lr * 2)
    assert changed.lr == rule.lr * 2

    def first(r):
        return r.seek(lambda _: grad, r.init(params, layout), params, layout)[0]
    if rule.proportional:
        torch.testing.assert_close(first(changed), 2 * first(rule), rtol=0, atol=1e-12)
    else:
        small = rule.with_(lr=1e-8)
        torch.testing.assert_close(first(small.with_(lr=2e-8)), 2 * first(small), rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [
    lambda v: SGD(lr=v), lambda v: SGD(lr=v, momentum=0.9), lambda v: SignSGD(lr=v),
    lambda v: Momentum(lr=0.1, beta=v), lambda v: SVAG(Momentum(lr=v), level=2),
    lambda v: NormalizedSGD(lr=v), lambda v: PolarSGD(lr=v), lambda v: PolarSGD(lr=0.1, ratio=v),
    lambda v: RMSProp(lr=v), lambda v: Adam(lr=v), lambda v: AdamW(lr=v),
    lambda v: Graft(Adam(lr=v), SGD(lr=1.0)), lambda v: Adam(lr=0.01, beta1=v),
])
def test_one_hyperparameter_a_member(make):
    layout = Layout.of(tensors())
    values = (0.02, 0.3)
    members = layout.flatten(tensors()).expand(2, -1)
    together = run_pure(make(values), members, layout)
    for member, value in zip(together, values, strict=True):
        alone = run_pure(make(value), members[0], layout)
        torch.testing.assert_close(member, alone, rtol=0, atol=1e-13)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
