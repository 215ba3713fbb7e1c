"""The two-mode GAN of the theory, played by any rules, all seeds and learning rates at once, in double precision.

Every step of gradient descent, normalised or not, is a combination of the modes and the weights, so that all stays
in the span of the start, of 26 dimensions as a rule: the play in an orthonormal basis of it is the play in d
dimensions, exactly, for every d. Latent vectors enter through ⟨w_i, G(z)⟩ = Σ_j z_j ⟨w_i, v_j⟩ alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optscope.errors import UserError
from optscope.optim.players import Players, players_of
from optscope.theory.gan_modes import AVERAGE, HIT, LOST, OUTCOMES, Array, TwoModes, outcome
from optscope.vector import Layout

CHUNK = 256
"""Steps whose latent vectors are drawn at a time: whole chunks, so longer plays begin like shorter ones."""
BATCH = 64
JUDGED = 1000
"""Latent vectors, the same for all, on which a generator is judged."""
FITTED = 0.01
"""The discriminator has fitted (T₀) once E[1 − D(X)] over real data is at most this."""


@dataclass(frozen=True, eq=False)
class Play:
    """What happened: `shares` `(checkpoints, members, 4)` of samples with mode 1, mode 2, their average, noise.

    `steps` `(checkpoints,)` are the steps after which was looked. At each, `doubt` is E[1 − D(X)], `pace` is log₁₀
    of the ratio of relative steps of discriminator and generator, and `moved` is ‖V − V₀‖/‖V₀‖, each
    `(checkpoints, members)`. `fitted` is T₀ by member, inf if it never came; `at_fit` and `at_budget` the shares
    then.
    """

    steps: NDArray[np.int64]
    shares: Array
    doubt: Array
    pace: Array
    moved: Array
    fitted: Array
    at_fit: Array
    at_budget: Array

    @property
    def outcomes(self) -> NDArray[np.int64]:
        """Numbers in `OUTCOMES`, `(checkpoints, members)`."""
        return labels(self.shares)

    def first_both(self) -> Array:
        """Return after how many steps both modes were first seen, by member; inf if never."""
        seen = self.outcomes == OUTCOMES.index("both")
        return np.where(seen.any(0), self.steps[seen.argmax(0)], np.inf)

    def first_move(self) -> Array:
        """Return after how many steps the generator had moved by its own length, by member; inf if never."""
        seen = self.moved >= 1
        return np.where(seen.any(0), self.steps[seen.argmax(0)], np.inf)


def labels(shares: Array) -> NDArray[np.int64]:
    """Return the outcomes of shares `(..., 4)`; -1 where they were never taken (nan)."""
    return np.where(np.isnan(shares[..., 0]), -1, outcome(*np.moveaxis(shares, -1, 0)))


def layout_of(problem: TwoModes, size: int) -> Layout:
    """Return where the weights of both players lie, in `size` coordinates."""
    return Layout(("discriminator.weight", "discriminator.bias", "generator.columns"),
                  (torch.Size([problem.neurons, size]), torch.Size([1]), torch.Size([problem.columns, size])))


def gradient(problem: TwoModes, params: Tensor, modes: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return both players' gradients, of the losses they minimise, and E[1 − D(X)] `(members,)`.

    f = E log D(X) + E log(1 − D(G(z))), of which the discriminator minimises −f and the generator f (saturating):

        ∂f/∂w_i = Σ_x P(x)(1 − D(x)) σ'(⟨w_i, x⟩) x − Σ_j C_ij v_j,     ∂f/∂v_j = −Σ_i C_ij w_i
        C_ij = E_z[D(G) σ'(⟨w_i, G⟩) z_j],     ∂f/∂b = λ (Σ_x P(x)(1 − D(x)) − E_z D(G))

    Shapes: params `(members, P)`; modes `(seeds, 2, n)`; latents `(seeds, batch, m)`. Members come seed by seed,
    the same number for each.
    """
    seeds, batch, m = latents.shape
    cells, n, k, cut = len(params) // seeds, modes.shape[-1], problem.neurons, problem.cut
    w, b, v = layout_of(problem, n).views(params)
    shift = problem.bias_scale * b  # (members, 1)

    def activate(x: Tensor) -> tuple[Tensor, Tensor]:
        low = x.clamp(-cut, cut)
        square = low * low
        return low * square + 3 * cut**2 * (x - low), 3 * square

    own = modes.repeat_interleave(cells, 0)  # (members, 2, n)
    on_modes = torch.bmm(w, own.transpose(1, 2))  # ⟨w_i, u_l⟩
    on_data = torch.cat([on_modes, on_modes.sum(-1, keepdim=True)], -1)  # (members, k, 3)
    value, slope = activate(on_data)
    doubt = params.new_tensor(problem.chances) * torch.sigmoid(-(value.sum(1) + shift))  # P(x)(1 − D(x))
    pull = slope * doubt.unsqueeze(1)
    pull = pull[..., :2] + pull[..., 2:]  # (members, k, 2), on u_1 and u_2
    # All cells of a seed share its latent vectors: one product a seed.
    inner = torch.bmm(v, w.transpose(1, 2)).view(seeds, cells, m, k).transpose(1, 2).reshape(seeds, m, cells * k)
    value, slope = activate(torch.bmm(latents, inner))
    logit = value.view(seeds, batch, cells, k).sum(-1) + shift.view(seeds, 1, cells)
    fooled = torch.sigmoid(logit)  # D(G), (seeds, batch, cells)
    weighted = slope.view(seeds, batch, cells, k) * (fooled / batch).unsqueeze(-1)
    c = torch.bmm(latents.transpose(1, 2), weighted.view(seeds, batch, cells * k))
    c = c.view(seeds, m, cells, k).transpose(1, 2).reshape(-1, m, k)  # C_ij as (members, j, i)
    of_w = torch.bmm(c.transpose(1, 2), v) - torch.bmm(pull, own)
    of_b = problem.bias_scale * (fooled.mean(1).reshape(-1, 1) - doubt.sum(-1, keepdim=True))
    of_v = -torch.bmm(c, w)
    return torch.cat([of_w.flatten(1), of_b, of_v.flatten(1)], -1), doubt.sum(-1)


def batches(problem: TwoModes, seeds: Sequence[int], batch: int) -> Iterator[Tensor]:
    """Yield for ever latent vectors `(seeds, batch, m)`; each seed draws from a generator of its own."""
    generators = [np.random.default_rng((seed, 1)) for seed in seeds]
    while True:
        drawn = [problem.latents(rng, CHUNK * batch).reshape(CHUNK, batch, -1) for rng in generators]
        yield from torch.from_numpy(np.stack(drawn, axis=1)).unbind()


def simulate(problem: TwoModes, rule: Players, steps: int, seeds: Sequence[int], *, budget: float = 100.0,
             checkpoints: int = 120, batch: int = BATCH, in_space: bool = False) -> Play:
    """Play simultaneously for `steps` steps; hyperparameters of the rule that are tuples have one value a cell.

    Members are the cells of each seed, seed by seed; cells of one seed share start and latent vectors. Checkpoints
    are log-spaced. Besides them members are judged once the discriminator has fitted (T₀), and when step · η_D
    reaches `budget`. `in_space` plays in all d coordinates, as rules need that treat coordinates apart.

    Raises:
        UserError: when steps, seeds or checkpoints make no sense, or rates are of different numbers of cells.
    """
    if steps < 1 or checkpoints < 2 or not seeds or len(set(seeds)) < len(seeds):
        raise UserError("simulate: expected steps >= 1, checkpoints >= 2 and distinct seeds; got "
                        f"{steps!r}, {checkpoints!r} and {seeds!r}")
    rule.check_players(("discriminator", "generator"))
    cells, rule = _spread(rule, len(seeds))
    modes, params, layout = _start(problem, seeds, cells, in_space)
    judged = torch.from_numpy(problem.latents(np.random.default_rng(0), JUDGED))
    members, own = len(params), modes.repeat_interleave(cells, 0)
    rate = rule.by_name["discriminator"].lr
    due = np.array([round(budget / each) for each in (rate if isinstance(rate, tuple) else (rate,) * members)])
    parts = {name: where for name, (where, _) in players_of(layout).items()}
    first = params[:, parts["generator"]]
    looks = np.unique(np.geomspace(1, steps, checkpoints).round().astype(np.int64))
    fitted, kept = np.full(members, np.inf), [np.full((members, 4), np.nan) for _ in range(2)]
    seen: list[tuple[Array, ...]] = []
    recorded = frozenset(looks.tolist())
    state = rule.init(params, layout)
    stream = batches(problem, seeds, batch)
    for step in range(1, steps + 2):  # the last gradient moves nobody: it says who has fitted by the end
        grad, doubt = gradient(problem, params, modes, next(stream))
        new = (doubt <= FITTED).numpy() & np.isinf(fitted)
        fitted[new] = step - 1
        for which, store in ((new, kept[0]), (due == step - 1, kept[1])):
            if which.any():
                store[which] = _judge(layout, params[which], own[which], judged)
        if step > steps:
            break
        change, state = rule.update(grad, state, params, layout)
        if step in recorded:
            pace = [(change[:, at].norm(dim=1) / params[:, at].norm(dim=1)).numpy() for at in parts.values()]
            params = params + change
            moved = (params[:, parts["generator"]] - first).norm(dim=1) / first.norm(dim=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                seen.append((_judge(layout, params, own, judged), doubt.numpy(), np.log10(pace[0] / pace[1]),
                             moved.numpy()))
        else:
            params = params + change
    shares, doubts, paces, distances = (np.stack(values) for values in zip(*seen, strict=True))
    return Play(looks, shares, doubts, paces, distances, fitted, *kept)


def _spread(rule: Players, seeds: int) -> tuple[int, Players]:
    """Return the number of cells, and the rule with every cell's rate repeated for each seed."""
    rates = {name: each.lr for name, each in rule.rules}
    counts = {len(rate) for rate in rates.values() if isinstance(rate, tuple)}
    if len(counts) > 1:
        raise UserError(f"simulate: the players' rates must be of as many cells; got {rates}")
    cells = counts.pop() if counts else 1
    return cells, Players(**{name: each.with_(lr=each.lr * seeds) if isinstance(each.lr, tuple) else each
                             for name, each in rule.rules})


def _start(problem: TwoModes, seeds: Sequence[int], cells: int, in_space: bool) -> tuple[Tensor, Tensor, Layout]:
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng((seed, 0))
        drawn.append(problem.start_in_space(rng) if in_space else (problem.modes(), *problem.start(rng)))
    modes, w, v = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    params = torch.cat([w.flatten(1), w.new_zeros(len(seeds), 1), v.flatten(1)], 1)
    return modes, params.repeat_interleave(cells, 0), layout_of(problem, modes.shape[-1])


def _judge(layout: Layout, params: Tensor, modes: Tensor, latents: Tensor) -> Array:
    """Return the shares `(members, 4)` of samples that show mode 1, mode 2, their average, or neither mode."""
    v = layout.views(params)[2]
    along = torch.matmul(latents, torch.bmm(v, modes.transpose(1, 2)))  # ⟨G, u_l⟩, (members, n, 2)
    gram = torch.bmm(v, v.transpose(1, 2))
    length = (torch.matmul(latents, gram) * latents).sum(-1).clamp(min=1e-300).sqrt()
    cosines = along / length.unsqueeze(-1)
    middle = along.sum(-1) / (length * modes.sum(1).norm(dim=-1, keepdim=True))
    found = torch.stack([cosines[..., 0] > HIT, cosines[..., 1] > HIT, middle > AVERAGE,
                         cosines.abs().amax(-1) < LOST], dim=-1)
    return np.asarray(found.double().mean(1).numpy())
