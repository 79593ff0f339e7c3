"""The task `report`: WORKDIR/report.html of any pre-training, from the files in its workdir; its data is not needed.

What an older run has not kept is said on the page.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.errors import UserError, first_line
from bt_jax.evaluation.verdict import warnings_of
from bt_jax.facts import Facts
from bt_jax.parts import import_part
from bt_jax.reporting.report.run import RunFiles, read_run
from bt_jax.runtime.files import errors_of_files, write_whole
from bt_jax.runtime.paths import as_folder

NAME = "report.html"


def report(config: ConfigDict, workdir: str) -> str:
    """Writes the report of the run in `workdir`; of `config`, which need not be the run's, only the task counts.

    Returns:
      The page's path.

    Raises:
      UserError: it is not the workdir of a pre-training, a package is missing, or the page cannot be written.
    """
    del config
    path = str(write_report(as_folder(workdir, "--workdir")))
    console.say(f"report    {path}")
    return path


def check_report_parts() -> None:
    """Raises UserError if a package is missing that only reports need."""
    for module, name in (("matplotlib.figure", "matplotlib"), ("jinja2", "Jinja2"), ("PIL.Image", "Pillow")):
        import_part(module, use="report.html", name=name, otherwise="set report.write=False")


def write_report(workdir: epath.Path, out: epath.Path | None = None) -> epath.Path:
    """Writes the page of a run, by default into its workdir, and returns its path; raises as `report`."""
    check_report_parts()
    from bt_jax.reporting.report.page import page  # imports matplotlib, which takes a second

    run = read_run(workdir)
    out = workdir / NAME if out is None else out
    return _written(out, page(run, **_judged(run)))


def write_comparison(workdirs: Sequence[epath.Path], out: epath.Path) -> epath.Path:
    """Writes a page that compares several runs, and returns its path; raises as `report`."""
    check_report_parts()
    from bt_jax.reporting.report.comparison import comparison

    return _written(out, comparison([read_run(workdir) for workdir in workdirs]))


def _written(out: epath.Path, page: str) -> epath.Path:
    try:
        write_whole(out, page)
    except errors_of_files() as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{out} cannot be written ({why}); make room, or write it elsewhere: python -m bt_jax.report RUN --out=PAGE.html."
        ) from error
    return out


def _judged(run: RunFiles) -> dict[str, Any]:
    """What the page needs and the files do not say: levels of the loss, changed fields and warnings."""
    loss = run.facts.get("loss")
    levels = loss if isinstance(loss, dict) else _levels_of_old(run)
    return {
        "levels": levels,
        "defaults": _defaults(run),
        "warnings": warnings_of(
            run.records,
            width=run.facts.get("encoder", {}).get("features"),
            start=levels.get("start"),
            floor=levels.get("floor"),
            images=run.facts.get("measured") or None,
        ),
    }


def _levels_of_old(run: RunFiles) -> dict[str, Any]:
    """The levels of the loss of a run that has not written them down, from its config; {} if that does not build a method."""
    try:
        from bt_jax.methods import make_method

        config = config_lib.from_json((run.workdir / "config.json").read_text())
        steps = next(round(r["step"] / r["epoch"]) for r in run.records if r.get("epoch"))
        facts = Facts(steps * config.batch_size, 0, config.batch_size, config.epochs)
        levels = make_method(config, facts, None).loss_levels(config.batch_size)
    except Exception:  # of another version, or of a method that is not at hand: the page says that they are not known
        return {}
    return {"start": levels.start, "floor": levels.floor, "weights": dict(levels.weights)}


def _defaults(run: RunFiles) -> dict[str, Any]:
    """The defaults of the fields of the run's task and method, by full name; {} if they are not known."""
    try:
        optimizer = run.config.get("optimizer", {}).get("name")
        return config_lib.flatten(config_lib.default("pretrain", run.method, optimizer=optimizer))
    except Exception:  # a method of someone's own that is not at hand, or one of another version
        return {}
