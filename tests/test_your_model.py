"""Models of Hugging Face, randomly initialised, go through a comparison as they are."""

from __future__ import annotations

import pytest
import torch

from optscope.engine.execute import Inline
from optscope.lab import compare
from optscope.optim import SGD, Adam
from optscope.protocol.comparison import Arm
from optscope.protocol.settings import Settings
from optscope.tasks.task import Split, Task

transformers = pytest.importorskip("transformers")

ARMS = Arm("SGD", SGD(lr=0.1)), Arm("Adam", Adam(lr=0.001))
TINY = Settings(seeds=2, epochs=1, batch=8, tuning_seeds=1, twin_seeds=0, examples=4)
IDS = torch.randint(1, 50, (24, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < 3 + torch.arange(24)[:, None] % 4).long()
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **SMALL))


def tagger():
    return transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=50, num_labels=3, **SMALL))


def gpt():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_positions=6, n_embd=16, n_layer=1,
                                                                n_head=2))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1,
                                                                         **SMALL))


def texts(labels):
    return {"input_ids": IDS, "attention_mask": MASK, "labels": labels}


TASKS = {
    "a classifier": lambda: (bert, texts(IDS[:, 0] % 2), {"bounds": None}),
    "a tagger": lambda: (tagger, texts((IDS % 3).where(MASK == 1, -100)), {
        "kind": "token-classification", "bounds": None}),
    "a language model": lambda: (gpt, texts(IDS.where(MASK == 1, -100)), {"kind": "causal-lm", "bounds": None}),
    "an image classifier": lambda: (vit, {"pixel_values": torch.rand(24, 1, 8, 8), "labels": IDS[:, 0] % 2}, {
        "perturb": "pixel_values"}),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_model_of_hugging_face_is_compared(name, tmp_path):
    model, data, settings = TASKS[name]()
    task = Task.from_tensors(model, data, data, name=name, **settings)
    result = compare(task, tmp_path / "out", arms=ARMS, settings=TINY, executor=Inline())
    assert not result.failures
    assert {"accuracy", "loss"} <= {row.metric for row in result.records}
    fresh, batch = model().eval(), task.data().train.first(8)
    with torch.no_grad():
        theirs = fresh(**batch.inputs, labels=batch.targets).loss
        assert float(task.value(fresh, batch)) == pytest.approx(float(theirs), rel=1e-6)


def test_the_data_sets_of_hugging_face_are_read():
    datasets = pytest.importorskip("datasets")
    columns = {name: part.tolist() for name, part in texts(IDS[:, 0] % 2).items()}
    table = datasets.Dataset.from_dict(columns)
    for source in (table, table.with_format("torch"), table.with_format("numpy")):
        split = Split.of(source)
        assert torch.equal(split.inputs["input_ids"], IDS)
        assert torch.equal(split.inputs["attention_mask"], MASK)
        assert torch.equal(split.targets, IDS[:, 0] % 2)
    encoded = transformers.BatchEncoding(columns)
    assert torch.equal(Split.of(encoded).inputs["input_ids"], IDS)
    with pytest.raises(Exception, match=r'DatasetDict, such as data\["train"\]'):
        Split.of(datasets.DatasetDict(train=table))
