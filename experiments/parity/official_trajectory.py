"""Repeats the run of tests/golden/trajectory.npz in PyTorch, with a chosen precision and number of threads.

    python experiments/parity/official_trajectory.py --dtype float64 --out tests/golden/trajectory_float64.npz
    python experiments/parity/official_trajectory.py --dtype float32 --threads 2

Needs torch and torchvision, which bt_jax does not. The step follows the official main.py, on one process: the model, the loss,
LARS with its two filters, and the schedule. Results are in experiments/results/trajectory.md.
"""

import argparse
import json
import math
import pathlib
import sys
import zlib

import numpy as np
import torch
import torchvision
from torch import nn

ROOT = pathlib.Path(__file__).parents[2]


def recipe(name, shape, salt):
    """As in tests/golden/README.md (and tests/recipes.py, which needs JAX)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + salt)
    if name.endswith("running_var"):
        return 0.5 + rng.random(shape)
    if name.endswith("running_mean"):
        return 0.1 * rng.standard_normal(shape)
    if len(shape) == 1:
        return 0.1 * rng.standard_normal(shape) + (1 if name.endswith("weight") else 0)
    return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))


class Twins(nn.Module):
    """ResNet-18, projector, and the loss."""

    def __init__(self, sizes, lambd):
        super().__init__()
        self.lambd = lambd
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        layers = []
        for before, after in zip([512, *sizes[:-2]], sizes[:-1], strict=True):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.bn = nn.BatchNorm1d(sizes[-1], affine=False)

    def forward(self, a, b):
        z_a, z_b = (self.bn(self.projector(self.backbone(view))) for view in (a, b))
        c = z_a.T @ z_b / len(a)
        diagonal = torch.diagonal(c)
        off = c.pow(2).sum() - diagonal.pow(2).sum()
        return (diagonal - 1).pow(2).sum() + self.lambd * off


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="an .npz file for the losses")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(arguments.threads)
    golden = dict(np.load(ROOT / "tests" / "golden" / "trajectory.npz"))
    settings, salt = json.loads(str(golden["settings"])), int(golden["salt"])

    model = Twins(settings["projector"], settings["lambd"])
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not name.endswith("num_batches_tracked") and not name.startswith("bn."):
                value.copy_(torch.from_numpy(recipe(name, tuple(value.shape), salt).astype(np.float32)))
    model = model.to(dtype).train()
    mean, std = torch.tensor([0.485, 0.456, 0.406], dtype=dtype), torch.tensor([0.229, 0.224, 0.225], dtype=dtype)
    a, b = (
        ((torch.from_numpy(golden[f"view_{v}_uint8"]).to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        for v in "ab"
    )

    warmup, total = settings["warmup_epochs"], settings["epochs"]
    losses, momenta = [], {p: torch.zeros_like(p) for p in model.parameters()}
    for step in range(total):
        rate = settings["batch_size"] / 256
        if step < warmup:
            rate *= step / warmup
        else:
            q = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            rate *= q + 0.001 * (1 - q)
        loss = model(a, b)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p, m in momenta.items():
                update = p.grad
                if p.ndim > 1:
                    update = update + settings["weight_decay"] * p
                    update = update * 0.001 * p.norm() / update.norm()
                m.mul_(0.9).add_(update)
                p.sub_(rate * settings["base_lr_weights" if p.ndim > 1 else "base_lr_biases"] * m)
    difference = np.array(losses) / golden["losses"] - 1
    print(f"torch {torch.__version__}, {arguments.dtype}, {arguments.threads} threads; relative to trajectory.npz:")
    print(np.array2string(difference, precision=1, max_line_width=100), f"\nlargest {np.abs(difference).max():.1e}")
    arrays = dict(model.state_dict())
    for name in [n.removeprefix("final_") for n in golden if n.startswith("final_")]:
        expected = golden[f"final_{name}"]
        difference = np.linalg.norm(arrays[name].numpy() - expected) / np.linalg.norm(expected)
        print(f"  at the end {name}: {difference:.1e}")
    if arguments.out:
        np.savez(arguments.out, losses=np.array(losses))


if __name__ == "__main__":
    sys.exit(main())
