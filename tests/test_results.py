"""bt_jax/evaluation/results.py and table.py: the files, mean and spread, and the paper-shaped tables."""

import contextlib
import errno
import json

import numpy as np
import pytest
from etils import epath

from bt_jax import config as config_lib
from bt_jax.errors import UserError
from bt_jax.evaluation import table
from bt_jax.evaluation.results import make_result, read_results, same_encoder, summary_of_runs, write_result

CHECKPOINT = {"source": "step 7 of x", "step": 7, "sha256": "ab" * 32, "arch": "resnet50", "width": 64}


def result_of(task, runs, checkpoint=CHECKPOINT, **data):
    config = config_lib.default(task)
    data = {"train": "set, train", "test": "set, test", "test_images": 25, "classes": 10} | data
    return make_result(config, protocol="words", data=data, checkpoint=checkpoint, runs=runs)


def run(seed, top1):
    return {"seed": seed, "final": {"top1": top1, "top5": 0.9}, "best": {"epoch": 2, "top1": top1 + 0.01, "top5": 0.91}}


def test_mean_and_spread():
    """numpy's, by dotted name; the sample deviation; none of a single run."""
    values = [0.5, 0.6, 0.8]
    found = summary_of_runs([run(seed, value) for seed, value in enumerate(values)])
    assert found["mean"]["final.top1"] == pytest.approx(np.mean(values))
    assert found["spread"]["final.top1"] == pytest.approx(np.std(values, ddof=1))
    assert "seed" not in found["mean"]
    assert summary_of_runs([run(0, 0.5)])["spread"]["final.top1"] is None


def test_files(tmp_path):
    """Written whole, without NaN, and read back."""
    folder = epath.Path(tmp_path)
    result = result_of("linear", [run(0, 0.5) | {"odd": float("nan")}])
    write_result(folder, result)
    assert [p.name for p in tmp_path.iterdir()] == ["linear.json"]
    (found,) = read_results(str(tmp_path))
    assert found["runs"][0]["odd"] is None and found["config"]["sgd"]["momentum"] == 0.9 and found["seeds"] == [0]
    (tmp_path / "knn.json").write_text("{")
    with pytest.raises(UserError, match="knn.json is not the result of an evaluation .it is not JSON"):
        read_results(str(tmp_path))
    with pytest.raises(UserError, match="has no result of an evaluation"):
        read_results(str(tmp_path / "nowhere"))


def test_a_full_disk(tmp_path, monkeypatch):
    """The previous result stays, and the message says where the numbers are."""
    folder = epath.Path(tmp_path)
    write_result(folder, result_of("linear", [run(0, 0.5)]))
    before = (tmp_path / "linear.json").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError, match=r"linear.json cannot be written \(No space left on device\), so the numbers are only in"
    ):
        write_result(folder, result_of("linear", [run(0, 0.6)]))
    assert (tmp_path / "linear.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_tables(tmp_path, capsys):
    """Each of the paper's tables, with the paper's numbers marked; few labels in order, from scratch first."""
    results = {
        "linear": result_of("linear", [run(0, 0.5), run(1, 0.6)]),
        "tuned": result_of("finetune", [run(0, 0.4)], labels=500, percent=1.0, per_class=None, chosen_by="seed"),
        "scratch": result_of("finetune", [run(0, 0.2)], None, labels=500, percent=1.0, per_class=None, chosen_by="seed"),
        "voc": result_of("transfer", [{"seed": 0, "map_voc07": 0.861, "map_all_points": 0.872}]),
        "knn": result_of("knn", [{"seed": 0, "top1": {"20": 0.3, "200": 0.4},
                                  "health": {"rankme": 55.5, "mean_correlation": 0.1, "dead_features": 0}}]),
    }  # fmt: skip
    folders = []
    for name, result in results.items():
        (tmp_path / name).mkdir()
        write_result(epath.Path(tmp_path / name), result)
        folders.append(str(tmp_path / name))
    table.main(folders)
    said = capsys.readouterr().out
    assert "55.0% ± 7.1% (2 seeds)" in said and "| 86.1% (87.2%) |" in said and "| 30.0% | 40.0% | 55.5 |" in said
    lines = said.splitlines()
    paper = [line for line in lines if "paper (ImageNet, ResNet-50)" in line]
    for numbers in ("| 73.2% | 91.0% |", "| 54.1% |", "| 86.2% |", "| 46.5% |"):
        assert any(numbers in line for line in paper), numbers
    scratch = next(i for i, line in enumerate(lines) if "| Supervised" in line)
    assert "20.0%" in lines[scratch] and "40.0%" in lines[scratch + 1]
    rows = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_interpolated_precision_of_voc(tmp_path, capsys):
    """Before the others; results of earlier versions do not have it."""
    measured = {"map_interpolated": 0.883, "map_voc07": 0.862, "map_all_points": 0.874}
    write_result(epath.Path(tmp_path), result_of("transfer", [{"seed": 0, **measured}]))
    table.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "| mAP, interpolated; 11 points (all points) | 88.3%; 86.2% (87.4%) |" in said


def test_seeds_from_several_folders(tmp_path, capsys):
    """Jobs that differ only in their seed are one row, with mean and spread; the same seed twice is an error."""
    folders = []
    for seed, top1 in enumerate((0.4, 0.5, 0.6)):
        result = result_of("linear", [run(seed, top1)])
        result["config"]["seed"] = seed
        (tmp_path / str(seed)).mkdir()
        write_result(epath.Path(tmp_path / str(seed)), result)
        folders.append(str(tmp_path / str(seed)))
    table.main(folders)
    assert "50.0% ± 10.0% (3 seeds)" in capsys.readouterr().out
    with pytest.raises(UserError, match="hold results of the same seed"):
        table.main([*folders, folders[0]])


def test_table_without_a_folder():
    with pytest.raises(UserError, match="name the workdirs"):
        table.main([])


def test_tables_of_odd_files(tmp_path):
    """With anything changed in a result: a table, or a message that names the file."""
    for task in ("linear", "finetune", "knn", "transfer"):
        runs = [run(0, 0.5)]
        if task == "knn":
            health = {"rankme": 3.0, "mean_correlation": 0.1, "dead_features": 1}
            runs = [{"seed": 0, "top1": {"5": 0.5}, "health": health}]
        good = json.loads(json.dumps(result_of(task, runs, labels=6, percent=None, per_class=2)))
        path = tmp_path / f"{task}.json"
        path.write_text(json.dumps(good))
        table.main([str(tmp_path)], lambda _: None)
        for place in places(good, 3):
            for odd in ([], None, "x", 3, {}, True, float("nan"), GONE):
                path.write_text(json.dumps(changed(good, place, odd)))
                with contextlib.suppress(UserError):
                    table.main([str(tmp_path)], lambda _: None)
        for odd in (b"[]", b"null", b"", b"\xff", b"{}", json.dumps(good | {"task": "other"}).encode()):
            path.write_bytes(odd)
            with pytest.raises(UserError, match=f"{task}.json is not the result of an evaluation"):
                table.main([str(tmp_path)], lambda _: None)
        path.unlink()


@pytest.mark.parametrize("odd", [-0.1, 1.5, 10**9, 10**400, float("nan"), float("inf")])
def test_numbers_that_no_evaluation_has(tmp_path, odd):
    """A message that names the file."""
    for task in ("linear", "knn", "transfer"):
        ran = {
            "linear": {"final": {"top1": odd, "top5": 1}},
            "knn": {"top1": {"5": odd}},
            "transfer": {"map_voc07": odd},
        }
        health = {"rankme": 3.0, "mean_correlation": 0.1, "dead_features": 1}
        result = result_of(task, [{"seed": 0}], labels=6, percent=None, per_class=2)
        result["runs"] = [{"seed": 0, "health": health, "map_all_points": 0.5, **ran[task]}]
        (tmp_path / f"{task}.json").write_text(json.dumps(result))
        with pytest.raises(UserError, match=f"{task}.json cannot be used for a table .*not between 0 and 1"):
            table.main([str(tmp_path)], lambda _: None)
        (tmp_path / f"{task}.json").unlink()


GONE = object()


def places(tree, depth, at=()):
    """The paths into nested objects, `depth` names long at the most."""
    found = []
    for name in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found += [(*at, name), *(places(tree[name], depth - 1, (*at, name)) if depth > 1 else [])]
    return [place for place in found if place[0] != "config" or place[1:] in ((), ("linear",), ("epochs",))]


def changed(tree, place, value):
    name, *rest = place
    new = value if not rest else changed(tree[name], rest, value)
    copy = tree.copy()
    if new is GONE:
        del copy[name]
    else:
        copy[name] = new
    return copy


@pytest.mark.parametrize("content", [b"[]", b"", b"\xff", b"7", b'"x"'])
def test_an_odd_judged_json(tmp_path, content):
    folder = epath.Path(tmp_path)
    same_encoder(folder, None, write=True)
    same_encoder(folder, None, write=True)
    (tmp_path / "judged.json").write_bytes(content)
    with pytest.raises(UserError, match=r"judged.json cannot be read .*; remove it or choose another --workdir"):
        same_encoder(folder, CHECKPOINT, write=True)


def test_a_number_that_was_not_finite(tmp_path):
    write_result(epath.Path(tmp_path), result_of("linear", [run(0, float("nan"))]))
    said = []
    table.main([str(tmp_path)], said.append)
    assert "| — |" in said[0]
