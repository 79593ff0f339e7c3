"""A ViT's weights to timm and back, with timm itself: three commands in two environments, and the golden file of the tests.

    python-with-timm experiments/parity/timm_vit.py make DIR       saves timm's networks as .pth, and their features
    python experiments/parity/timm_vit.py export DIR               bt_jax: compares features of the .pth, and exports them
    python-with-timm experiments/parity/timm_vit.py check DIR      loads the exports in timm, strict=True
    python-with-timm experiments/parity/timm_vit.py golden         writes tests/golden/vit.npz

The first, third and fourth need torch, timm and safetensors; the second only bt_jax. All weights are random, biases and norms too,
so that swapped tensors would be noticed; the golden file's are drawn by the recipe in tests/golden/README.md.
"""

import argparse
import pathlib
import zlib

import numpy as np

# Name in bt_jax, arguments of timm.create_model.
NETWORKS = {
    "vit_tiny": {"model_name": "vit_tiny_patch16_224"},
    "vit_small": {"model_name": "vit_small_patch16_224"},
    "vit_small_8_48": {"model_name": "vit_small_patch16_224", "patch_size": 8, "img_size": 48},
}
GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "vit.npz"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SALT = 27


def make(folder: pathlib.Path) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # on shared cores faster than waiting for each other
    for name, arguments in NETWORKS.items():
        model = timm.create_model(**arguments, num_classes=10).eval()
        for tensor in model.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape) if tensor.ndim == 1 else 0.02 * torch.randn(tensor.shape))
        torch.save(model.state_dict(), folder / f"{name}.pth")
        size = arguments.get("img_size", 224)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        np.savez(folder / f"{name}.npz", images=images.permute(0, 2, 3, 1).numpy(), features=features.numpy())


def export(folder: pathlib.Path) -> None:
    from etils import epath

    from bt_jax import load_encoder
    from bt_jax.export.encoder import read_weights
    from bt_jax.export.folder import write_folder

    for name in NETWORKS:
        known, encoder = np.load(folder / f"{name}.npz"), load_encoder(folder / f"{name}.pth")
        found = encoder.features(known["images"], normalised=True)
        error = np.linalg.norm(found - known["features"]) / np.linalg.norm(known["features"])
        largest = np.abs(found - known["features"]).max()
        print(f"{name:15} {encoder.arch}, relative difference of features {error:.1e}, largest {largest:.1e}")
        write_folder(read_weights(folder / f"{name}.pth"), epath.Path(folder / name), platforms=())


def check(folder: pathlib.Path) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    for name, arguments in NETWORKS.items():
        tensors, original = load_file(folder / name / "encoder.safetensors"), torch.load(folder / f"{name}.pth")
        equal = all(torch.equal(original[key], tensors[key]) for key in original) and tensors.keys() == original.keys()
        loaded = timm.create_model(**arguments, num_classes=10).load_state_dict(tensors, strict=True)
        print(
            f"{name:15} timm {timm.__version__}, torch {torch.__version__}: {loaded}; {len(tensors)} tensors, bit for bit those of the .pth: {equal}"
        )


def golden(_: pathlib.Path | None) -> None:
    import torch
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**SMALL, num_classes=0).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(recipe(name, shape)) for name, shape in shapes.items()})
    images = np.random.default_rng(SALT).standard_normal((3, 32, 32, 3)).astype(np.float32)
    given = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model(given).numpy()
    shapes_text = [f"{name} {','.join(map(str, shape))}" for name, shape in shapes.items()]
    np.savez_compressed(GOLDEN, images_nhwc=images, features=features, names=shapes_text, salt=SALT)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, {len(shapes)} tensors")


def recipe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor with that name: see tests/golden/README.md."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + SALT)
    if len(shape) > 1:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return ((1 if name.endswith("weight") else 0) + 0.1 * rng.standard_normal(shape)).astype(np.float32)


if __name__ == "__main__":
    commands = {"make": make, "export": export, "check": check, "golden": golden}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", metavar="DIR")
    arguments = parser.parse_args()
    commands[arguments.command](arguments.folder)
