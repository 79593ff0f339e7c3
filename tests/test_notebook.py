"""experiments/notebooks: each runs from top to bottom in a new kernel, in its smallest setting."""

import os
import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "experiments" / "notebooks"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The Colab notebook after a run on a few photographs, in two epochs of a narrow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BT_JAX_NOTEBOOK", "small")
        patch.setenv("BT_JAX_WORKDIR", str(tmp_path_factory.mktemp("run")))
        one = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # as where it is meant to run
        patch.setenv("XLA_FLAGS", one)
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        notebook = nbformat.read(FOLDER / "barlow_twins_colab.ipynb", as_version=4)
        client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
        client.execute()  # raises if a cell does
        yield notebook, pathlib.Path(os.environ["BT_JAX_WORKDIR"])


def texts_and_pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("srcdoc=" in data.get("text/html", "") for data in shown) == 1, "the report is shown once"
    return texts, sum("image/jpeg" in data for data in shown)


def test_runs_from_a_clean_kernel(executed):
    """It trains, draws its four pictures, shows the report, prints accuracies, exports the encoder and reads it back."""
    notebook, workdir = executed
    texts, pictures = texts_and_pictures(notebook)
    assert pictures == 4
    for part in (
        "small: 408 images",
        "done in",
        "trained encoder    kNN",
        "features differ by 0.0e+00",
        "encoder.jax_export",
    ):
        assert part in texts, part
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    lines = [data["text/plain"] for data in shown if not {"image/jpeg", "text/html"} & set(data)]
    assert len(lines) == 2 and lines[-1].startswith("12/12 ep 2.0 loss "), (
        "one line of progress between looks, and the last stays"
    )
    assert (workdir / "pretrain.json").exists() and (workdir / "export" / "encoder.json").exists()


def test_committed_outputs_are_of_a_fuller_run():
    """All cells were executed in order and without errors, with the pictures and the report."""
    path = FOLDER / "barlow_twins_colab.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    texts, pictures = texts_and_pictures(notebook)
    assert pictures == 4 and "cpu: 5100 images" in texts and path.stat().st_size < 1.5e6
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
