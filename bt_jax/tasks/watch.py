"""What a pre-training keeps for its report, and when the report is drawn: at each look of the monitor, and at the end.

All processes take part in one thing, which is little: the projector on features that the monitor has computed. An error in it ends
all of them, as in a step. The rest is done by the first process alone, so that no other waits for it: the views of a few images at the
start, and then the page, in a thread beside the training, from arrays on the host. No failure there ends a run: it is reported in a
sentence, once.
"""

import datetime
import platform
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bt_jax.data.eval_batches import eval_batches
from bt_jax.data.feed import make_feed, ready_batches
from bt_jax.data.order import Order, evenly
from bt_jax.data.sources.base import Source, StreamSource
from bt_jax.data.subsets import take
from bt_jax.engine.run import Run
from bt_jax.engine.setup import Setup
from bt_jax.engine.state import TrainState, count_parameters
from bt_jax.errors import UserError, first_line
from bt_jax.evaluation.kept_images import KeptImages, shrunk
from bt_jax.evaluation.monitor import FeatureMonitor, Seen
from bt_jax.evaluation.redundancy import cross_correlation, spectrum
from bt_jax.facts import Facts
from bt_jax.methods.base import LossLevels
from bt_jax.pixels import Pixels
from bt_jax.reporting.report.stored import FOLDER, packed, read_facts, write_arrays, write_facts
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.tasks.report import check_report_parts, write_report
from bt_jax.tasks.summary import described_views
from bt_jax.version import __version__

_SHOWN_VIEWS = 8  # images whose views are shown
_KEPT, _SIDE = 2048, 96  # images that are searched for neighbours, and pixels of a copy
_MAPPED, _ON_MAP = 300, 40  # images on the map, and pixels of one
_NEIGHBOURS = 8  # of each image
_VIEW_SIDE = 160  # pixels, of larger views


class Watch:
    """Keeps what the report of one run needs; a run without a report has one that does nothing."""

    def __init__(self, config: ConfigDict, setup: Setup, monitor: FeatureMonitor | None):
        self._setup, self._monitor, self._config = setup, monitor, config
        self._on = bool(config.report.write)
        self._first = self._on and jax.process_index() == 0
        self._folder = setup.workdir / FOLDER
        self._embed: Callable | None = None
        self._embeds = True
        self._thread: threading.Thread | None = None
        self._problems: list[str] = []
        self._told: set[str] = set()
        self._last_sign: float | None = None
        if self._first:
            self._trying(check_report_parts)
            self._trying(self._look_for_signs)
            if monitor is not None:
                monitor.kept = KeptImages(_KEPT, _SIDE, self._picture)

    def begin(self, run: Run) -> None:
        """Keeps what is known at a start: what is run, and views of a few images."""
        if not self._on:
            return
        if self._first:
            self._trying(lambda: self._write_facts(run))
            if run.start.step < self._setup.facts.total_steps:
                self._trying(lambda: self._keep_views(run))
        self._tell(run)

    def look(self, run: Run, state: TrainState, step: int) -> None:
        """Keeps what the monitor has just seen, and draws the report in the background."""
        if not self._on or self._monitor is None or self._monitor.seen is None:
            return
        embeddings = self._embeddings(state, self._monitor.seen.views)
        if self._first:
            self._wait()
            self._tell(run)
            seen, kept = self._monitor.seen, self._monitor.kept
            self._thread = threading.Thread(
                target=self._trying, args=(lambda: self._keep_look(run, step, seen, kept, embeddings),), daemon=True
            )
            self._thread.start()

    def finish(self, run: Run) -> str:
        """Draws the report of a finished run; returns its path, or "" if there is none."""
        if not self._first:
            return ""
        self._wait()
        written: list[str] = []
        self._trying(lambda: written.append(str(write_report(self._setup.workdir))))
        self._tell(run)
        return "".join(written)

    def close(self) -> None:
        """Waits for what is being drawn."""
        self._wait(seconds=30)

    def _picture(self, levels: np.ndarray) -> np.ndarray:
        """Levels (…, C) as something to look at, (…, 3) uint8."""
        data = self._config.data
        return Pixels.of(data).picture(levels, tuple(data.mean), tuple(data.std))

    def _wait(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _trying(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except UserError as error:
            self._problems.append(str(error))
        except Exception as error:  # a report is never worth a run
            self._problems.append(f"it failed with {type(error).__name__}: {first_line(error)}")

    def _tell(self, run: Run) -> None:
        for problem in self._problems:
            if problem not in self._told and not self._told:
                run.reporter.say(f"note      report.html is not complete: {problem}")
            self._told.add(problem)
        self._problems = []

    def _look_for_signs(self) -> None:
        """When the run last wrote a line, for the length of a gap before this start."""
        path = self._setup.workdir / "metrics.jsonl"
        self._last_sign = path.stat().mtime if path.exists() else None

    def _write_facts(self, run: Run) -> None:
        setup, config, path = self._setup, self._config, self._folder / "run.json"
        facts, method, source, start = setup.facts, setup.method, setup.sources[0], run.start
        levels = getattr(method, "loss_levels", lambda _: LossLevels())(facts.batch_size)
        starts = [s for s in read_facts(path).get("starts", []) if isinstance(s, dict)] if start.step else []
        if start.step < facts.total_steps:
            ago = None if self._last_sign is None or not start.step else _time(self._last_sign)
            starts.append({"step": start.step, "at": _time(), "stopped": ago})
        devices = setup.mesh.devices.flat
        write_facts(
            path,
            {
                "method": config.method,
                "title": getattr(method, "title", "") or method.name,
                "metric_words": dict(getattr(method, "metric_words", {})),
                "data": source.name,
                "images": len(source),
                "classes": list(source.class_names[:1000]),
                "views": described_views(method.view_groups),
                "pictures": Pixels.of(config.data).pictured,
                "measured": 0
                if self._monitor is None
                else min(len(self._monitor.source), config.monitor.test_examples),
                "encoder": {
                    "arch": config.model.arch,
                    "features": method.encoder.num_features,
                    "parameters": count_parameters(start.state.params["encoder"]),
                    "with_heads": count_parameters(start.state.params),
                },
                "lines": dict(method.describe(facts.batch_size)) | {"rates": setup.optimizer.description},
                "loss": {"start": levels.start, "floor": levels.floor, "weights": dict(levels.weights)},
                "metrics": list(method.metrics),
                "batch_size": facts.batch_size,
                "steps_per_epoch": facts.steps_per_epoch,
                "total_steps": facts.total_steps,
                "devices": f"{setup.mesh.size} × {devices[0].device_kind}",
                "processes": jax.process_count(),
                "starts": starts,
                "versions": {
                    "bt_jax": __version__,
                    "JAX": jax.__version__,
                    "NumPy": np.__version__,
                    "Python": platform.python_version(),
                    "system": platform.platform(),
                },
            },
        )

    def _keep_views(self, run: Run) -> None:
        """The views of the first images of the run's first batch, made on one device: a batch is the same on any mesh."""
        setup, source = self._setup, self._setup.sources[0]
        mesh = mesh_lib.make_mesh(ConfigDict({"data": 1}), setup.mesh.local_devices[:1])
        size = min(_SHOWN_VIEWS, setup.facts.batch_size)
        facts = Facts(len(source), source.num_classes, size, epochs=1)
        groups = setup.method.view_groups
        feed = make_feed(source, self._config.data, groups, mesh=mesh, seed=setup.seed, facts=facts, may_reside=False)
        self._write_views(run, source, mesh_lib.local_rows(next(ready_batches(feed, 0, 1))), size)

    def _write_views(self, run: Run, source: Source, batch: Any, count: int) -> None:
        data, arrays = self._config.data, {}
        shown = {name: self._picture(np.asarray(views)) for name, views in batch["views"].items()}
        for name, views in shown.items():
            arrays |= packed(f"view_{name}", [shrunk(view, _VIEW_SIDE) for image in views for view in image])
        if not isinstance(source, StreamSource):  # which would be read through for them
            _, examples = Order(self._setup.seed, len(source), count).batch(0)
            wanted = source.usable(examples)
            (whole,) = eval_batches(take(source, wanted, source.name), data, batch_size=count, rows=np.arange(count))
            arrays |= packed("images", [shrunk(self._picture(image), _VIEW_SIDE) for image in whole["image"]])
            arrays["names"] = np.array([_printable(source.path(int(example))) for example in wanted])
        write_arrays(self._folder / "views.npz", arrays | {"count": np.array(count)})
        grid = {f"views/{name}": _side_by_side(views) for name, views in shown.items()}
        run.reporter.images(run.start.step, grid)

    def _embeddings(self, state: TrainState, views: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        """The projector's output for features (m, F) of views, with its running statistics; None without either."""
        if views is None or not self._embeds:
            return None
        if self._embed is None:
            self._trying(lambda: self._trace_projector(state, views[0]))
            self._embeds = self._embed is not None
            return self._embeddings(state, views)
        everywhere = mesh_lib.everywhere(self._setup.mesh)
        variables = _projector_variables(state)
        return tuple(np.asarray(self._embed(variables, jax.device_put(x, everywhere)), np.float32) for x in views)

    def _trace_projector(self, state: TrainState, features: np.ndarray) -> None:
        """Whatever a user's own projector does not take fails here, on every process alike, before anything is computed."""
        head = self._setup.method.heads().get("projector")
        if head is not None:
            everywhere = mesh_lib.everywhere(self._setup.mesh)
            embed = jax.jit(lambda variables, x: head.apply(variables, x, train=False), out_shardings=everywhere)
            jax.eval_shape(embed, _projector_variables(state), features)
            self._embed = embed

    def _keep_look(
        self, run: Run, step: int, seen: Seen, kept: KeptImages | None, embeddings: tuple[np.ndarray, ...] | None
    ) -> None:
        """Writes the arrays of a look, and the report."""
        arrays = {"step": np.array(step), "feature_spectrum": spectrum(seen.features)}
        if embeddings is not None and len(embeddings[0]) > 1:
            found = cross_correlation(*embeddings)
            arrays |= {
                "correlation": found.matrix.astype(np.float16),
                "diagonal": found.diagonal.astype(np.float16),
                "off_diagonal_counts": found.counts,
                "embedding_spectrum": spectrum(embeddings[0]),
                "pairs": np.array(len(embeddings[0])),
            }
            run.reporter.images(step, {"cross_correlation": _as_picture(found.matrix)})
        if step == 0:
            write_arrays(self._folder / "first.npz", arrays)
        if kept is not None and self._monitor is not None:
            arrays |= _pictured(seen, kept, self._monitor.source, self._config.monitor.neighbours)
        write_arrays(self._folder / "last.npz", arrays)
        write_report(self._setup.workdir)


def _pictured(seen: Seen, kept: KeptImages, source: Source, queries: int) -> dict[str, np.ndarray]:
    """Features and copies of images for the map, and the nearest neighbours of some among all that were kept."""
    rows = np.flatnonzero(np.isin(seen.places, list(kept.images)))
    if not len(rows):
        return {}
    mapped = rows[evenly(len(rows), _MAPPED)]
    arrays = {"features": seen.features[mapped].astype(np.float16), "labels": seen.labels[mapped]}
    arrays |= packed("thumbnails", [shrunk(kept.images[place], _ON_MAP) for place in seen.places[mapped].tolist()], 80)
    k = min(_NEIGHBOURS, len(rows) - 1)
    if not queries or k < 1:
        return arrays
    unit = seen.features[rows] / np.maximum(np.linalg.norm(seen.features[rows], axis=1, keepdims=True), 1e-12)
    asked = evenly(len(rows), queries)
    cosines = unit[asked] @ unit.T
    cosines[np.arange(len(asked)), asked] = np.inf  # an image comes first among its neighbours, whatever is equal to it
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : k + 1]
    found = np.take_along_axis(cosines, nearest, axis=1)
    found[:, 0] = 1
    shown, place = np.unique(nearest, return_inverse=True)
    arrays |= packed("tiles", [kept.images[p] for p in seen.places[rows[shown]].tolist()])
    names = [_printable(source.path(int(example))) for example in seen.examples[rows[shown]]]
    return arrays | {
        "nearest": place.reshape(nearest.shape).astype(np.int32),
        "cosines": found.astype(np.float32),
        "tile_names": np.array(names),
        "tile_labels": seen.labels[rows[shown]],
        "searched": np.array(len(rows)),
    }


def _projector_variables(state: TrainState) -> dict[str, Any]:
    statistics = state.model_state["batch_stats"].get("projector", {})
    return {"params": state.params["projector"], "batch_stats": statistics}


def _side_by_side(views: np.ndarray) -> np.ndarray:
    """Views (n, V, S, S, 3) as one picture (n·S, V·S, 3): a row for each image."""
    n, v, s = views.shape[:3]
    return views.transpose(0, 2, 1, 3, 4).reshape(n * s, v * s, 3)


def _as_picture(matrix: np.ndarray) -> np.ndarray:
    """Correlations (d, d) as a picture, uint8 (d, d, 3): white for 0, orange up to 1, blue down to -1."""
    c = np.clip(matrix, -1, 1)[..., None]
    colour = np.where(c > 0, np.array([188, 76, 0]), np.array([9, 105, 218]))
    return np.round(255 + np.abs(c) * (colour - 255.0)).astype(np.uint8)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _time(seconds: float | None = None) -> str:
    now = (
        datetime.datetime.now(datetime.UTC)
        if seconds is None
        else datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    )
    return now.isoformat(timespec="seconds")
