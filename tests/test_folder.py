"""bt_jax/export/folder.py and task.py: exports are read back, checked, and run without the training run."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import bt_jax
from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.export import folder as export_folder
from bt_jax.export.folder import read_folder, write_folder
from bt_jax.export.torch_weights import classifier_from_torch
from bt_jax.export.weights import EncoderWeights, encoder_shapes, sha256_of
from bt_jax.models import Projector
from bt_jax.tasks.export import _in_torch, export


@pytest.fixture(scope="module")
def weights():
    """A narrow ResNet-18 whose running statistics differ from the initial ones, with a projector and a classifier."""
    rng = np.random.default_rng(0)
    known = EncoderWeights(
        "resnet18", {}, "step 7 of a test", width=4, small_images=True, stem_stride=2, input_size=16, step=7,
        mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), config_hash="abc", method="simclr",
    )  # fmt: skip
    projector = jax.eval_shape(lambda: Projector((6, 5)).init(jax.random.key(0), jnp.zeros((1, 32)), train=False))

    def drawn(shapes):
        return jax.tree.map(lambda s: rng.uniform(0.1, 0.4, s.shape).astype(np.float32), shapes)

    classifier = {"fc.weight": rng.random((3, 32), np.float32), "fc.bias": rng.random(3, np.float32)}
    return dataclasses.replace(
        known,
        variables=drawn(encoder_shapes(known.module())),
        heads={"projector": drawn(projector), "classifier": classifier_from_torch(classifier)},
    )


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    path = epath.Path(tmp_path_factory.mktemp("export")) / "encoder"
    write_folder(weights, path)
    return path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def features(folder, images):
    return bt_jax.load_encoder(folder).features(images)


def changed(folder, tmp_path, **fields):
    """A copy of the export whose encoder.json says something else."""
    copy = epath.Path(shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True))
    description = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**description, **fields}))
    return copy


def test_all_comes_back(weights, folder):
    """Every array to the bit, and every fact."""
    found = read_folder(folder)
    for field in dataclasses.fields(EncoderWeights):
        expected, there = getattr(weights, field.name), getattr(found, field.name)
        if field.name in ("variables", "heads"):
            jax.tree.map(np.testing.assert_array_equal, there, expected)
        else:
            assert there == expected, field.name
    description = json.loads((folder / "encoder.json").read_text())
    assert description["sha256"] == sha256_of(weights.variables) == bt_jax.load_encoder(folder).sha256
    assert (description["features"], description["projector"], description["classes"]) == (32, [6, 5], 3)


def test_the_safetensors_alone(weights, folder, images, features):
    """Hold everything that the folder has of the encoder and the classifier; the same weights have the same hash."""
    encoder = bt_jax.load_encoder(folder / "encoder.safetensors")
    assert (encoder.arch, encoder.input_size, encoder.step, encoder.mean) == ("resnet18", 16, 7, (0.4, 0.5, 0.6))
    assert encoder.module.stem_stride == 2 and encoder.sha256 == sha256_of(weights.variables)
    np.testing.assert_allclose(encoder.features(images), features, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, encoder.classifier_variables, weights.classifier_variables)


def test_heads_that_pytorch_has_no_names_for(weights, tmp_path):
    """Come back as they are: a head of another name, and a projector of another kind."""
    heads = {"predictor": weights.heads["projector"], "projector": {"params": {"layer": {"kernel": np.ones((2, 3))}}}}
    heads = jax.tree.map(lambda x: np.asarray(x, np.float32), heads)
    write_folder(dataclasses.replace(weights, heads=heads), epath.Path(tmp_path / "x"), platforms=())
    found = bt_jax.load_encoder(tmp_path / "x")
    jax.tree.map(np.testing.assert_array_equal, found.heads, heads)
    assert not (tmp_path / "x" / "projector.safetensors").exists()
    assert bt_jax.load_encoder(tmp_path / "x" / "encoder.safetensors").sha256 == found.sha256


def test_an_encoder_of_ones_own(images, tmp_path):
    """Has no names in PyTorch, but its program runs without its class."""
    known = EncoderWeights("test_encoders:Patches", {}, "a test", width=4, input_size=16)
    known = dataclasses.replace(known, variables=known.module().init(jax.random.key(0), images[:1] / 255, train=False))
    description = write_folder(known, epath.Path(tmp_path / "x"))
    assert "safetensors" not in description["files"] and not (tmp_path / "x" / "encoder.safetensors").exists()
    found = bt_jax.load_encoder(tmp_path / "x")
    program = jax.export.deserialize(bytearray((tmp_path / "x" / "encoder.jax_export").read_bytes()))
    np.testing.assert_allclose(program.call(images), found.features(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="model.arch is 'gone:Net', but there is no module 'gone'"):
        read_folder(changed(epath.Path(tmp_path / "x"), tmp_path, arch="gone:Net"))


def test_the_program_runs_any_batch(folder, images, features):
    """On 1 and on 7 images, uint8 as they are; for three platforms."""
    program = jax.export.deserialize(bytearray((folder / "encoder.jax_export").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 7):
        np.testing.assert_allclose(program.call(images[:count]), features[:count], rtol=1e-5, atol=1e-5)


def test_bfloat16(weights, tmp_path):
    """Half the bytes; what is read is float32, rounded as it was kept."""
    write_folder(weights, epath.Path(tmp_path / "x"), dtype="bfloat16", platforms=())
    for found in (bt_jax.load_encoder(tmp_path / "x"), bt_jax.load_encoder(tmp_path / "x" / "encoder.safetensors")):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(np.float32)),
            found.variables,
            weights.variables,
        )
    count = sum(leaf.size for leaf in jax.tree.leaves([weights.variables, weights.classifier_variables]))
    assert (tmp_path / "x" / "encoder.safetensors").stat().st_size < 2 * count + 30_000
    assert not (tmp_path / "x" / "encoder.jax_export").exists()


@pytest.mark.parametrize("name", ["../encoder", "/etc", "..", ".", "", "a/b", "a\\b", 3, None])
def test_paths_that_leave_the_folder(folder, tmp_path, name):
    with pytest.raises(UserError, match="points to .*, which is not in the folder itself"):
        read_folder(changed(folder, tmp_path, files={"encoder": name}))


def test_a_link_that_leaves_the_folder(folder, tmp_path):
    copy = changed(folder, tmp_path, files={"encoder": "link"})
    pathlib.Path(copy / "link").symlink_to(folder / "encoder")
    with pytest.raises(UserError, match="leads outside the export folder"):
        read_folder(copy)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"format": 2}, "has format 2, but this bt_jax reads format 1"),
        ({"width": "4"}, "its field width has the wrong type"),
        ({"mean": [1]}, "its field mean is .1., but must be three numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, "its field mean is .0.5, 0.5, nan., but must be three numbers"),
        ({"mean": [0.5, 0.5, 10**400]}, "its field mean is .* but must be three numbers"),
        ({"std": [1, 1, 0]}, "its field std is .1, 1, 0., but must be three positive numbers"),
        ({"std": [1, -1, 1]}, "but must be three positive numbers"),
        ({"std": [True, 1, 1]}, "but must be three positive numbers"),
        ({"width": True}, "its field width has the wrong type"),
        ({"width": -4}, "its field width is -4, but must be an integer from 1 to 65536"),
        ({"width": 10**9}, "its field width is 1000000000, but must be"),
        ({"width": 10**400}, "its field width is 1000.*…, but must be"),
        ({"stem_stride": 0}, "its field stem_stride is 0, but"),
        ({"input_size": 10**9}, "its field input_size is 1000000000, but must be an integer from 1 to 65536"),
        ({"input_size": 0}, "its field input_size is 0, but"),
        ({"input_size": float("nan")}, "its field input_size has the wrong type"),
        ({"small_images": 1}, "its field small_images has the wrong type"),
        ({"step": -1}, "its field step is -1, but must be an integer of at least 0, or null"),
        ({"step": True}, "its field step has the wrong type"),
        ({"dtype": "int32"}, "its field dtype is 'int32', but must be a float type such as float32"),
        ({"format": True}, "has format True, but this bt_jax reads format 1"),
        ({"heads": 3}, "its field heads is no list of names"),
        ({"heads": [["x"]]}, "its field heads is no list of names"),
        ({"features": 10**9}, "was changed or damaged after it was written"),
        ({"arch": "resnet19"}, "did you mean 'resnet18'"),
        ({"width": 8}, "does not have the variables of the resnet18 that"),
        ({"sha256": "0" * 64}, "have the sha256 .* instead of 000000000000… in"),
        ({"files": {}}, "lists no encoder among its files"),
        ({"files": {"encoder": "gone"}}, "gone cannot be read"),
    ],
)
def test_a_description_that_is_wrong(folder, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        read_folder(changed(folder, tmp_path, **fields))


def test_the_description_in_a_safetensors_file(folder, tmp_path):
    """The same, before anything is made from it."""
    tensors, metadata = export_folder.read_safetensors(folder / "encoder.safetensors")
    known = json.loads(metadata["bt_jax"])
    path = epath.Path(tmp_path / "encoder.safetensors")
    for text in (
        json.dumps(known | {"input_size": 10**9}),
        json.dumps(known | {"std": [0, 0, 0]}),
        "[" * 100_000,
        "[]",
    ):
        export_folder.write_safetensors(path, tensors, {"bt_jax": text})
        with pytest.raises(UserError, match="has a damaged description") as found:
            bt_jax.load_encoder(path)
        assert len(str(found.value)) < 400


def test_damaged_weights(folder, tmp_path):
    """Flipped bits of the weights: the sha256 notices, if nothing before it does."""
    copy = changed(folder, tmp_path)
    # In the middle of each array file, over some length: the store may leave bytes that nothing refers to.
    for file in pathlib.Path(copy / "encoder").rglob("d/*"):
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 4, 3 * len(content) // 4, 16):
            content[place] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match="were changed or damaged|cannot be read"):
        read_folder(copy)
    (copy / "encoder.json").write_text("{")
    with pytest.raises(UserError, match="is not the description of an export"):
        bt_jax.load_encoder(copy)


def flipped(path, places):
    """Writes the file with one bit flipped at each place in turn, and afterwards as it was."""
    whole = pathlib.Path(path).read_bytes()
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        pathlib.Path(path).write_bytes(content)
        yield place
    pathlib.Path(path).write_bytes(whole)


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_a_flipped_bit_in_what_describes_itself(weights, folder, tmp_path, name):
    """In the header, the description or the weights: an error, or exactly the same encoder."""
    copy = changed(folder, tmp_path)
    path = copy / name
    read = (lambda: bt_jax.export.encoder.read_weights(path)) if name != "encoder.json" else (lambda: read_folder(copy))
    expected, size = read(), path.stat().length
    places = [*np.random.default_rng(0).integers(0, min(size, 25000), 40).tolist(), size - 1, size // 2, size // 3]
    refused = 0
    for place in flipped(path, places):
        try:
            found = read()
        except UserError as error:
            refused += name in str(error) or "encoder" in str(error)
            continue
        assert {**vars(found), "variables": 0, "heads": 0} == {**vars(expected), "variables": 0, "heads": 0}, place
        jax.tree.map(
            np.testing.assert_array_equal, (found.variables, found.heads), (expected.variables, expected.heads)
        )
    assert refused > 30


@pytest.mark.parametrize("name", ["encoder.safetensors", "projector.safetensors", "encoder.jax_export"])
def test_a_flipped_bit_in_a_file_beside_the_weights(folder, tmp_path, name):
    """The folder's description has the hash of each; a missing one is no error."""
    copy = changed(folder, tmp_path)
    for _ in flipped(copy / name, [(copy / name).stat().length - 9]):
        with pytest.raises(UserError, match=f"{name} does not have the sha256 in .*encoder.json, so it was changed or"):
            read_folder(copy)
        config = config_lib.default("export")
        config.init_from = str(copy)
        with pytest.raises(UserError, match=f"{name} does not have the sha256"):
            export(config, str(tmp_path / "again"))
    read_folder(copy)
    (copy / name).unlink()
    read_folder(copy)


@pytest.mark.parametrize("name", ["encoder", "projector", "classifier"])
def test_weights_of_each_network_are_held_against_their_hash(weights, folder, tmp_path, monkeypatch, name):
    """Also where the store itself notices nothing: in the folder, and in the safetensors file."""
    read_tree, read_tensors = export_folder._read_tree, export_folder.read_safetensors

    def turned(tree):
        leaves, structure = jax.tree.flatten(tree)
        leaves[0] = (leaves[0].view(np.uint32) ^ 1).view(np.float32)
        return jax.tree.unflatten(structure, leaves)

    monkeypatch.setattr(
        export_folder, "_read_tree", lambda path: (turned if path.name == name else lambda x: x)(read_tree(path))
    )
    with pytest.raises(UserError, match=f"the weights in .*/{name} have the sha256 .* export them again"):
        read_folder(folder)
    monkeypatch.undo()
    if name == "projector":
        return
    tensor = {"encoder": "conv1.weight", "classifier": "fc.bias"}[name]

    def other(path):
        tensors, metadata = read_tensors(path)
        return tensors | {tensor: turned(tensors[tensor])}, metadata

    monkeypatch.setattr(export_folder, "read_safetensors", other)
    with pytest.raises(UserError, match="the weights in .*encoder.safetensors have the sha256 .* export them again"):
        bt_jax.load_encoder(folder / "encoder.safetensors")


def test_exports_of_before(folder, tmp_path):
    """Have only the encoder's hash and do not name the method, and are read."""
    copy = changed(folder, tmp_path)
    description = json.loads((copy / "encoder.json").read_text())
    older = {name: v for name, v in description.items() if name == "sha256" or not name.endswith("_sha256")}
    assert len(older) == len(description) - 3
    assert older.pop("method") == bt_jax.load_encoder(copy).method == "simclr"
    (copy / "encoder.json").write_text(json.dumps(older))
    (copy / "encoder.jax_export").write_bytes(b"")
    tensors, _ = export_folder.read_safetensors(copy / "encoder.safetensors")
    for known in (older, {name: value for name, value in older.items() if name != "sha256"}):
        export_folder.write_safetensors(copy / "encoder.safetensors", tensors, {"bt_jax": json.dumps(known)})
        for place in (copy, copy / "encoder.safetensors"):
            encoder = bt_jax.load_encoder(place)
            assert encoder.sha256 == description["sha256"] and encoder.method is None


def test_without_flatbuffers(folder, tmp_path, monkeypatch):
    """The error says what the program takes, before anything is written."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    config = config_lib.default("export")
    config.init_from = str(folder)
    with pytest.raises(UserError, match="flatbuffers, which is not installed; pip install flatbuffers, or set export"):
        export(config, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_paths_may_be_relative(folder, tmp_path, monkeypatch):
    """As the README has it: both what is exported and where to."""
    monkeypatch.chdir(tmp_path)
    config = config_lib.default("export")
    config.export.program = False
    config.init_from = os.path.relpath(folder)
    export(config, "exports/x")
    assert bt_jax.load_encoder("exports/x").sha256 == bt_jax.load_encoder(folder).sha256


@pytest.mark.parametrize("left_out", ["projector", "classifier"])
def test_the_task_without_heads(weights, tmp_path, left_out):
    """Without the method's heads, of whatever names, or without the classifier."""
    projector = weights.heads["projector"]
    heads = {**weights.heads, "predictor": projector, "patch_joint": projector}
    write_folder(dataclasses.replace(weights, heads=heads), epath.Path(tmp_path / "all"), platforms=())
    config = config_lib.default("export")
    config.init_from, config.export.program, config.export[left_out] = str(tmp_path / "all"), False, False
    export(config, str(tmp_path / "x"))
    kept = {"classifier"} if left_out == "projector" else {"projector", "predictor", "patch_joint"}
    assert bt_jax.load_encoder(tmp_path / "x").heads.keys() == kept


def test_the_task(folder, tmp_path, capsys):
    """From weights to a folder, with the parts that are asked for; not over an export, nor into a run."""
    config = config_lib.default("export")
    with pytest.raises(UserError, match="init_from is empty, but must name the encoder to export"):
        export(config, str(tmp_path / "x"))
    config.init_from = str(folder)
    config.export.program = config.export.projector = False
    description = export(config, str(tmp_path / "x"))
    assert description["files"] == {
        "encoder": "encoder",
        "classifier": "classifier",
        "safetensors": "encoder.safetensors",
    }
    assert description["projector"] is None and description["classes"] == 3
    assert f"load_encoder('{tmp_path / 'x'}')" in capsys.readouterr().out
    assert bt_jax.load_encoder(tmp_path / "x").sha256 == bt_jax.load_encoder(folder).sha256
    with pytest.raises(UserError, match="already has an export"):
        export(config, str(tmp_path / "x"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="is the workdir of a run"):
        export(config, str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(config, str(tmp_path / "file" / "x"))


def test_weights_that_are_not_finite_are_not_exported(weights, tmp_path):
    """As of a run that diverged."""
    turned = jax.tree.map(np.copy, weights.variables)
    turned["params"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    write_folder(dataclasses.replace(weights, variables=turned), epath.Path(tmp_path / "x"), platforms=())
    config = config_lib.default("export")
    config.init_from = str(tmp_path / "x")
    with pytest.raises(
        UserError, match="step 7 of a test are damaged, or their training diverged: encoder/conv1/kernel is"
    ):
        export(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "model = torchvision.models.resnet50(); model.fc = torch.nn.Identity(); model.load_state_dict("),
        ({"classes": 7}, "model = torchvision.models.resnet50(num_classes=7); model.load_state_dict("),
        (
            {"small_images": True, "stem_stride": 2},
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, 2, 1, bias=False); model.maxpool = torch.nn.Identity(); model.load",
        ),
        ({"arch": "resnet152"}, "model = torchvision.models.resnet152(); model.fc = torch.nn.Identity(); model.load_state_dict("),
        ({"arch": "resnet200"}, "model = timm.create_model('resnet200', num_classes=0); model.load_state_dict("),
        (
            {"arch": "vit_small", "input_size": 224, "classes": 7},
            "model = timm.create_model('vit_small_patch16_224', num_classes=7); model.load_state_dict(",
        ),
        (
            {"arch": "vit_small", "patch_size": 8},
            "timm.create_model('vit_small_patch16_224', patch_size=8, img_size=48, num_classes=0); model.load",
        ),
        ({"width": 16}, "torchvision has these names, but no resnet50 of width 16;"),
        ({"width": 16, "small_images": True}, "no resnet50 of width 16 with a 3×3 stem"),
    ],
)  # fmt: skip
def test_how_torchvision_takes_it(fields, line):
    """The summary names a network of torchvision only if the tensors fit it."""
    known = {
        "arch": "resnet50",
        "width": 64,
        "small_images": False,
        "stem_stride": 1,
        "stem_padding": 1,
        "classes": None,
    }
    known |= {"patch_size": 16, "input_size": 48, "channels": 3, **fields}
    found = _in_torch(known, epath.Path("out/encoder.safetensors"))
    assert line in found and ("load_file('out/encoder.safetensors')" in found) == (known["width"] == 64)


def test_a_name_that_looks_like_a_pattern(weights, tmp_path, monkeypatch):
    """An export under such a name can be read; a parent of a relative path may have such a name too."""
    (tmp_path / "lr=[0.1]").mkdir()
    monkeypatch.chdir(tmp_path / "lr=[0.1]")
    write_folder(weights, epath.Path("out"), platforms=())
    for place in ("out", tmp_path / "lr=[0.1]" / "out"):
        found = read_folder(epath.Path(place))
        jax.tree.map(np.testing.assert_array_equal, found.variables, weights.variables)


@pytest.mark.parametrize("what", ["tree", "tensors", "program"])
def test_an_export_is_read_back(weights, tmp_path, monkeypatch, what):
    """Storage that returns something else gives an error, and no encoder.json is written."""
    read_tree, read_tensors = export_folder._read_tree, export_folder.read_safetensors
    if what == "tree":
        monkeypatch.setattr(export_folder, "_read_tree", lambda path: jax.tree.map(lambda x: x + 1, read_tree(path)))
    elif what == "tensors":
        turned = lambda path: ({name: -x for name, x in read_tensors(path)[0].items()}, {})  # noqa: E731
        monkeypatch.setattr(export_folder, "read_safetensors", turned)
    else:
        monkeypatch.setattr(export_folder, "portable_program", lambda *_: Unequal(b"program"))
    with pytest.raises(UserError, match="was written, but reads back differently"):
        write_folder(weights, epath.Path(tmp_path / "out"))
    assert not (tmp_path / "out" / "encoder.json").exists()


class Unequal(bytes):
    """Bytes that no file returns."""

    def __ne__(self, other):
        return True


def test_a_killed_export_is_begun_again(weights, tmp_path, monkeypatch):
    """By the same command or one with other settings; files that were there before stay."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(export_folder, "_check_same", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # as in a kill, nothing is cleaned up
            write_folder(weights, epath.Path(tmp_path / "x"), platforms=())
    assert (tmp_path / "x" / "encoder.safetensors").exists() and not (tmp_path / "x" / "encoder.json").exists()
    write_folder(weights, epath.Path(tmp_path / "x"), safetensors=False, platforms=())
    left = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert left == ["classifier", "encoder", "encoder.json", "notes.txt", "projector"]
    with pytest.raises(UserError, match="already has an export"):
        write_folder(weights, epath.Path(tmp_path / "x"), platforms=())


@pytest.mark.parametrize("where", ["tree", "tensors", "program", "description"])
def test_a_full_disk(weights, tmp_path, monkeypatch, where):
    """One sentence, and nothing of the export is left, nor the folder if it was empty; other files stay."""
    full = OSError(errno.ENOSPC, "No space left on device")
    name = {
        "tree": "_check_same",
        "tensors": "write_safetensors",
        "program": "_write_program",
        "description": "write_whole",
    }[where]

    def fail(*_, **__):
        raise full if where != "tree" else ValueError("RESOURCE_EXHAUSTED: No space left on device [source]")

    monkeypatch.setattr(export_folder, name, fail)
    for others in (set(), {"notes.txt", "encoder.py"}):
        folder = tmp_path / f"out{len(others)}"
        if others:
            folder.mkdir()
        for other in others:
            (folder / other).write_text("")
        with pytest.raises(
            UserError, match=r"the export cannot be written to .* \(No space left.*\); nothing of it was left"
        ):
            write_folder(weights, epath.Path(folder), platforms=("cpu",))
        assert folder.exists() == bool(others)
        assert {path.name for path in folder.iterdir()} == others if others else True


@pytest.mark.parametrize("name", ["encoder", "encoder.safetensors", "projector.safetensors", "encoder.jax_export"])
def test_what_else_lies_in_the_folder(weights, tmp_path, name):
    """Is not replaced."""
    (tmp_path / name).mkdir() if name == "encoder" else (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"already has {name}, which the export would replace; choose another"):
        write_folder(weights, epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
