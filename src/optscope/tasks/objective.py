"""Who minimises what: a task has one player, a game several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from optscope.tasks.tree import Batch


@dataclass(frozen=True)
class Objective:
    """What one player minimises, by the weights of its own network alone, in `steps` steps a round.

    `player` names its network among the model's modules; "", the only player of an ordinary task, has the whole.
    `loss(model, batch, latent)` is the mean over the examples of a batch; `latent` is what `Task.draw_latent` drew
    for it.
    """

    player: str
    loss: Callable[[nn.Module, Batch, Tensor | None], Tensor]
    steps: int = 1

    def network(self, model: nn.Module) -> nn.Module:
        """Return the module whose parameters are the player's."""
        return model.get_submodule(self.player) if self.player else model  # of torch.jit, whose modules have none
