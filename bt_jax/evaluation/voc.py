"""VOC07 classification with linear SVMs on frozen features (paper, section 3.2, appendix C.1, Table 3).

One SVM per class on features of length 1, with C chosen by cross-validation on the train images. The score is the mean
average precision over the classes: interpolated, by VOC07's 11-point rule, and by all points. Images in which a class has only
difficult objects are ignored for that class.

The paper gives a classification mAP by the settings of PIRL, whose code is VISSL. That interpolates, so the paper's
86.2 % is to be compared with `map_interpolated`.

Source: Goyal et al. 2019 (arXiv 1905.01235), as in VISSL: squared hinge loss, positives with weight 2, three folds.

Differences from VISSL (svm_utils/svm_trainer.py, evaluate.py, eval_resnet_8gpu_transfer_voc07_svm.yaml): in training it leaves
images with only difficult objects of a class as negatives of that class (its test ignores them too); it chooses C, of eleven values
from 0.01 to 1000, by scikit-learn's average precision over folds that are not shuffled, where here it is by the 11 points over folds
that the seed shuffles; it resizes images to a square without cropping; and it has 2 × 2 pooled features, 8192 of a ResNet-50, where
here all positions are averaged.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.sources.base import Source
from bt_jax.data.sources.voc import voc_source
from bt_jax.errors import UserError
from bt_jax.evaluation.judged import Evaluation
from bt_jax.evaluation.metrics import average_precision
from bt_jax.evaluation.results import Result, make_result, mean_and_spread, write_result
from bt_jax.parts import import_part
from bt_jax.runtime import processes

MEASURES = ("interpolated", "voc07", "all_points")  # of average precision
_LONG = 7 * 86400  # seconds that the other processes wait for the first one's SVMs; if it dies, they end earlier


class VocEvaluation(Evaluation):
    """The two splits of VOC; as "labels" they have the images' numbers."""

    train: Any  # of voc_source, with `targets`
    test: Any

    def _source(self, split: str) -> Source:
        return voc_source(self.config.data, split)

    def _check_splits(self) -> None:
        for source in (self.train, self.test):
            absent = [
                name
                for name, column in zip(source.class_names, source.targets.T, strict=True)
                if not (column > 0).any()
            ]
            if absent:
                raise UserError(
                    f"{len(absent)} of the {source.num_classes} classes have no image in {source.name} "
                    f"({', '.join(absent[:3])}), so its labels are missing or incomplete."
                )
        # Before features take hours.
        _check_folds(self.train.targets, self.train.class_names, self.config.transfer.svm_folds)

    def _check_labels(self, labels: np.ndarray, source: Source) -> None:
        del labels, source  # they are image numbers


def evaluate_voc(config: ConfigDict, workdir: epath.Path, mesh: Mesh) -> Result:
    """The task `transfer` with protocol "svm", in joined processes, on a mesh."""
    import_part("sklearn.svm", use="transfer.protocol 'svm'", name="scikit-learn")  # before features take hours
    evaluation = VocEvaluation(config, workdir, mesh)
    settings = config.transfer
    protocol = (
        f"frozen encoder; one linear SVM per class on features of length 1, C from "
        f"{', '.join(f'{c:g}' for c in settings.svm_costs)} by {settings.svm_folds}-fold cross-validation; mAP interpolated, by "
        "VOC07's 11-point rule and by all points"
    )
    found: list[Result] = []
    with evaluation.begun(protocol) as session:
        session.do(lambda: found.append(_judge(evaluation, protocol)), "the fitting of SVMs")
    return found[0]


def _judge(evaluation: VocEvaluation, protocol: str) -> Result:
    config, settings = evaluation.config, evaluation.config.transfer
    train, train_images = evaluation.features(evaluation.train)
    test, test_images = evaluation.features(evaluation.test)
    if not evaluation.is_first:
        processes.agree("SVMs", {}, seconds=_LONG)  # a process that exits now would end the first one too
        return {}
    runs = []
    for seed in range(config.seed, config.seed + config.repeats):
        found = svm_average_precisions(
            train,
            evaluation.train.targets[train_images],
            test,
            evaluation.test.targets[test_images],
            evaluation.train.class_names,
            costs=tuple(settings.svm_costs),
            folds=settings.svm_folds,
            seed=seed,
        )
        if found["not_converged"]:
            evaluation.say(f"note      {found['not_converged']} of the SVMs did not converge")
        runs.append({"seed": seed} | found)
    result = make_result(
        config, protocol=protocol, data=evaluation.data_facts(), checkpoint=evaluation.judged.facts, runs=runs
    )
    evaluation.say(
        f"\nmAP, interpolated       {mean_and_spread(result, 'map_interpolated')}\n"
        f"mAP, 11-point rule      {mean_and_spread(result, 'map_voc07')}\n"
        f"mAP, all points         {mean_and_spread(result, 'map_all_points')}\n"
        f"result                  {evaluation.workdir / (config.task + '.json')}"
    )
    write_result(evaluation.workdir, result)
    processes.agree("SVMs", {}, seconds=_LONG)
    return result


def svm_average_precisions(
    train: np.ndarray,
    train_targets: np.ndarray,
    test: np.ndarray,
    test_targets: np.ndarray,
    class_names: Sequence[str],
    *,
    costs: Sequence[float],
    folds: int = 3,
    seed: int = 0,
) -> Result:
    """Fits one SVM per class and scores it.

    Args:
      train, test: features (n, F) and (m, F), not necessarily normalised.
      train_targets, test_targets: (n, C) and (m, C) integers: 1 positive, -1 negative, 0 ignored.
      costs: candidates for C; the one with the highest mean average precision (11 points) over the folds is chosen, the
        smallest on a tie.
      seed: for the folds.

    Returns:
      {"map_interpolated", "map_voc07", "map_all_points", "average_precision": {class: {"interpolated", "voc07", "all_points"}},
      "cost": {class: C}, "not_converged": number of final fits}.

    Raises:
      UserError: a class has fewer positive or negative train images than folds, or no positive test image.
    """
    from sklearn.model_selection import StratifiedKFold

    train, test = _unit(train), _unit(test)
    _check_folds(train_targets, class_names, folds)
    for name, of_test in zip(class_names, test_targets.T, strict=True):
        if not (of_test > 0).any():
            raise UserError(f"class {name} has no positive test image, so its average precision is undefined.")

    def one_class(number: int):
        counts = train_targets[:, number] != 0
        x, y = train[counts], train_targets[counts, number] > 0
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))

        def score(cost):
            found = []
            for fit, held in splits:
                scores = _svm(cost).fit(x[fit], y[fit]).decision_function(x[held])
                found.append(average_precision(scores, y[held])["voc07"])
            return np.mean(found)

        cost = max(sorted(costs), key=score) if len(costs) > 1 else costs[0]
        last = _svm(cost).fit(x, y)
        seen = test_targets[:, number] != 0
        precision = average_precision(last.decision_function(test[seen]), test_targets[seen, number] > 0)
        return precision, cost, int(np.max(last.n_iter_)) >= last.max_iter

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # liblinear releases the GIL
        warnings.simplefilter("ignore")  # about fits that did not converge, which are counted
        found = list(pool.map(one_class, range(len(class_names))))
    precisions = dict(zip(class_names, (precision for precision, _, _ in found), strict=True))
    return {
        **{f"map_{by}": float(np.mean([p[by] for p in precisions.values()])) for by in MEASURES},
        "average_precision": precisions,
        "cost": dict(zip(class_names, (cost for _, cost, _ in found), strict=True)),
        "not_converged": sum(stopped for _, _, stopped in found),
    }


def _check_folds(targets: np.ndarray, class_names: Sequence[str], folds: int) -> None:
    for name, column in zip(class_names, targets.T, strict=True):
        few = min((column > 0).sum(), (column < 0).sum())
        if few < folds:
            raise UserError(f"class {name} has {few} positive or negative train images; {folds} folds need that many.")


def _svm(cost: float):
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, loss="squared_hinge", max_iter=2000, random_state=0)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
