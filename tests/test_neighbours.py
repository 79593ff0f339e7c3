"""bt_jax/evaluation/neighbours.py against plain numpy in float64, and its command."""

import jax
import numpy as np
import pytest

import bt_jax
from bt_jax.errors import UserError
from bt_jax.evaluation.neighbours import main, near_duplicates, neighbours, read_embeddings


def cosines(a, b):
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return unit[0] @ unit[1].T


def features_of(n, width=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_nearest_are_numpys(devices):
    """Of other images, and of the set itself, where no image is its own neighbour."""
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    bank, queries = features_of(300), features_of(40, seed=1)
    images, similarities = bt_jax.neighbours(bank, queries, k=7, mesh=mesh)
    expected = cosines(queries, bank)
    order = np.argsort(-expected, axis=1)[:, :7]
    np.testing.assert_array_equal(images, order)
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, order, 1), atol=1e-6)
    assert images.dtype == np.int32 and similarities.dtype == np.float32
    images, similarities = neighbours(bank, k=5, mesh=mesh)
    own = cosines(bank, bank)
    np.fill_diagonal(own, -2)
    np.testing.assert_array_equal(images, np.argsort(-own, axis=1)[:, :5])


def test_equal_images_are_neighbours():
    """None is its own, also where more are equal to it than are asked for; the scale of a feature does not matter."""
    bank = np.repeat(features_of(2), [6, 1], axis=0) * np.arange(1, 8, dtype=np.float32)[:, None]
    images, similarities = neighbours(bank, k=3)
    assert not (images == np.arange(7)[:, None]).any() and (images[:6] < 6).all()
    np.testing.assert_allclose(similarities[:6], 1, atol=1e-6)
    assert neighbours(bank, k=6)[0].shape == (7, 6)


@pytest.mark.parametrize(
    ("features", "more", "sentence"),
    [
        (
            features_of(5),
            {"k": 5},
            "k is 5; it must be an integer, at least 1 and at most 4, the number of other images",
        ),
        (features_of(5), {"k": 0}, "k is 0"),
        (features_of(5), {"k": 2.5}, "k is 2.5; it must be an integer"),
        (features_of(5), {"k": True}, "k is True"),
        (features_of(5), {"queries": features_of(2, 3), "k": 5}, r"features is \(5, 16\) and queries \(2, 3\)"),
        (features_of(5)[0], {}, r"features is \(16,\)"),
        (np.full((5, 3), np.nan), {"k": 1}, "some features are not finite"),
    ],
)
def test_bad_features(features, more, sentence):
    with pytest.raises(UserError, match=sentence):
        neighbours(features, **more)


def test_groups_of_near_duplicates():
    """Those of a search of all pairs: connected by pairs above the threshold, also in chains."""
    rng = np.random.default_rng(3)
    base = features_of(40, 64)
    copies = [base[i] + 0.05 * rng.standard_normal(64).astype(np.float32) for i in (3, 3, 7, 11, 11, 11)]
    features = np.concatenate([base, copies])[rng.permutation(46)]
    linked = cosines(features, features) >= 0.98
    reach = linked
    for _ in range(6):  # chains of up to 64
        reach = reach @ reach
    expected = {tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}
    found = near_duplicates(features, threshold=0.98)
    assert {tuple(group) for group in found} == expected and [len(group) for group in found] == [4, 3, 2]
    assert near_duplicates(features, threshold=1.01) == [] == near_duplicates(features[:1])


def test_features_that_point_the_same_way():
    """As after a ReLU: without their mean, which tells nothing of an image, only copies are near-duplicates."""
    features = 5 + features_of(150, 32)
    features[[20, 90]] = features[[7, 31]] + 1e-3
    assert near_duplicates(features) == [[7, 20], [31, 90]]
    assert len(near_duplicates(features[:60], threshold=0.95)[0]) > 40, (
        "the mean of few says too little to be subtracted"
    )


def embeddings(path, features=None, **more):
    features = features_of(6) if features is None else features
    np.savez(
        path / "embeddings.npz",
        **{"features": features, "paths": np.array([f"a/{i}.png" for i in range(len(features))]), **more},
    )
    return str(path)


def test_the_command(tmp_path):
    features = features_of(6)
    features[4] = 2 * features[1]
    out, said = embeddings(tmp_path, features), []
    main([out], said.append)
    assert said == [
        "2 of 6 images are near-duplicates, in 1 group(s), by a cosine of 0.99 or more",
        "\na/1.png\na/4.png",
    ]
    said.clear()
    main([f"{out}/embeddings.npz", "--of=a/4.png", "--k=2"], said.append)
    assert len(said) == 2 and said[0] == "1.0000  a/1.png"
    expected = np.argsort(-cosines(features[4:5], features)[0])
    assert [line.split()[1] for line in said] == [f"a/{i}.png" for i in expected if i != 4][:2]


def test_bad_commands(tmp_path):
    with pytest.raises(UserError, match="there are no embeddings in .*; name the --workdir of a task embed"):
        main([str(tmp_path)])
    out = embeddings(tmp_path)
    for arguments, sentence in [
        ([], "required: embeddings; python -m bt_jax"),
        ([out, "--k=many"], "invalid int value"),
        ([out, "--of=b.png"], "b.png is not among the 6 paths of .*, such as a/0.png"),
    ]:
        with pytest.raises(UserError, match=sentence):
            main(arguments)
    (tmp_path / "embeddings.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="cannot be read as embeddings"):
        read_embeddings(out)
    embeddings(tmp_path, features_of(4)[0])
    with pytest.raises(UserError, match=r"has features \(16,\) and paths"):
        read_embeddings(out)
