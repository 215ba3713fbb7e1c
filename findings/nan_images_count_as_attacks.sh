#!/usr/bin/env bash
# Foolbox and torchattacks return an image full of nan where a gradient is nan, and count it as a successful attack.
#
# Expected: an attack with a radius of 1e-9 fools nobody; an image whose gradient is not finite is left as it is, or an
# error is raised. A perturbed image lies within the radius.
# Happens:  a model that divides images by their l2 norm, written as the root of a sum of squares, has a finite output
# and a nan gradient at a blank image. L2 PGD (both libraries) and L2 DeepFool (foolbox) then return nan pixels, outside
# every radius and the bounds; the model's output there is nan, argmax of nan is class 0, and the image counts as
# fooled whenever its label is not 0. The l-infinity attacks, which take the sign, leave the image alone.
# Why it matters: robust accuracy is too low by the share of blank images (padding, masked crops, dead sensors), at every
# radius, for models with a normalisation inside.
# Source: foolbox 3.3.4, torchattacks 3.5.1, torch 2.13.0.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" "foolbox==3.3.4" "scipy==1.17.1" "setuptools==80.9.0" "tqdm" "requests"
env/bin/pip install -q --disable-pip-version-check --no-deps "torchattacks==3.5.1"
env/bin/python -W ignore - <<'PY'
import importlib.metadata

import foolbox
import torch
import torchattacks
from torch import nn

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "foolbox", "torchattacks")))
RADIUS = 1e-9


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-6))


torch.manual_seed(0)
model = Normalised().eval()
images = torch.rand(8, 1, 2, 2)
images[0] = 0
labels = model(images).argmax(1)
assert bool(model(images).isfinite().all())
assert int(labels[0]) != 0
ours = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
found = {}
for attack in (foolbox.attacks.L2PGD(steps=5, random_start=False), foolbox.attacks.L2DeepFoolAttack(steps=5),
               foolbox.attacks.LinfPGD(steps=5, random_start=False)):
    _, image, fooled = attack(ours, images, labels, epsilons=RADIUS)
    found[f"foolbox {type(attack).__name__}"] = image, fooled
for attack in (torchattacks.PGDL2(model, eps=RADIUS, steps=5, random_start=False),
               torchattacks.PGD(model, eps=RADIUS, alpha=RADIUS, steps=5, random_start=False)):
    image = attack(images, labels)
    found[f"torchattacks {type(attack).__name__}"] = image, model(image).argmax(1) != labels
for name, (image, fooled) in found.items():
    print(f"{name:50s} images with nan: {int(image.isnan().flatten(1).any(1).sum())}, counted as fooled: {int(fooled.sum())} of 8")
broken = [name for name, (image, fooled) in found.items() if bool(image[0].isnan().any()) and fooled.tolist() == [True] + 7 * [False]]
assert len(broken) == 3, "changed"
PY
