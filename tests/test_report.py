"""bt_jax/report.py: the command."""

import json

import pytest

from bt_jax.errors import UserError
from bt_jax.report import main


def test_one_run_and_several(tmp_path):
    """In a path with blanks; one run has its page in its folder."""
    runs = [tmp_path / "one run", tmp_path / "two runs"]
    for run in runs:
        run.mkdir()
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": i, "loss": 3.0 / (i + 1)}) + "\n" for i in range(3))
        )
    said = []
    main([str(runs[0])], said.append)
    main([*map(str, runs), f"--out={tmp_path / 'both.html'}"], said.append)
    assert said == [f"report    {runs[0] / 'report.html'}", f"report    {tmp_path / 'both.html'}"]
    assert "one run" in (tmp_path / "both.html").read_text() and "two runs" in (tmp_path / "both.html").read_text()


@pytest.mark.parametrize("name", ["knn_accuracy", "rankme"])
def test_what_was_before_training(tmp_path, name):
    """Is told of a look at step 0, and not of the first look of a run that began without a monitor."""
    for first, told in ((0, True), (2, False)):
        lines = [json.dumps({"step": step, "epoch": step / 2, name: 0.5 + step / 10}) for step in (first, 4)]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        main([str(tmp_path)], lambda _: None)
        page = (tmp_path / "report.html").read_text()
        value = f"{0.5 + first / 10:{'.1%' if name == 'knn_accuracy' else '.1f'}}"
        assert (f"and was {value} before training" in page) == told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "required: runs"), (["a", "--ot=b"], "--ot=b"), (["no/such"], "there is no workdir no/such")],
)
def test_mistakes(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        main(arguments, print)


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(UserError, match="cannot be written"):
        main([str(tmp_path), f"--out={tmp_path / 'no' / 'page.html'}"], print)
