"""The task `finetune`: semi-supervised training on few labels (paper, section 3.1), and its supervised baseline.

The encoder is trained further, with its own learning rate, together with a new classifier. With `finetune.from_scratch` a new
encoder is trained on the same labels; the two are the rows of the paper's Table 2.
"""

from collections.abc import Callable

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.data.sources.base import Source
from bt_jax.data.subsets import check_labels, fingerprint, labels_of, listed, stratified, take
from bt_jax.engine.session import Session
from bt_jax.evaluation.classifier import ClassifierTraining
from bt_jax.evaluation.judged import Evaluation, run_task
from bt_jax.evaluation.rate_search import RateSearch
from bt_jax.evaluation.results import Result, make_result, write_result
from bt_jax.runtime import processes
from bt_jax.tasks.linear import described_seeds, described_training, farewell


def finetune(config: ConfigDict, workdir: str) -> Result:
    """Fine-tunes the encoder that `config.init_from` names, or trains a new one, on few labels; evaluates on the test split.

    Returns:
      The content of WORKDIR/finetune.json on the first process.

    Raises:
      UserError: bad input.
    """
    return run_task(config, workdir, evaluate_finetune)


def evaluate_finetune(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: Mesh,
    *,
    within: Session | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Like `finetune`, in joined processes, on a mesh; `within` and `say` as for `Evaluation`."""
    evaluation = Evaluation(config, workdir, mesh, within=within, say=say)
    config = evaluation.config
    seeds = range(config.seed, config.seed + config.repeats)
    parts = [labelled_part(evaluation.train, config.finetune, seed) for seed in seeds]
    processes.agree(
        "labels", {f"those of seed {seed}": fingerprint(part[1]) for seed, part in zip(seeds, parts, strict=True)}
    )

    def training(seed: int, part: Source, rates: dict[str, float]) -> ClassifierTraining:
        return ClassifierTraining(
            config, folder(seed), mesh, evaluation.judged, part, evaluation.test, seed=seed, rates=rates,
            quiet=say is not None,
        )  # fmt: skip

    def folder(seed: int) -> epath.Path:
        return workdir if config.repeats == 1 else workdir / f"seed_{seed}"

    trainings = [training(seed, part, _rates(config)) for seed, (part, _) in zip(seeds, parts, strict=True)]
    searches = [
        RateSearch(config, folder(seed), mesh, evaluation.judged, part, seed=seed, rates=_rates(config))
        for seed, (part, _) in zip(seeds, parts, strict=True)
        if config.finetune.search_rates
    ]
    runs = []
    with evaluation.begun(_described(config, len(parts[0][0])), seeds=described_seeds(config)) as session:
        for place, (part, examples) in enumerate(parts):
            seed, found = seeds[place], {}
            if config.repeats > 1:
                evaluation.say(f"\nseed {seed}")
            if searches:
                rates, search = searches[place].run(session, evaluation.say)
                trainings[place], found = training(seed, part, rates), {"search": search}
            runs.append(trainings[place].run(session) | {"labels": fingerprint(examples)} | found)
    if not evaluation.is_first:
        return {}
    facts = {
        "labels": len(parts[0][0]),
        "percent": None if config.finetune.per_class else config.finetune.percent,
        "per_class": config.finetune.per_class or None,
        "chosen_by": config.finetune.chosen_by,
    }
    result = make_result(
        config,
        protocol=_described(config, len(parts[0][0])),
        data=evaluation.data_facts() | facts,
        checkpoint=evaluation.judged.facts,
        runs=runs,
    )
    evaluation.say("\n" + farewell(result, workdir))
    write_result(workdir, result)
    return result


def labelled_part(train: Source, config: ConfigDict, seed: int) -> tuple[Source, np.ndarray]:
    """The images whose labels may be used, and their numbers in `train`.

    Args:
      config: `config.finetune` of a run.

    Raises:
      UserError: files of the list are missing, or a class has no images.
    """
    if config.chosen_by == "source":
        check_labels(labels_of(train), train)
        return train, np.arange(len(train))
    if config.chosen_by == "list":
        examples, how = listed(train, config.list_file), f"those of {config.list_file}"
    else:
        labels = labels_of(train)
        check_labels(labels, train)
        share = {"per_class": config.per_class} if config.per_class else {"percent": config.percent}
        examples = stratified(labels, train.num_classes, seed=seed, **share)
        how = f"{config.per_class} per class" if config.per_class else f"{config.percent:g} % of each class"
    part = take(train, examples, f"{len(examples)} images of {train.name}, {how}")
    check_labels(labels_of(part), part)
    return part, examples


def _rates(config: ConfigDict) -> dict[str, float]:
    if config.finetune.from_scratch:
        rate = config.finetune.learning_rate_from_scratch
        return {"classifier": rate, "encoder": rate}
    return {"classifier": config.sgd.learning_rate_head, "encoder": config.sgd.learning_rate_encoder}


def _described(config: ConfigDict, count: int) -> str:
    rates = _rates(config)
    search = ", times factors that are chosen on held-out train images" if config.finetune.search_rates else ""
    return (
        f"{'from scratch' if config.finetune.from_scratch else 'fine-tuned'} on {count} labels; SGD, {config.epochs} epochs in "
        f"batches of {config.batch_size}, learning rates of encoder {rates['encoder']:g} and head {rates['classifier']:g} × "
        f"{config.batch_size}/256{search}, {described_training(config)}"
    )
