"""torchvision's names <-> Linen variables of a ResNet and of the heads; a ViT has timm's (`bt_jax.export.timm_weights`).

A file often holds more than an encoder, or wraps it: `weights_of_state_dict` finds the encoder by its names behind any prefix
(`module.backbone.` in the official checkpoint.pth), and the projector and the classifier next to it; in files of solo-learn and
lightly, only the encoder.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.errors import UserError, some
from bt_jax.export.timm_weights import from_timm, to_timm, vit_in
from bt_jax.export.torch_names import Shapes, flat, from_names, nearest, path_of, to_names
from bt_jax.export.weights import EncoderWeights, Tree, encoder_shapes
from bt_jax.models import Projector, make_encoder
from bt_jax.models.norm import ViewBatchNorm
from bt_jax.models.resnet import BLOCKS, BOTTLENECK
from bt_jax.models.vit import VITS


def from_torch(state_dict: Mapping[str, Any], arch: str) -> dict[str, Tree]:
    """An encoder's variables from torchvision's tensors, or from timm's for a ViT.

    Args:
      state_dict: torch tensors or numpy arrays, by torchvision's names, without the classifier's `fc.*`. The stem (7×7, or
        3×3 for small images), the width and the images' channels are read from `conv1.weight`. For a ViT see `from_timm`.
      arch: a name for `make_encoder`, such as resnet50.

    Returns:
      {"params": …, "batch_stats": …} of float32 numpy arrays; a ViT has only "params".

    Raises:
      UserError: unknown or missing names, or wrong shapes; the first eight are listed.
    """
    if arch in VITS:
        return from_timm(state_dict, arch)
    if "conv1.weight" not in state_dict or np.ndim(state_dict["conv1.weight"]) != 4:
        raise UserError(
            f"these are not the weights of a {arch}: conv1.weight, (width, 3, 7, 7) or (width, 3, 3, 3), is missing."
        )
    width, channels, side, _ = np.shape(state_dict["conv1.weight"])
    encoder = make_encoder(arch, width=width, small_images=side == 3)
    return from_names(state_dict, flat(encoder_shapes(encoder, channels=channels)), _encoder_name, f"a {arch}")


def to_torch(variables: Mapping[str, Tree], arch: str) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: numpy arrays by torchvision's or timm's names, to load with `strict=True`.

    Raises:
      UserError: the variables belong to another architecture.
    """
    if arch in VITS:
        return to_timm(variables, arch)
    params = variables.get("params", {})
    if "conv1" not in params:
        raise UserError(f"these are not the variables of a {arch}: params/conv1 is missing.")
    side, _, channels, width = np.shape(params["conv1"]["kernel"])
    shapes = flat(encoder_shapes(make_encoder(arch, width=width, small_images=side == 3), channels=channels))
    return to_names(variables, shapes, _encoder_name, f"a {arch}")


def projector_from_torch(state_dict: Mapping[str, Any]) -> dict[str, Tree]:
    """A projector's variables from the official names, `{0,3,6}.weight` and `{1,4}.*` for three layers.

    Raises:
      UserError: as `from_torch`.
    """
    linear = (n.removesuffix(".weight") for n, v in state_dict.items() if n.endswith(".weight") and np.ndim(v) == 2)
    layers = sorted(int(name) for name in linear if name.isdigit())
    if not layers:
        found = nearest("0.weight", state_dict)
        raise UserError(
            "these are not the weights of a projector: the linear layer 0.weight is missing"
            f"{f'; {found} may be meant for it' if found else ''}."
        )
    sizes = tuple(np.shape(state_dict[f"{i}.weight"])[0] for i in layers)
    features = np.shape(state_dict[f"{layers[0]}.weight"])[1]
    return from_names(state_dict, _projector_shapes(sizes, features), _projector_name, "a projector")


def projector_to_torch(variables: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """The inverse of `projector_from_torch`."""
    sizes = projector_sizes(variables)
    features = variables["params"]["linear1"]["kernel"].shape[0]
    return to_names(variables, _projector_shapes(sizes, features), _projector_name, "a projector")


def projector_sizes(variables: Mapping[str, Tree]) -> tuple[int, ...]:
    """The widths of a projector's layers, in order.

    Raises:
      UserError: these are not the variables of a projector.
    """
    layers = {name: part for name, part in variables["params"].items() if name.startswith("linear")}
    if not layers or layers.keys() != {f"linear{i + 1}" for i in range(len(layers))}:
        raise UserError("these are not the variables of a projector: params/linear1, params/linear2, … are missing.")
    return tuple(layers[f"linear{i + 1}"]["kernel"].shape[1] for i in range(len(layers)))


def classifier_from_torch(state_dict: Mapping[str, Any], name: str = "fc") -> dict[str, Tree]:
    """The variables of a `LinearClassifier`, from `fc.weight` (classes, F) and `fc.bias`.

    Args:
      name: of the layer; `classifier_name` of an architecture.

    Raises:
      UserError: as `from_torch`.
    """
    weight = state_dict.get(f"{name}.weight", np.zeros(0))
    classes, features = np.shape(weight) if np.ndim(weight) == 2 else (0, 0)
    return from_names(state_dict, _classifier_shapes(classes, features), lambda _: name, "a linear classifier")


def classifier_to_torch(variables: Mapping[str, Tree], name: str = "fc") -> dict[str, np.ndarray]:
    """The inverse of `classifier_from_torch`; together with an encoder's tensors they make up the library's network.

    A batch norm on the features becomes part of the layer, with its running statistics.
    """
    if "bn" in variables["params"]:
        variables = _without_norm(variables)
    features, classes = np.shape(variables["params"].get("linear", {}).get("kernel", np.zeros((0, 0))))
    return to_names(variables, _classifier_shapes(classes, features), lambda _: name, "a linear classifier")


def _without_norm(variables: Mapping[str, Tree]) -> dict[str, Tree]:
    """The classifier without batch norm that gives the same logits in evaluation, but for rounding."""
    norm, linear = (
        {n: np.asarray(v, np.float64) for n, v in variables["params"][part].items()} for part in ("bn", "linear")
    )
    mean, var = (np.asarray(variables["batch_stats"]["bn"][name], np.float64) for name in ("mean", "var"))
    factor = norm["scale"] / np.sqrt(var + ViewBatchNorm.eps)
    kernel = factor[:, None] * linear["kernel"]
    bias = linear["bias"] + (norm["bias"] - mean * factor) @ linear["kernel"]
    return {"params": {"linear": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}}


def classifier_name(arch: str) -> str:
    """The name of the classifier's layer in the library whose names the encoder has: fc in torchvision, head in timm's ViTs."""
    return "head" if arch in VITS else "fc"


def weights_of_state_dict(state_dict: Mapping[str, Any], source: str) -> EncoderWeights:
    """The encoder in a state dict, with its projector and classifier if the state dict has them.

    The encoder's names may have a prefix, such as `module.backbone.`; `module.projector.*` is then its projector. `fc.*`,
    or a ViT's `head.*`, with the encoder's prefix is a classifier. The official loss's `bn.*`, running statistics that are not used after
    training, is ignored. Tensors that solo-learn and lightly save along with their `backbone.*` (`_BESIDE`), and a projector
    with other layers than the official one, are left out, and `EncoderWeights.source` says so. Lightly's encoder, a sequence,
    has numbers as names (`_NUMBERED`). The architecture, and a ResNet's width and stem, or a ViT's patches and image
    size, are inferred from names and shapes.

    Args:
      source: where the tensors come from, for errors and `EncoderWeights.source`.

    Raises:
      UserError: the state dict has no encoder, or more than one, or tensors that belong to none of these; or as
        `from_torch`.
    """
    renamed = _by_torchvisions_names(state_dict)
    was_numbered, state_dict = renamed.keys() != state_dict.keys(), renamed
    prefix, is_vit = _place_of_encoder(state_dict, source)
    fc = "head." if is_vit else "fc."
    outer = prefix.rstrip(".").rpartition(".")[0]  # module.backbone. -> module
    outer = f"{outer}." if outer else ""
    parts: dict[str, dict[str, Any]] = {"encoder": {}, "projector": {}, "classifier": {}, "loss": {}}
    left_out = set()
    for name, value in state_dict.items():
        if name.startswith(f"{prefix}{fc}"):
            parts["classifier"][name.removeprefix(prefix)] = value
        elif name.startswith(f"{outer}projector."):
            parts["projector"][name.removeprefix(f"{outer}projector.")] = value
        elif name.startswith(f"{outer}bn."):
            parts["loss"][name] = value
        elif prefix and not name.startswith(prefix) and (beside := _BESIDE.match(name.removeprefix(outer))):
            left_out.add(f"{outer}{beside[0]}{'*' if beside[0].endswith('.') else ''}")
        else:  # names without the prefix stay whole, and are reported as unknown
            parts["encoder"][name.removeprefix(prefix)] = value
    if prefix and _another_projector(parts["projector"]):
        left_out.add(f"{outer}projector.*")
        parts["projector"] = {}
    if is_vit:
        settings: dict[str, Any] = vit_in(parts["encoder"], source)
    else:
        width, channels, side, _ = np.shape(parts["encoder"]["conv1.weight"])
        settings = {"arch": architecture_of(parts["encoder"], source), "width": width, "small_images": side == 3}
        settings |= {"input_size": 32 if side == 3 else 224, "channels": channels}
        # solo-learn pads its 3×3 stem by 2 (solo/methods/base.py); its classifier stands beside the encoder.
        if side == 3 and prefix == "backbone." and "classifier.weight" in state_dict and not was_numbered:
            settings["stem_padding"] = 2
    if settings["channels"] != 3:  # such files do not say how their images were normalised
        settings |= {"mean": (0.0,) * settings["channels"], "std": (1.0,) * settings["channels"]}
    variables, heads = without_counters(from_torch(parts["encoder"], settings["arch"])), {}
    if parts["projector"]:
        heads["projector"] = without_counters(projector_from_torch(parts["projector"]))
    if parts["classifier"]:
        heads["classifier"] = classifier_from_torch(parts["classifier"], fc.removesuffix("."))
    said = f"{source}, without its {', '.join(sorted(left_out))}" if left_out else source
    return EncoderWeights(variables=variables, source=said, heads=heads, **settings)


_RESNET = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
_VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")


def _place_of_encoder(state_dict: Mapping[str, Any], source: str) -> tuple[str, bool]:
    """The prefix of the encoder's names, and whether it is a ViT."""
    found = [
        (prefix, ends is _VIT) for ends in (_RESNET, _VIT) for name in state_dict
        for prefix in [name.removesuffix(ends[0])]
        if name.endswith(ends[0]) and all(prefix + end in state_dict for end in ends)
    ]  # fmt: skip
    if len(found) > 1:  # solo-learn and lightly also save a moving average of the encoder
        found = [(prefix, is_vit) for prefix, is_vit in found if "momentum" not in prefix] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{source} holds several encoders ({', '.join(f'{p}*' for p, _ in found)}); keep one of them.")
    if mistaken := _mistaken(state_dict):
        raise UserError(f"{source} holds no encoder, as {mistaken}.")
    raise UserError(
        f"{source} holds no ResNet in torchvision's names, {', '.join(_RESNET)}, …, and no ViT in timm's, {', '.join(_VIT)}, "
        "…, behind any prefix."
    )


def _mistaken(state_dict: Mapping[str, Any]) -> str:
    """If all but one of the names that tell an encoder are there: which is missing, and which may be meant for it."""
    for ends in (_RESNET, _VIT):
        prefixes = [name.removesuffix(end) for name in state_dict for end in ends if name.endswith(end)]
        for prefix in dict.fromkeys(prefixes):
            absent = [prefix + end for end in ends if prefix + end not in state_dict]
            if len(absent) == 1 and (found := nearest(absent[0], state_dict)):
                return f"{absent[0]} is missing; {found} may be meant for it"
    return ""


# Other tensors in files of solo-learn and lightly: heads, moving averages, queues.
_BESIDE = re.compile(
    r"(momentum_\w+|\w+_momentum|(online_)?classifier|linear_classifier|predictor|projection_head|prediction_head|prototypes|"
    r"queue\w*|memory_bank|criterion|loss|key_\w+)(\.|$)"
)
# torchvision's ResNet as torch.nn.Sequential(*resnet.children()) numbers it; 2, 3 and 8 have no weights. lightly's own ResNet for small
# images (lightly/models/resnet.py) has neither ReLU nor max-pool among its children, and calls the downsampling "shortcut".
_NUMBERED = {
    "4.0.conv1.weight": {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
    "2.0.conv1.weight": {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"},
}


def _by_torchvisions_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors, with the layers of numbered encoders renamed to torchvision's names."""
    # By the prefix of an encoder. lightly's own comes last, as it has a 4.0.conv1.weight too.
    numbers: dict[str, Mapping[str, str]] = {}
    for first, names in _NUMBERED.items():
        for prefix in [name.removesuffix(first) for name in state_dict if name.endswith(first)]:
            if all(f"{prefix}{end}" in state_dict for end in ("0.weight", "1.running_mean")):
                numbers[prefix] = names
    renamed = {}
    for name, value in state_dict.items():
        for prefix, names in numbers.items():
            number, dot, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and number in names:
                name = f"{prefix}{names[number]}{dot}{rest.replace('.shortcut.', '.downsample.')}"
                break
        renamed[name] = value
    return renamed


def _another_projector(part: Mapping[str, Any]) -> bool:
    """Whether a projector has names or biases that the official one does not have."""
    return any(
        not name.partition(".")[0].isdigit()
        or (name.endswith(".bias") and np.ndim(part.get(name.removesuffix("bias") + "weight", 0)) == 2)
        for name in part
    )


def see_sound(weights: EncoderWeights) -> None:
    """Raises UserError for weights that are not finite, and for variances below 0."""
    wrong = []
    for network, tree in {"encoder": weights.variables, **weights.heads}.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join((network, *path_of(path)[1:]))
            if not np.isfinite(leaf).all():
                wrong.append(f"{name} is not finite")
            elif path_of(path)[-1] == "var" and np.min(leaf, initial=0) < 0:
                wrong.append(f"{name}, a variance, is {np.min(leaf):.3g}")
    if wrong:
        raise UserError(f"the weights of {weights.source} are damaged, or their training diverged: {some(wrong)}.")


def architecture_of(state_dict: Mapping[str, Any], source: str) -> str:
    """The architecture that the names belong to.

    Raises:
      UserError: to none that is known.
    """
    names = set(state_dict)
    there = {name.rpartition(".conv")[0] for name in names} | {name.rpartition(".bn")[0] for name in names}
    stages = tuple(next(i for i in range(len(names)) if f"layer{stage}.{i}" not in there) for stage in (1, 2, 3, 4))
    bottleneck = any(f".{layer}3." in name for name in names for layer in ("conv", "bn"))
    stem, inner, middle = (
        tuple(getattr(state_dict.get(f"{n}.weight"), "shape", ()))
        for n in ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    )
    kind = "ResNet"
    if bottleneck and len(middle) == 4 and middle[0] != middle[1]:
        kind = f"ResNeXt (convolutions of {middle[0] // max(middle[1], 1)} groups)"
    elif bottleneck and stem and inner and inner[0] != stem[0]:
        kind = f"Wide ResNet ({inner[0]} channels within the first block where a ResNet has {stem[0]})"
    for arch, blocks in BLOCKS.items():
        if kind == "ResNet" and blocks == stages and (arch in BOTTLENECK) == bottleneck:
            return arch
    raise UserError(
        f"{source} holds a {kind} of {'-'.join(map(str, stages))} {'bottleneck' if bottleneck else 'basic'} blocks; "
        f"known architectures: {', '.join(BLOCKS)}."
    )


def without_counters(variables: Mapping[str, Any]) -> Tree:
    """The variables without the counters `batches`, as their module makes them."""
    return {
        name: without_counters(value) if isinstance(value, Mapping) else value
        for name, value in variables.items()
        if name != "batches"
    }


def _projector_shapes(sizes: tuple[int, ...], features: int) -> Shapes:
    module = Projector(sizes)
    return flat(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, features)), train=False)))


def _classifier_shapes(classes: int, features: int) -> Shapes:
    return {("params", "linear", "bias"): (classes,), ("params", "linear", "kernel"): (features, classes)}


def _encoder_name(part: tuple[str, ...]) -> str:
    """('layer1_0', 'downsample_conv') -> layer1.0.downsample.0"""
    name = ".".join(part).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return name.replace("_", ".")


def _projector_name(part: tuple[str, ...]) -> str:
    """linear1, bn1, linear2, … -> 0, 1, 3, …, as a ReLU comes between."""
    (name,) = part
    number = int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
    return str(3 * (number - 1) + (1 if name.startswith("bn") else 0))
