"""Fine-tuning of language models with SGD, momentum and AdamW: settings, runs, and the best dev checkpoint.

Each subset of a few-shot setting is an experiment of its own, tuned on its own dev texts, so that a long run can be
made in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch.nn.functional import cross_entropy

from optscope.engine.plan import Plan
from optscope.evidence.records import Records
from optscope.optim import SGD, AdamW, Cosine, Momentum
from optscope.probes.accuracy import Checkpoint
from optscope.protocol.comparison import Arm, Comparison, Criterion
from optscope.protocol.search import Grid
from optscope.studies.marginal_momentum.readings import BETAS, Pair, at, method
from optscope.tasks.task import Task
from optscope.tasks.text import MovieSnippets, RottenTomatoes, Shakespeare, TextFile
from optscope.tasks.text_models import CharTransformer, Encoder, Pretrained, has_bfloat16

MARGIN_FINE = 1.0
"""Test accuracies after fine-tuning that differ by less than this, in points, count as equal."""
MARGIN_NATS = 0.02
"""Test losses of the character transformer that differ by less than this, in nats a character, count as equal."""
SETTINGS: Mapping[str, type[RottenTomatoes] | type[MovieSnippets]] = {
    "rotten-tomatoes": RottenTomatoes, "movie-snippets": MovieSnippets}
CLASSES = {"rotten-tomatoes": 2, "movie-snippets": 5}
SHOTS = (16, 128, None)
FINE_TUNING = {f"{data} {shots or 'full'}": f"MiniLM on {data} ({f'{shots} a class' if shots else 'all texts'})"
               for data in SETTINGS for shots in SHOTS}
"""The settings by name, with what a claim calls them."""
FEW_SHOT = tuple(f"{data} {shots}" for data in SETTINGS for shots in SHOTS if shots)
CHARACTERS = "shakespeare verse"
STEPS, BATCH, WIDEN = 300, 8, 2
FULL = 6
"""Seeds on all texts, where a seed is a pair: fewer than six pairs show nothing."""
CALM_FINE = 0.01
"""The smallest rate of the grid, at most a quarter of one at which SGD failed in pilots on other texts."""
ARMS = (Arm(method(BETAS[0]), SGD(lr=0.03), Grid((0.01, 0.03, 0.1))),
        Arm(method(BETAS[1]), Momentum(lr=0.03), Grid((0.01, 0.03, 0.1))),
        Arm("AdamW", AdamW(lr=3e-5), Grid((1e-5, 3e-5, 1e-4))))
CHARACTER_ARMS = (Arm(method(BETAS[0]), SGD(lr=0.1), Grid((0.03, 0.1, 0.3))),
                  Arm(method(BETAS[1]), Momentum(lr=0.1), Grid((0.03, 0.1, 0.3))),
                  Arm("AdamW", AdamW(lr=1e-3), Grid((3e-4, 1e-3, 3e-3))))


@dataclass(frozen=True)
class Size:
    """How many subsets and seeds a setting gets, and which settings there are."""

    subsets: int
    seeds: int


def language_models(size: Size) -> list[Comparison]:
    """Return one comparison a subset of each few-shot setting, and one each of the full sets, of MiniLM."""
    found = []
    for data, source in SETTINGS.items():
        for shots in SHOTS:
            for subset in range(size.subsets if shots else 1):
                examples = source(shots, subset)
                model = Encoder(CLASSES[data], mixed=has_bfloat16())
                task = Task(f"{data} {shots or 'full'}", model, examples, bounds=None)
                plan = Plan(steps=STEPS, batch=BATCH if shots else 4 * BATCH, schedule=Cosine(0.1))
                found.append(_comparison(task.name, subset, task, plan, size.seeds if shots else FULL))
    return found


def characters() -> Comparison:
    """Return the fine-tuning of a small character transformer from Shakespeare's plays to his verse."""
    model = Pretrained(CharTransformer(), Shakespeare(), steps=2000)
    task = Task(CHARACTERS, model, Shakespeare(verse=True), cross_entropy, "regression", bounds=None)
    return _comparison(CHARACTERS, 0, task, Plan(4, 16, Cosine(0.1)), 8, CHARACTER_ARMS)


def of_the_paper() -> list[Comparison]:
    """Return the paper's own fine-tuning, of RoBERTa-large on five sets that the user puts beside the others.

    A classification head stands for the paper's prompts. Files: `lm/sst-2.tsv` and so on, the model in a folder
    `roberta-large` where the command is run.
    """
    sets = {"sst-2": 2, "sst-5": 5, "snli": 3, "trec": 6, "mnli": 3}
    found = []
    for name, classes in sets.items():
        for subset in range(5):
            data = TextFile(512, subset, 256 if classes == 3 else 128, "roberta-large", f"lm/{name}.tsv")
            task = Task(name, Encoder(classes, "roberta-large"), data, bounds=None)
            plan = Plan(math.ceil(1000 * BATCH / (512 * classes)), BATCH, Cosine())
            found.append(_comparison(f"{name} 512", subset, task, plan, 1, moments=10, examples=1000))
    return found


def _comparison(setting: str, subset: int, task: Task, plan: Plan, seeds: int, arms: tuple[Arm, ...] = ARMS,
                moments: int = 4, examples: int = 400) -> Comparison:
    criterion = (Criterion("validation loss at checkpoint") if task.kind == "regression"
                 else Criterion("validation accuracy at checkpoint", "higher", "validation loss at checkpoint"))
    arms = tuple(replace(arm, factors={"setting": setting, "subset": subset}) for arm in arms)
    return Comparison(f"{setting}, subset {subset}", task, arms, plan, (), tuple(range(1, seeds + 1)),
                      criterion=criterion, moments=moments, keep_weights=False, widen=WIDEN,
                      validation=Checkpoint(examples=examples))


def best_checkpoint(records: Records, setting: str, first: str, second: str,
                    metric: str = "accuracy") -> Pair:
    """Return the test metric of two arms at each run's best validation moment, in pairs.

    In few-shot settings a pair is a subset's mean over seeds, for its seeds share texts and learning rates; in the
    others it is a seed. Of a run that diverges the checkpoints before are left; without any it is missing.
    """
    found = []
    for subset in _subsets(records, setting):
        mine = subset.where(phase="final")
        found.append(np.array([[_at_best(mine.where(arm=arm, seed=seed), metric) for arm in (first, second)]
                               for seed in mine.seeds(first, second)]).reshape(-1, 2))
    means = [seeds.mean(0) for seeds in found if len(seeds)]
    pairs = np.concatenate(found) if found and setting not in FEW_SHOT else np.array(means).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def equal_rates(records: Records, setting: str, rate: float) -> Pair:
    """Return the test accuracies of momentum and SGD at the end of training at one rate, a subset a pair.

    They are those of the tuning runs, of one seed. A diverged run counts with chance accuracy.
    """
    chance = 100 / CLASSES[setting.rpartition(" ")[0]]
    found = []
    for subset in _subsets(records, setting):
        mine = [subset.where(phase="tune", rule=repr(rule))
                for rule in (Momentum(lr=rate), SGD(lr=rate))]
        if all(mine):
            found.append([_at_end(each, chance) for each in mine])
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _subsets(records: Records, setting: str) -> list[Records]:
    mine = at(records, "setting", setting)
    return [mine.where(subset=subset) for subset in mine.levels("subset")]


def _at_end(records: Records, chance: float) -> float:
    """Return one run's test accuracy at the end of training; that of chance if it diverged, nan if it failed."""
    if any(row.status == "diverged" for row in records):
        return chance
    found = records.where(metric="test accuracy at checkpoint", step=None)
    return next((row.value for row in found), math.nan)


def _at_best(records: Records, metric: str) -> float:
    """Return one run's test metric at its best validation moment; nan if there is none.

    Of equal accuracies that with the least validation loss is the best, of equals in both the first.
    """
    validation, loss, test = ({row.step: row.value for row in records.where(metric=f"{name} at checkpoint")}
                              for name in (f"validation {metric}", "validation loss", f"test {metric}"))
    sign = 1.0 if metric == "accuracy" else -1.0
    moments = [step for step in validation if step is not None and math.isfinite(validation[step])]
    best = max(moments, key=lambda step: (sign * validation[step], -loss.get(step, math.inf), -step), default=None)
    return test.get(best, np.nan)
