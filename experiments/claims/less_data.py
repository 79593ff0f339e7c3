"""Barlow Twins needs less data than contrastive learning.

Claimed:    not by the paper, which argues so for the samples of a batch (Zbontar et al. 2021, section 5); here for the unlabelled
            images: as its loss needs no negatives, Barlow Twins should lose less than InfoNCE when there are fewer of them.
Measure:    kNN accuracy (k = 200) after the last step, with all train images as voters, whichever were trained on. All arms make the
            same number of steps, so that small sets are seen more often. The small set is the same for all seeds, the first images,
            so the interval is about that set.
Prediction: with 5 % (2500 images, 130 epochs) both lose; whether one loses more is undecided at `cpu`. Mixed Barlow Twins is a paper
            about Barlow Twins overfitting small sets, so the claim may fail.
Rule:       for each statement the mean paired effect over the seeds and its 95 % interval (harness/judge.py).
"""

import recipe
from harness.claim import Arm, Statement

TITLE = "Barlow Twins needs less data than SimCLR"
AXIS = "% of the images"
METHODS = {"barlow_twins": "Barlow Twins", "simclr": "SimCLR"}
PARTS = (5, 25, 100)
IMAGES = {"cpu": 50_000, "gpu": 50_000, "paper": 1_281_167}


def arms(scale):
    return [
        Arm(_name(name, part), method, _fields(scale, method, part), measure="knn", line=name, x=part)
        for method, name in METHODS.items()
        for part in PARTS
        if not (scale.name == "cpu" and part == 25)
    ]


def statements(scale):
    def drop(name, weight=1.0):
        return {_name(name, 5): weight, _name(name, 100): -weight}

    return [
        Statement("with 5 % of the images Barlow Twins: below all images", drop("Barlow Twins"), "below", 1.0),
        Statement("SimCLR loses more than Barlow Twins", drop("SimCLR") | drop("Barlow Twins", -1), "below", 1.0),
    ]


def _fields(scale, method, part):
    if part == 100:
        return {}
    config = recipe.get_config(f"{scale.name},{method}")
    steps = config.epochs * (IMAGES[scale.name] // config.batch_size)
    epochs = round(steps / (IMAGES[scale.name] * part // 100 // config.batch_size))
    warmup = round(config.optimizer.warmup_epochs * epochs / config.epochs)
    return {
        "data.train_split": f"train[:{part}%]",
        "epochs": epochs,
        "optimizer.warmup_epochs": warmup,
        # As often as with all images, since a look and a checkpoint take as long as many of these short epochs.
        "monitor.every_epochs": round(config.monitor.every_epochs * epochs / config.epochs),
        "checkpoint.every_epochs": round(config.checkpoint.every_epochs * epochs / config.epochs),
    }


def _name(name, part):
    return f"{name}, {part} %"
