"""The graft matrix: its arms, its sums of squares, its picture, and the door that makes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optscope import lab
from optscope.analyses.grafts import WHOSE, graft_matrix, grafts, length_earns_more, two_way
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.training import Training
from optscope.errors import UserError
from optscope.evidence.records import Metric, Record, Records
from optscope.lab import compare
from optscope.optim import SGD, Adam, Graft, NormalizedSGD, Players, SignSGD
from optscope.probes.coverage import Coverage
from optscope.probes.embedding import OwnClassifier, Pixels
from optscope.probes.modes import Modes
from optscope.protocol.arms import arm_named
from optscope.protocol.compare import comparison_of
from optscope.protocol.comparison import Arm, check_budgets
from optscope.protocol.grafts import crossed, graft_arms, graft_name, grafted_per, grafted_rules
from optscope.protocol.kits import Generators
from optscope.protocol.search import Grid
from optscope.protocol.settings import OptimiserSettings, Settings, read_settings
from optscope.protocol.space import Space
from optscope.report.figures import draw
from optscope.tasks.game import Normal
from optscope.tasks.gan import gan
from optscope.tasks.gan_models import DCDiscriminator, DCGenerator, Perceptron
from optscope.tasks.images import Digits, LowPass
from optscope.tasks.mixtures import Ring
from optscope.tasks.task import Data, Split
from tiny import TASK, call

RULES = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.2))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.02))))
RING = gan("ring", Perceptron((2, 8, 2)), Perceptron((2, 8, 1)), Ring(points=256), latent=Normal(2), bounds=None)


def test_every_length_meets_every_direction():
    arms = graft_arms((*RULES, Arm("sign", SignSGD(lr=0.01), Grid((0.01, 0.03)))))
    assert len(arms) == 9
    named = {arm.name: arm for arm in arms}
    found = named["Adam length × SGD direction"]
    assert found.rule == Graft(Adam(lr=0.01), SGD(lr=0.1))
    assert [rule.lr for rule in found.candidates()] == [0.01, 0.02]
    assert named["SGD"].rule == SGD(lr=0.1)
    assert grafted_rules(arms) == ["SGD", "Adam", "sign"]


def heard(monkeypatch, argv):
    """The settings that a command goes through the door with."""
    said = []

    def door(task, out, settings, **more):
        said.append(settings)
        raise UserError("no further")
    monkeypatch.setattr(lab, "compare", door)
    assert call(monkeypatch, argv) == 2
    return said[0]


@pytest.mark.parametrize("per", ["layer", "module", "model"])
def test_lengths_are_taken_over_what_is_asked_for_from_the_command_to_the_report(per, tmp_path, monkeypatch):
    (tmp_path / "s.toml").write_text(f'graft = "{per}"')
    comparison = comparison_of(TASK, read_settings(tmp_path / "s.toml", optimisers={"sgd": {}, "adam": {}}))
    assert [arm.rule for arm in comparison.arms if isinstance(arm.rule, Graft)] == [
        Graft(SGD(lr=0.1), Adam(lr=0.001), per), Graft(Adam(lr=0.001), SGD(lr=0.1), per)]
    assert grafted_per(comparison.arms) == per
    rows = Records(Record("blobs", arm.name, seed, "accuracy", 90.0 + seed) for arm in comparison.arms
                   for seed in (1, 2))
    figure, = grafts(comparison, rows).figures
    assert figure.caption.endswith(f"Lengths are those of {WHOSE[per]} step.")
    for words in ("digits --graft {}", "--graft={} digits", "digits --graft {} --seeds 1"):
        assert heard(monkeypatch, f"compare {words.format(per)}").graft == per


@pytest.mark.parametrize("words", ["digits --graft", "--graft digits", "digits --graft --seeds 1"])
def test_a_bare_graft_is_one_of_layers_as_true_is_in_a_file(words, tmp_path, monkeypatch):
    (tmp_path / "s.toml").write_text("graft = true")
    assert heard(monkeypatch, f"compare {words}").graft == read_settings(tmp_path / "s.toml").graft == "layer"
    (tmp_path / "s.toml").write_text("graft = false")
    assert read_settings(tmp_path / "s.toml").graft is Settings().graft is False


def test_a_step_has_the_length_of_the_blocks_that_are_asked_for():
    """In training, by how far the weights of a layer, a module and the model moved."""
    moved = {}
    for per in ("layer", "module", "model"):
        arms = Arm("SGD", SGD(lr=0.1)), Arm("even", NormalizedSGD(lr=0.01, rms=True))
        rule = graft_arms(arms, per)[2].rule
        training = Training(TASK, rule, Plan(1, 32), 1)
        before = [p.detach().clone() for p in training.model.parameters()]
        training.advance(1)
        moved[per] = [(p.detach() - q).double() for p, q in zip(training.model.parameters(), before, strict=True)]
    sizes = [p.numel() for p in moved["layer"]]
    lengths = {per: torch.stack([step.norm() for step in steps]) for per, steps in moved.items()}
    by_hand = 0.01 * torch.tensor(sizes).double().sqrt()
    for per, blocks in (("layer", 4), ("module", 2), ("model", 1)):
        found, expected = (each.reshape(blocks, -1).norm(dim=1) for each in (lengths[per], by_hand))
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.0)
    assert (lengths["model"] / by_hand).std() > 0.1
    assert (lengths["module"] / by_hand).std() > 0.1
    for step, other in zip(moved["layer"], moved["model"], strict=True):  # of one direction in every layer
        assert torch.cosine_similarity(step.flatten(), other.flatten(), dim=0) == pytest.approx(1, abs=1e-4)


def test_every_ready_arm_is_grafted_on_every_other_at_one_cost():
    arms = graft_arms([arm_named(name) for name in ("sgd", "sam", "muon", "shampoo", "schedule-free")], "model")
    check_budgets(arms)
    named = {arm.name: arm for arm in arms}
    sam = named["SGD length × SAM direction"]
    assert (sam.rule.evaluations, [rule.lr for rule in sam.candidates()]) == (2, [0.03, 0.1, 0.3])
    assert [rule.lr for rule in named["SGD"].candidates()] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    for arm in arms:
        assert Training(TASK, arm.rule, Plan(steps=2, batch=32), 1).advance(2)


def test_what_is_searched_beside_the_rate_is_the_magnitudes():
    space = {"momentum": [0.5, 0.9]}
    drawn = [arm_named(name, trials=4) for name in ("adam", "sam")]
    named = {arm.name: arm for arm in graft_arms([arm_named("momentum", [0.1], space), *drawn])}
    found = named["SGD + momentum length × Adam direction"].candidates()
    assert [(rule.lr, rule.magnitude.momentum) for rule in found] == [(0.1, 0.5), (0.1, 0.9)]
    dear = named["Adam length × SAM direction"]
    assert dear.candidates() == [Graft(rule, named["SAM"].rule) for rule in named["Adam"].candidates()[:2]]
    of_game = Arm("M", Players(generator=SGD(lr=0.1, momentum=0.9), discriminator=SGD(lr=0.1)),
                  Grid(Space(**{"generator.lr": (0.1, 0.2), "generator.momentum": (0.5,)})))
    other = Arm("A", Players(generator=Adam(lr=0.1), discriminator=Adam(lr=0.1)))
    first = graft_arms([of_game, other])[1].candidates()[1].by_name["generator"]
    assert (first.lr, first.magnitude.momentum) == (0.2, 0.5)


def test_ready_grafts_stand_unless_the_matrix_holds_them():
    assert [arm.name for arm in crossed([arm_named(name) for name in ("sgd", "adam", "graft")])] == ["SGD", "Adam"]
    kept = crossed([arm_named(name) for name in ("momentum", "adam", "graft", "shampoo")])
    assert [arm.name for arm in kept] == ["SGD + momentum", "Adam", "Adam length × SGD direction", "Shampoo"]


def test_rules_of_games_are_grafted_player_by_player():
    players = [Arm(arm.name, Players(generator=arm.rule, discriminator=arm.rule)) for arm in RULES]
    found = graft_arms(players)[1].rule
    rule = Graft(SGD(lr=0.1), Adam(lr=0.01))
    assert found == Players(generator=rule, discriminator=rule)


def test_sums_of_squares_are_those_of_the_additive_model():
    rng = np.random.default_rng(0)
    tables = rng.standard_normal((5, 4, 4))
    rows, columns, rest = two_way(tables)
    for i, table in enumerate(tables):
        design = np.zeros((16, 9))
        for r in range(4):
            for c in range(4):
                design[4 * r + c, [0, 1 + r, 5 + c]] = 1
        fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
        total = np.sum((table - table.mean()) ** 2)
        assert rest[i] == pytest.approx(np.sum((table.ravel() - fitted) ** 2) / total)
        assert rows[i] == pytest.approx(4 * np.sum((table.mean(1) - table.mean()) ** 2) / total)
    np.testing.assert_allclose(rows + columns + rest, 1)
    assert all(np.isnan(share) for share in two_way(np.ones((2, 2)))[:2])


def table_of(effect):
    """Records in which seed s has effect(length, direction) + noise."""
    rng = np.random.default_rng(1)
    return Records(Record("x", graft_name(m, d), s, "score", effect(m, d) + 0.01 * rng.standard_normal())
                   for s in range(1, 9) for m in "ab" for d in "ab")


def test_what_earns_the_result_is_judged():
    assert length_earns_more(table_of(lambda m, d: m == "a"), "ab", "score").outcome == "holds"
    assert length_earns_more(table_of(lambda m, d: d == "a"), "ab", "score").outcome == "fails"
    assert length_earns_more(Records(), "ab", "score").outcome == "undecided"
    matrix = graft_matrix(table_of(lambda m, d: 2.0 * (m == "a")), "ab", Metric("score", "", "higher"))
    np.testing.assert_allclose(matrix.values, [[2, 2], [0, 0]], atol=0.02)
    assert "length explains 100 %" in matrix.title
    svg = draw(matrix)
    assert "…" in svg
    assert "a&#x27;s length" in svg or "a's length" in svg


def test_a_task_is_compared_by_grafts(tmp_path):
    settings = Settings(optimisers={"sgd": OptimiserSettings(lr=[0.1]), "adam": OptimiserSettings(lr=[0.01])},
                        seeds=2, epochs=12, batch=16, examples=20, graft=True)
    result = compare(TASK, tmp_path / "out", settings=settings, executor=Inline())
    assert result.verdicts[0][0].text.startswith("Step length explains more of the differences in accuracy")
    page = result.report.read_text()
    assert "Adam&#39;s direction" in page or "Adam's direction" in page
    assert "SGD length × Adam direction" in page


def test_a_game_is_compared_like_a_task(tmp_path):
    settings = Settings(optimisers={"sgd": OptimiserSettings(lr=[0.1]), "adam": OptimiserSettings(lr=[0.01])},
                        seeds=2, epochs=1, batch=64)
    result = compare(RING, tmp_path / "out", settings=settings, executor=Inline())
    names = result.records.metrics()
    assert {"modes", "missed mass", "rotation", "Fréchet distance", "log pace ratio"} <= set(names)
    assert not result.failures
    assert "whose generator covers what is real?" in result.report.read_text()


def test_games_are_judged_by_what_fits_their_data():
    images = gan("digits", DCGenerator(), DCDiscriminator(), Digits(), latent=Normal(16))
    comparison = comparison_of(images, Settings())
    assert isinstance(comparison.validation, Coverage)
    assert comparison.criterion.metric == "Fréchet distance"
    assert isinstance(comparison.arms[1].rule, Players)
    assert isinstance(comparison_of(RING, Settings()).validation, Modes)
    assert len(comparison_of(TASK, Settings(graft=True)).arms) == 9  # the ready graft is left out


class OtherDigits:
    """Images of the shape of ours, which our classifier was not trained on."""

    def __call__(self):
        whole = Digits()()
        return Data(*(Split(1 - part.inputs, part.targets) for part in (whole.train, whole.validation, whole.test)))


@pytest.mark.parametrize(("data", "seen"), [
    (Digits(), OwnClassifier("digits")), (LowPass(Digits(), 0.5), OwnClassifier("digits")),
    (OtherDigits(), Pixels())])
def test_a_classifier_sees_its_own_images_alone(data, seen):
    game = gan("digits", DCGenerator(), DCDiscriminator(), data, latent=Normal(16))
    assert comparison_of(game, Settings()).probes[0].embedding == seen
    assert ("compared by their pixels" in " ".join(Generators().left_out(game))) == (seen == Pixels())


@pytest.mark.parametrize(("call", "words"), [
    (lambda: graft_arms(RULES[:1]), "two optimisers or more; got SGD"),
    (lambda: graft_arms((RULES[0], Arm("p", Players(generator=SGD(lr=1.0), discriminator=SGD(lr=1.0))))),
     "graft only on rules of a game"),
    (lambda: read_settings(None, graft="block"), "^graft must be true, .layer., .module. or .model.; got 'block'"),
])
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
