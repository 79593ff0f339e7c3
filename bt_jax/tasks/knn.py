"""The task `knn`: weighted k-nearest-neighbours on frozen features, and measures of the features. Nothing is trained."""

import time
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.order import evenly
from bt_jax.errors import UserError
from bt_jax.evaluation.by_layer import Measured, measure_layers, table_of_layers
from bt_jax.evaluation.health import health
from bt_jax.evaluation.judged import Evaluation, run_task
from bt_jax.evaluation.knn import knn_accuracy
from bt_jax.evaluation.layers import head_of
from bt_jax.evaluation.lidar import lidar
from bt_jax.evaluation.results import Result, make_result, write_result
from bt_jax.models.heads import MLPHead


def knn(config: ConfigDict, workdir: str) -> Result:
    """Evaluates the encoder that `config.init_from` names; all train images vote, for each k in `config.knn.k`.

    Returns:
      The content of WORKDIR/knn.json, complete on the first process.

    Raises:
      UserError: bad input.
    """
    return run_task(config, workdir, evaluate_knn)


def evaluate_knn(config: ConfigDict, workdir: epath.Path, mesh: Mesh) -> Result:
    """Like `knn`, in joined processes, on a mesh."""
    evaluation = Evaluation(config, workdir, mesh)
    settings, train = config.knn, evaluation.train
    if max(settings.k) > len(train):
        raise UserError(
            f"knn.k has {max(settings.k)}, but must be at most {len(train)}, the number of train images of {train.name}."
        )
    if settings.layers:
        _projector(evaluation)
    protocol = f"frozen encoder; cosine, k of {', '.join(map(str, settings.k))}, temperature {settings.temperature:g}"
    found: list[Result] = []
    with evaluation.begun(protocol) as session:
        session.do(lambda: found.append(_judge(evaluation, protocol)), "the kNN search")
    return found[0]


def _judge(evaluation: Evaluation, protocol: str) -> Result:
    config, mesh, workdir, train, test = (
        evaluation.config, evaluation.mesh, evaluation.workdir, evaluation.train, evaluation.test
    )  # fmt: skip
    settings = config.knn
    begin = time.monotonic()
    features, labels = evaluation.features(train)
    test_features, test_labels = evaluation.features(test)
    evaluation.say(f"features of {len(labels)} and {len(test_labels)} images in {time.monotonic() - begin:.0f} s")
    begin = time.monotonic()
    # Images that do not decode are left out, so there may be fewer than the set has.
    ks = sorted({min(k, len(labels)) for k in settings.k})
    accuracies = knn_accuracy(
        features,
        labels,
        test_features,
        test_labels,
        num_classes=train.num_classes,
        k=ks,
        temperature=settings.temperature,
        mesh=mesh,
    )
    seconds = time.monotonic() - begin
    views = evaluation.pairs_of_views()
    ranked = evenly(len(test_features), settings.health_examples)
    state = health(test_features[ranked], views)
    views_for_lidar = evaluation.views_for_lidar()
    if views_for_lidar is not None:
        state["lidar"] = lidar(views_for_lidar)
    layers = None
    if settings.layers:
        some = evenly(len(labels), settings.layer_examples)
        measured = Measured(features[some], labels[some], test_features, test_labels, ranked, views_for_lidar)
        layers = _layers(evaluation, measured)
    run = {
        "seed": config.seed,
        "top1": {str(k): accuracy for k, accuracy in zip(ks, accuracies, strict=True)},
        "health": state,
        "images": len(test_labels),
        "seconds_of_search": round(seconds, 1),
        **({} if layers is None else {"layers": layers}),
    }
    result = make_result(
        config, protocol=protocol, data=evaluation.data_facts(), checkpoint=evaluation.judged.facts, runs=[run]
    )
    lines = [f"kNN top-1     {accuracy:.2%} with k = {k}" for k, accuracy in zip(ks, accuracies, strict=True)]
    width = features.shape[1]
    lines += [
        f"RankMe        {state['rankme']:.1f} of {min(width, len(test_features))}",
        f"correlation   {state['mean_correlation']:.3f}, mean absolute value over pairs of features",
        f"dead features {state['dead_features']} of {width}",
        *(
            [
                f"alignment     {state['alignment']:.3f}, uniformity {state['uniformity']:.2f}, for two training views each "
                f"of {len(views[0])} images"
            ]
            if views
            else []
        ),
        *([] if views_for_lidar is None else [_lidar_line(state["lidar"], views_for_lidar)]),
        f"result        {workdir / 'knn.json'}",
    ]
    evaluation.say("\n" + "\n".join(lines))
    if evaluation.is_first:
        write_result(workdir, result)
    return result


def _lidar_line(value: float, views: np.ndarray) -> str:
    images, count, width = views.shape
    return f"LiDAR         {value:.1f} of {min(width, images - 1)}, for {count} training views each of {images} images"


def _projector(evaluation: Evaluation) -> tuple[MLPHead, Any]:
    judged = evaluation.judged
    variables = judged.heads.get("projector")
    return head_of(variables, judged.module.num_features, evaluation.config.init_from), variables


def _layers(evaluation: Evaluation, measured: Measured) -> list[Result]:
    settings = evaluation.config.knn
    head, variables = _projector(evaluation)
    k = min(settings.k[0], len(measured.labels))
    rows = measure_layers(
        measured,
        head,
        variables,
        num_classes=evaluation.train.num_classes,
        k=k,
        temperature=settings.temperature,
        seed=evaluation.config.seed,
        mesh=evaluation.mesh,
    )
    evaluation.say("\n" + table_of_layers(rows, k=k, train_images=len(measured.labels)))
    return rows
