"""Playing a game: the lean loop for several players, each with its own network, loss and rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from optscope.engine.stepping import Stepper
from optscope.engine.train import (
    Plan,
    Trained,
    epoch_permutation,
    fast_format,
    first_non_finite,
    ignore,
)
from optscope.errors import UserError
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.optim.trial import check_on
from optscope.tasks.fresh import fresh_model, seeded, streams
from optscope.tasks.game import Game, Player
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Split

Gradients = Sequence[Tensor | None]

BURN_IN = 0.01
"""The share of rounds, at the start, that the pace leaves out."""


@dataclass
class Deal:
    """What a seed deals to its game: real examples and latent vectors, whatever the rules are.

    Batches follow the plan's epochs over the training part. Step j of any player in a round gets the round's j-th
    batch, so a round takes as many batches as its busiest player makes steps.
    """

    game: Game
    plan: Plan
    seed: int
    real: Split = field(init=False)

    def __post_init__(self) -> None:
        self.real = self.game.data().train
        _, self._order, noise = streams(self.seed)
        self._generator = torch.Generator().manual_seed(noise + 1)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def batch(self, round_: int, step: int = 0) -> Tensor:
        """Return the real examples of one step of a round."""
        each = max(player.steps for player in self.game.players)
        per_epoch = self.plan.steps_per_epoch(len(self.real))
        epoch, place = divmod(round_ * each + step, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, epoch_permutation(len(self.real), self._order, epoch)
        chosen = self._permutation[place * self.plan.batch:(place + 1) * self.plan.batch]
        examples: Tensor = self.real.inputs.index_select(0, chosen)
        return examples if self.game.augment is None else self.game.augment(examples, self._generator)

    def latent(self) -> Tensor:
        """Return fresh latent vectors, as many as a batch has examples."""
        return self.game.latent(min(self.plan.batch, len(self.real)), self._generator)


@dataclass
class Side:
    """A player in action, and its trace: how far it went in each round, layer by layer, and from what slope."""

    player: Player
    network: nn.Module
    stepper: Stepper
    rounds: int

    def __post_init__(self) -> None:
        self.params = [p for p in self.network.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.params]
        self.losses = torch.full((self.rounds,), torch.nan)
        self.steps, self.slopes, self.weights = (torch.full((self.rounds, len(self.params)), torch.nan)
                                                 for _ in range(3))

    def gradient(self, networks: Mapping[str, nn.Module], real: Tensor,
                 latent: Tensor) -> tuple[Tensor, Gradients]:
        """Return the player's loss and its gradient by its own weights, None by those it does not use."""
        loss = self.player.loss(networks, real, latent)
        return loss.detach(), torch.autograd.grad(loss, self.params, allow_unused=True)

    def move(self, round_: int, loss: Tensor, grads: Gradients, factor: float) -> None:
        """Make one step at `factor` times the rate, and note it; steps of one round add up."""
        before, slope = [p.detach().clone() for p in self.params], _norms(grads)
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        self.stepper.step(factor)
        moved = _norms([p.detach() - old for p, old in zip(self.params, before, strict=True)])
        first, n = bool(torch.isnan(self.losses[round_])), self.player.steps
        for trace, value in ((self.losses, loss / n), (self.steps, moved), (self.slopes, slope / n)):
            trace[round_] = value if first else trace[round_] + value
        self.weights[round_] = _norms(before)

    def travelled(self) -> float:
        """Return the distance from the start, ‖w − w₀‖."""
        return float(_norms([p.detach() - old for p, old in zip(self.params, self.start, strict=True)]).norm())


def play(game: Game, rule: Rule, plan: Plan, seed: int, *, watch: Callable[[Snapshot], None] = ignore,
         at: Collection[int] = ()) -> Trained:
    """Play a fresh game, its players moved by the rules of `Players`, and call `watch` after the rounds in `at`.

    As in `train`, initialisation, batches, latent vectors and noise depend on the seed alone, so that runs of one
    seed are paired; a plan's step is one round, and its schedule multiplies all rates. Every player's gradient
    is taken by its own weights only.

    The traces, one for each round: "losses" `(rounds, players)`; and for each player and layer, `(rounds, layers)`,
    "steps NAME" (length of the step, summed over the steps of a round), "slopes NAME" (gradient norm, their mean)
    and "weights NAME" (norm before the last step).

    Raises:
        UserError: when `rule` is not `Players`, or not for these players.
    """
    if not isinstance(rule, Players):
        raise UserError(f"{game.name} is a game: give each player a rule, Players("
                        f"{', '.join(f'{player.name}=...' for player in game.players)}); got {rule!r}")
    rule.check_players(player.name for player in game.players)
    table = fresh_model(game, seed)
    with seeded(streams(seed)[2]):
        return _loop(game, table, rule, plan, seed, watch, at)


def _loop(game: Game, table: nn.Module, rule: Players, plan: Plan, seed: int, watch: Callable[[Snapshot], None],
          at: Collection[int]) -> Trained:
    deal = Deal(game, plan, seed)
    networks: dict[str, nn.Module] = dict(table.named_children())
    total, per_epoch = plan.steps(len(deal.real)), plan.steps_per_epoch(len(deal.real))
    table.train()
    if rule.foreign:
        _check(game, rule, plan, seed)
    sides = []
    for i, (player, network) in enumerate(zip(game.players, networks.values(), strict=True)):
        own = rule.by_name[player.name]
        network.to(memory_format=fast_format(network, deal.real.inputs[:plan.batch], own))  # type: ignore[call-overload]
        sides.append(Side(player, network, Stepper(own, network, seed + 2 + i), total))

    def losses() -> Tensor:
        return torch.stack([side.losses for side in sides], dim=1)

    def diverged(rounds: int) -> int | None:
        return first_non_finite(losses()[:rounds].sum(1), table)

    def snapshot(rounds: int) -> Snapshot:
        return Snapshot(table, game, seed, rounds, rule, None, losses()[:rounds])

    for round_ in range(total):
        if (round_ % per_epoch == 0 or round_ in at) and diverged(round_) is not None:
            break
        if round_ in at:
            with ExitStack() as looks:
                for side in sides:
                    looks.enter_context(side.stepper.looked_at())
                watch(snapshot(round_))
        factor = plan.schedule(round_ / total)
        if game.order == "simultaneous":
            real, latent = deal.batch(round_), deal.latent()
            found = [side.gradient(networks, real, latent) for side in sides]
            for side, (loss, grads) in zip(sides, found, strict=True):
                side.move(round_, loss, grads, factor)
        else:
            for side in sides:
                for step in range(side.player.steps):
                    side.move(round_, *side.gradient(networks, deal.batch(round_, step), deal.latent()), factor)
    for side in sides:
        side.stepper.finish()
    at_end = diverged(total)
    if at_end is None and total in at:
        watch(snapshot(total))
    traces = {"losses": losses()} | {f"{what} {side.player.name}": getattr(side, what) for side in sides
                                     for what in ("steps", "slopes", "weights")}
    return Trained(snapshot(total), at_end, traces, pace(sides) if at_end is None else {})


def _check(game: Game, rule: Players, plan: Plan, seed: int) -> None:
    """Raise if a player's rule holds an optimiser that is another one inside a combinator."""
    deal = Deal(game, plan, seed)
    real, latent = deal.batch(0), deal.latent()
    for player in game.players:
        with seeded(seed):
            networks = dict(fresh_model(game, seed).train().named_children())

            check_on(rule.by_name[player.name], networks[player.name],
                     lambda _: player.loss(networks, real, latent))  # noqa: B023


def _norms(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([torch.zeros(()) if t is None else torch.linalg.vector_norm(t) for t in tensors])


def pace(sides: list[Side]) -> dict[str, float]:
    """Return how fast the players moved: each one's path and distance, and the first's pace by the second's.

        ρ_t = (‖ΔW‖/‖W‖) / (‖ΔV‖/‖V‖)              W: the first player's weights, V: the second's

    The band is the width of the middle half of log₁₀ ρ_t over the rounds after the first 1 %.

    Jelassi et al., arXiv 2210.04319, measure the pace of the discriminator by the generator's.
    """
    found: dict[str, float] = {}
    for side in sides:
        found[f"path of the {side.player.name}"] = float(side.steps.norm(dim=1).sum())
        found[f"distance of the {side.player.name}"] = side.travelled()
    first, second = (side.steps.norm(dim=1) / side.weights.norm(dim=1) for side in sides[:2])
    logs = np.log10((first / second).numpy()[int(BURN_IN * len(first)):])
    logs = logs[np.isfinite(logs)]
    if len(logs):
        low, middle, high = np.quantile(logs, (0.25, 0.5, 0.75))
        found |= {"log pace ratio": float(middle), "band of the log pace ratio": float(high - low),
                  "range of the log pace ratio": float(logs.max() - logs.min())}
    return found
