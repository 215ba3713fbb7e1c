"""Dissecting adaptive methods in GANs (arXiv 2210.04319): the length of Adam's steps, or their direction.

Adam trains GANs better than SGD. The paper takes its update apart into length and direction, grafts each on the
other half of SGD's, and finds that the length is what counts; so plain normalised descent, without second moments,
should do as well. In a two-mode theory it proves that normalised descent finds both modes while plain descent
collapses, for normalisation makes both players move at the same pace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optscope.engine.plan import Plan
from optscope.engine.run import Call
from optscope.evidence.claims import Scale
from optscope.optim import SGD, Adam, Graft, Linear, NormalizedSGD, Players
from optscope.probes.accuracy import Accuracy
from optscope.probes.coverage import Coverage
from optscope.probes.embedding import EfficientNetLite0, Embedding, OwnClassifier
from optscope.probes.fid import FID
from optscope.probes.game_field import Rotation
from optscope.probes.modes import Classes, Samples
from optscope.probes.probe import Probe
from optscope.protocol.comparison import Arm, Calls, Comparison, Criterion, Experiment
from optscope.protocol.looks import Looks
from optscope.protocol.search import Grid
from optscope.protocol.study import Gap, Paper, Study
from optscope.studies.gan_grafting.calculations import theory
from optscope.studies.gan_grafting.claims import (
    ADA,
    ADA_GLOBAL,
    ADAM,
    CLAIMS,
    DIR,
    DIR_GLOBAL,
    HALVES,
    MODEL,
    NORMALISED,
    PLAIN,
    ROOT,
    SGDA,
    UNIT,
    VARIANTS,
    normalised,
    plain,
    played,
)
from optscope.studies.gan_grafting.fleets import Fleets
from optscope.studies.gan_grafting.pictures import OF_FAMILY, pictures
from optscope.studies.gan_grafting.rules import (
    FASHION_ARMS,
    IMAGE_ARMS,
    IMAGE_RULES,
    IMAGED,
    LATTICE_ARMS,
    MIXED,
    NEAR,
    RULES,
    arms,
)
from optscope.studies.gan_grafting.twice import REPLAYED, TWICE
from optscope.tasks.game import Game, Normal
from optscope.tasks.gan import WGANGP, gan
from optscope.tasks.gan_models import DCDiscriminator, DCGenerator, ResDiscriminator, ResGenerator
from optscope.tasks.images import CIFAR10, STL10, Digits, FashionMNIST
from optscope.tasks.mixtures import Lattice, Mixture, Ring
from optscope.tasks.models import MLP
from optscope.tasks.task import Task
from optscope.theory.gan_modes import TwoModes

PAPER = Paper("Dissecting adaptive methods in GANs", "Jelassi, Dobre, Mensch, Li, Gidel",
              "2022; ICLR 2023 submission", "2210.04319")

WIDEN = 3
"""Rounds by which a search on images may go on."""

SGDA_CELLS = tuple((d, d * r) for d in (0.03, 0.1, 0.3, 1.0, 3.0)
                   for r in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0))
NSGDA_CELLS = tuple((d, d * r) for d in (0.02, 0.05, 0.1, 0.2) for r in (0.2, 0.5, 1.0))


@dataclass(frozen=True)
class Size:
    """How large everything is at one scale."""

    theory: tuple[int, int, int, int, int] | None  # steps: SGDA's grid, best pair; nSGDA's. Seeds: grid, fresh
    variants: tuple[int, int, int, int, int] | None  # the same in other dimensions (paper: in all other settings)
    epochs: int  # on mixtures
    mixed: tuple[int, int, int] | None  # tuning seeds, fresh seeds on mixtures, seeds of whole grids
    images: tuple[int, int, int] | None  # epochs on digits, tuning seeds (0: rates stand), fresh seeds
    normed: tuple[int, int, int] | None = None  # the same with batch normalisation, which needs fewer epochs
    colour: int = 0  # epochs on 1,280 images of CIFAR-10
    fashion: tuple[int, int] | None = None  # epochs and fresh seeds of the Fashion-MNIST GANs
    paper: bool = False
    points: int = 20_000
    samples: int = 2000


SIZES: dict[Scale, Size] = {
    "smoke": Size((60, 60, 60, 2, 2), None, 1, (1, 2, 2), (1, 0, 2), points=256, samples=200),
    "desk": Size((8_000, 16_000, 5_000, 10, 40), (8_000, 8_000, 5_000, 5, 20), 10, (4, 10, 6), (100, 2, 8),
                 (66, 1, 8), colour=8),
    "long": Size(None, None, 1, None, None, fashion=(32, 6)),
    "paper": Size((100_000, 100_000, 20_000, 20, 40), (100_000, 100_000, 20_000, 20, 40), 64, (8, 20, 20),
                  (200, 4, 20), (200, 4, 20), paper=True),
}
COSTS: dict[Scale, str] = {
    "smoke": "under half a minute on two cores; every claim stays undecided",
    "desk": "about 6,600 seconds of one process, looks too; needs cifar10 (optscope data ...), optscope[features]",
    "long": "by estimate 12 hours on two cores, in runs of ten minutes; a DCGAN on the embedded Fashion-MNIST",
    "paper": "a DCGAN and a residual GAN on CIFAR-10, one on STL-10 (your files): not run, months on many cores",
}


def _theory(size: Size) -> list[Call]:
    found = []
    for i, (name, problem) in enumerate(VARIANTS.items()):
        sizes = size.variants if i else size.theory
        usual = replace(problem, dimension=TwoModes().dimension) == TwoModes()
        if sizes is not None and (usual or size.paper):
            first, last, short, seeds, fresh = sizes
            for kind, arm, cells, steps in ((PLAIN, plain(name), SGDA_CELLS, (first, last)),
                                            (NORMALISED, normalised(name), NSGDA_CELLS, (short, short))):
                found.append(Call(theory, {
                    "arm": arm, "problem": problem, "normalised": kind == NORMALISED, "cells": cells,
                    "steps": steps, "seeds": tuple(range(seeds)), "fresh": tuple(range(1000, 1000 + fresh)),
                    "again": REPLAYED if problem == TwoModes() and size.variants else ()}, played(kind, name)))
    return found


def _mixture(name: str, data: Mixture, names: Sequence[str], size: Size, useful: Sequence[str] = ()) -> Fleets:
    assert size.mixed is not None
    tuning, fresh, whole = size.mixed
    return Fleets(name, data, arms(names, MIXED), size.epochs, tuple(range(1, 1 + fresh)),
                  tuple(range(1001, 1001 + tuning)), {arm: tuple(range(2001, 2001 + whole)) for arm in useful})


def _images(name: str, game: Game, plan: Plan, chosen: tuple[Arm, ...], embedding: Embedding, size: Size,
            tuning: int, fresh: int, extra: tuple[Probe, ...] = ()) -> Comparison:
    score = Coverage(embedding, samples=size.samples, split="train")
    return Comparison(name, game, chosen, plan, (score, *extra), tuple(range(1, 1 + fresh)),
                      tuple(range(1001, 1001 + max(1, tuning))), Criterion("Fréchet distance"),
                      moments=4 if chosen[0].search else 2, watched=(Samples(),), validation=score,
                      widen=WIDEN if chosen[0].search else 0)


def _digits(size: Size) -> list[Experiment]:
    """Return the GANs of digits: without batch normalisation Adam itself tends to collapse, with it hardly."""
    found: list[Experiment] = []
    for name, norm, sizes in (("digits", False, size.images), ("digits with norm", True, size.normed)):
        if sizes is None:
            continue
        epochs, tuning, fresh = sizes
        extra: tuple[Probe, ...] = (Classes("digits", samples=size.samples),)
        extra += (Rotation(examples=64),) if tuning else ()
        game = gan("digits", DCGenerator(norm=norm), DCDiscriminator(), Digits(), latent=Normal(16))
        found.append(_images(name, game, Plan(epochs, 64, Linear()),
                             arms(IMAGE_ARMS, NEAR, tuning > 0, IMAGE_RULES), OwnClassifier("digits"), size,
                             tuning, fresh, extra))
    return found


def _fashion(size: Size) -> list[Experiment]:
    if size.fashion is None:
        return []
    epochs, fresh = size.fashion
    data = FashionMNIST()
    games = {losses: gan("fashion-mnist", DCGenerator(64, (64, 32), 28), DCDiscriminator((32, 64), 28), data,
                         latent=Normal(64), losses=WGANGP() if losses else None, critic_steps=3 if losses else 1)
             for losses in (False, True)}
    extra = (Classes("fashion_mnist"),)
    embedding = OwnClassifier("fashion_mnist")
    return [_images("fashion-mnist", games[False], Plan(epochs, 64, Linear()),
                    arms(FASHION_ARMS, IMAGED, rules=IMAGE_RULES), embedding, size, 1, fresh, extra),
            _images("fashion-mnist, WGAN-GP", games[True], Plan(max(1, epochs // 4), 64, Linear()),
                    arms((SGDA, ADAM, ADA), IMAGED), embedding, size, 1, fresh, extra)]


def _paper(size: Size) -> list[Experiment]:
    """Return settings of the paper's kind: a DCGAN on CIFAR-10, and residual GANs on it and on STL-10."""
    if not size.paper:
        return []
    cifar, residual = CIFAR10(50_000 - 100, 100, 10_000), ResGenerator()
    dcgan = gan("cifar10, DCGAN", DCGenerator(128, (512, 256, 128), 32, 3), DCDiscriminator((128, 256, 512), 32, 3),
                cifar, latent=Normal(128))
    found: list[Experiment] = []
    for game, epochs, beta in (
            (dcgan, 129, 0.5),
            (gan("cifar10", residual, ResDiscriminator(), cifar, latent=Normal(128), losses=WGANGP(),
                 critic_steps=5), 129, 0.0),
            (gan("stl10", replace(residual, size=48), ResDiscriminator(), STL10(), latent=Normal(128),
                 losses=WGANGP(), critic_steps=5), 65, 0.0)):
        adam = Adam(lr=2e-4, beta1=beta, beta2=0.9)
        rules = {ADAM: adam, ADA: Graft(adam, SGD(lr=1.0)), DIR: Graft(SGD(lr=0.1), adam), SGDA: SGD(lr=0.1),
                 UNIT: NormalizedSGD(lr=0.01), MODEL: NormalizedSGD(lr=0.1, per="model")}
        each = tuple(Arm(name, Players(generator=rule, discriminator=rule), Grid((0.3 * lr, lr, 3 * lr)),
                         factors=HALVES.get(name, {}))
                     for name, rule in rules.items() if isinstance(lr := rule.lr, float))
        found.append(_images(game.name, game, Plan(epochs, 64, Linear()), each, EfficientNetLite0(),
                             replace(size, samples=10_000), 1, 3, (FID(split="train"),)))
    return found


def _colour(size: Size) -> list[Experiment]:
    """Return the smoke of the colour path at desk scale."""
    if not size.colour:
        return []
    game = gan("cifar10", DCGenerator(64, (64, 32, 16), 32, 3), DCDiscriminator((16, 32, 64), 32, 3),
               CIFAR10(1280, 100, 100), latent=Normal(64), losses=WGANGP(), critic_steps=2)
    rule = Graft(Adam(lr=1e-3, beta1=0.0, beta2=0.9), SGD(lr=1.0))
    return [_images("cifar10", game, Plan(size.colour, 64, Linear()),
                    (Arm(ADA, Players(generator=rule, discriminator=rule), factors=HALVES[ADA]),),
                    EfficientNetLite0(), replace(size, samples=500), 1, 1)]


def _classifier(size: Size) -> list[Experiment]:
    if size.images is None:
        return []
    large, small = (0.03, 0.1, 0.3, 1.0), (3e-4, 1e-3, 3e-3, 1e-2)
    tried = {SGDA: large, ADAM: small, ADA: small, DIR: large}
    seeds = size.images[2]
    desk = size.images[1] > 0
    task = Task("fashion-mnist", MLP(), FashionMNIST(5000, 2000, 2000) if desk else FashionMNIST(500, 200, 200))
    rules = {**RULES, ADAM: Adam(lr=1e-3), ADA: Graft(Adam(lr=1e-3), SGD(lr=1.0)),
             DIR: Graft(SGD(lr=0.1), Adam(lr=1e-3))}
    each = tuple(Arm(name, rules[name].with_(lr=rates[1]), Grid(rates) if desk else None,
                     factors=HALVES[name])
                 for name, rates in tried.items())
    return [Comparison("classifier", task, each, Plan(15 if desk else 1, 64, Linear()), (Accuracy(),),
                       tuple(range(1, 1 + seeds)), criterion=Criterion("accuracy", "higher"), moments=3,
                       widen=WIDEN if desk else 0)]


def experiments(scale: Scale) -> Sequence[Experiment]:
    """Return everything that is run at a scale."""
    size = SIZES[scale]
    found: list[Experiment] = []
    if size.theory:
        found.append(Calls("theory", _theory(size)))
    if size.mixed:
        found += [_mixture("ring", Ring(points=size.points), tuple(RULES), size, (SGDA, ADA)),
                  _mixture("lattice", Lattice(points=size.points), LATTICE_ARMS, size)]
    return [*found, *_digits(size), *_classifier(size), *_fashion(size), *_colour(size), *_paper(size)]


FAMILIES = {
    "C0": "Adam beats SGD (the premise)",
    "C1": "Adam's step length on SGD's direction does as well as Adam",
    "C2": "SGD's length on Adam's direction does worse",
    "C3": "Normalised descent without any state does as well as Adam",
    "C4": "In theory normalised descent finds both modes",
    "C5": "In theory plain descent does not",
    "C6": "The discriminator outruns the generator, unless steps are normalised",
    "C7": "Normalising each tensor does as well as normalising the model",
    "C8": "On a classifier the choice makes no difference",
    "K1": "Plain descent is later, not blind (our own claim)",
    "K2": "Length, not direction, makes the difference (our own claim)",
    "K3": "The graft works at more rates than SGD (our own claim)",
}

GAPS = (
    Gap("data sets", "CIFAR-10, STL-10, LSUN and CelebA, as recalled: only the abstract could be read",
        "mixtures of Gaussians and 8x8 digits at desk, 8,000 images of Fashion-MNIST at long",
        "--scale paper has CIFAR-10 and STL-10: months on many cores; LSUN and CelebA have no reader here"),
    Gap("networks", "a DCGAN, residual networks with WGAN-GP, StyleGAN2, as recalled",
        "MLPs of 4,866 and 4,417 weights; a DCGAN of 37,665 and 33,633; at long one for 28x28 images, and WGAN-GP",
        "--scale paper has a DCGAN and residual networks of usual sizes; StyleGAN2 would have to be written"),
    Gap("score", "FID in the features of Inception", "modes and missed mass; Fréchet distance, precision, recall, "
        "density and coverage in the features of a small classifier of the same images",
        "torch-fidelity and 10,000 samples a model, as at --scale paper"),
    Gap("theory", "dimensions to infinity, with constants that are recalled here",
        "exact play in 300 to a million dimensions, 8,000 steps at 45 pairs of rates, 16,000 at the best",
        "nothing: the theorems would have to be read"),
    Gap("rates and seeds", "not known to us", "twelve pairs on mixtures, four and more on digits; ten and eight "
        "seeds", "nothing: the paper would have to say"))

FRESH = tuple(range(301, 325)), tuple(range(325, 349)), tuple(range(349, 397))
FRESHER, FRESHEST = (tuple(tuple(seed + more for seed in added) for added in FRESH) for more in (100, 200))
"""Ten seeds left six claims on mixtures open; 58, 83, 54, 33, 19, 27 would have decided. None was used before."""


def _again(name: str, data: Mixture, names: Sequence[str]) -> Callable[[tuple[int, ...]], Experiment]:
    """Return what plays some rules on a mixture from given seeds, at the rates that were chosen."""
    return lambda seeds: replace(_mixture(name, data, names, SIZES["desk"]), seeds=seeds)


LOOKS = (Looks(("C2 ring, whole model",), FRESH, _again("ring", Ring(points=20_000), (ADA_GLOBAL, DIR_GLOBAL))),
         Looks(("C3 lattice",), FRESH, _again("lattice", Lattice(points=20_000), (ADAM, ROOT, MODEL))),
         Looks(("C1 lattice",), FRESHEST, _again("lattice", Lattice(points=20_000), (ADAM, ADA))),
         Looks(("C0 lattice",), FRESHER, _again("lattice", Lattice(points=20_000), (SGDA, ADAM))),
         Looks(("C3 ring", "C7 ring"), FRESHER, _again("ring", Ring(points=20_000), (ADAM, ROOT, UNIT, MODEL))))

STUDY = Study(
    name="gan_grafting", paper=PAPER,
    question="Adam trains GANs better than SGD. Is it the length of its steps or their direction, and does plain "
             "normalised descent, which needs no second moments, do as well?",
    reproduced="The two-mode theory at the paper's size and beyond it (exact in any dimension), over 45 pairs of "
               "rates; rings and lattices of Gaussians with every rule tuned alike, and the graft matrix of three "
               "rules; a DCGAN on 8x8 digits with and without batch normalisation; a classifier as the "
               "counterexample. At long scale a DCGAN on Fashion-MNIST (Fréchet distance, precision, recall, "
               "density, coverage, and the whole graft matrix), with the non-saturating loss and with WGAN-GP.",
    left_out="Only the paper's abstract could be read: its theory is partly recalled, and none of its numbers is "
             "quoted. Its data sets and networks need GPUs: a DCGAN and residual GANs on CIFAR-10 and STL-10 "
             "stand as configurations at paper scale, in sizes that are usual and not known to be the paper's, "
             "tuned in the features of EfficientNet-Lite0, with the usual FID where torch-fidelity is installed; "
             "none of them was run. StyleGAN2 and LSUN are not configured: the network's path-length "
             "regularisation, augmentation and average of weights are no part of this package, its settings in "
             "the paper could not be read, and LSUN and CelebA have no reader here. Images are scored against "
             "the training part, so copying it is not punished. The number of epochs on digits and Adam's "
             "moments there were set by pilots on a tuning seed.\nRates are chosen after whole trainings. Chosen "
             "after a quarter of the epochs on images and three of ten on mixtures, as was tried once, they do not "
             "carry: of 25 modes Adam then recovers 8 in place of 17, and of SGD's eight trainings on digits two "
             "diverge. On digits the search begins at four pairs a rule, one of them the best of the nine of the "
             "first report, and goes on for at most three rounds while the best of some rule lies at an end. In "
             "the theory SGDA's grid is played for 8,000 steps and its best pair for "
             "16,000; modes at an angle, modes seen together and one-hot latent vectors, which no claim asks "
             "for, are left to --scale paper.",
    experiments=experiments, claims=CLAIMS, pictures=pictures, families=FAMILIES, shown=OF_FAMILY, costs=COSTS,
    gaps=GAPS, twice=TWICE, looks={"desk": LOOKS}, answers=("C0", "C1", "C2", "C3"))
