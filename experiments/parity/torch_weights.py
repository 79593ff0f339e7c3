"""Weights to torchvision and timm and back, with the libraries themselves: three commands in two environments.

    python-with-torch experiments/parity/torch_weights.py make DIR     saves torchvision's networks as .pth, and their features
    python experiments/parity/torch_weights.py export DIR              bt_jax: compares features of the .pth, and exports them
    python-with-torch experiments/parity/torch_weights.py check DIR    loads the exports in torchvision and timm, strict=True,
                                                                       and the folder for the hub in timm 1.0 or later

The first and third need torch, torchvision, safetensors and optionally timm; the second only bt_jax. Weights and running
statistics are random, so that swapped tensors would be noticed.
"""

import argparse
import pathlib

import numpy as np

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")


def make(folder: pathlib.Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    images = torch.rand(2, 3, 96, 96)
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).numpy())
    for arch in ARCHITECTURES:
        model = getattr(torchvision.models, arch)()
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif value.ndim == 1:
                value.normal_(1, 0.1)
            elif value.ndim == 0:
                value.fill_(7)
        torch.save(model.state_dict(), folder / f"{arch}.pth")
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            np.save(folder / f"{arch}.npy", model.eval()(images).numpy())


def export(folder: pathlib.Path) -> None:
    from etils import epath

    from bt_jax import load_encoder
    from bt_jax.export.encoder import read_weights
    from bt_jax.export.folder import write_folder
    from bt_jax.export.other_frameworks import write_hub
    from bt_jax.export.torch_weights import to_torch

    images = np.load(folder / "images.npy")
    for arch in ARCHITECTURES:
        expected, found = (
            np.load(folder / f"{arch}.npy"),
            load_encoder(folder / f"{arch}.pth").features(images, normalised=True),
        )
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"{arch:9} features of the .pth: relative difference {error:.1e}")
        weights, place = read_weights(folder / f"{arch}.pth"), epath.Path(folder / arch)
        description = write_folder(weights, place, platforms=())
        write_hub(place / "hub", to_torch(weights.variables, arch), description | {"classes": None}, {})


def check(folder: pathlib.Path) -> None:
    import torch
    import torchvision
    from safetensors.torch import load_file

    libraries = {f"torchvision {torchvision.__version__}": lambda arch: getattr(torchvision.models, arch)()}
    try:
        import timm

        libraries[f"timm {timm.__version__}"] = timm.create_model
    except ImportError:
        print("timm is not installed")
    for arch in ARCHITECTURES:
        tensors = load_file(folder / arch / "encoder.safetensors")
        original = torch.load(folder / f"{arch}.pth")
        counters = {name for name in original if name.endswith("num_batches_tracked")}  # an encoder does not keep them
        equal = all(torch.equal(original[name], tensors[name]) for name in original.keys() - counters)
        if any(name.startswith("timm") for name in libraries):
            images = torch.from_numpy(np.load(folder / "images.npy").transpose(0, 3, 1, 2).copy())
            model = timm.create_model(f"local-dir:{folder / arch / 'hub'}", pretrained=True).eval()
            with torch.no_grad():
                found, expected = model(images).numpy(), np.load(folder / f"{arch}.npy")
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            print(f"{arch:9} features by timm from the folder for the hub: relative difference {error:.1e}")
        for library, create in libraries.items():
            print(f"{arch:9} {library}: {create(arch).load_state_dict(tensors, strict=True)}")
        print(
            f"{arch:9} {len(tensors)} tensors, bit for bit those of the .pth: {equal and tensors.keys() == original.keys()}"
        )


if __name__ == "__main__":
    commands = {"make": make, "export": export, "check": check}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    commands[arguments.command](arguments.folder)
