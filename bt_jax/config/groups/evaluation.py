"""Fields and conditions that evaluations of an encoder share."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import anything, at_least, below_one, between, one_of, rising_above_zero


@contradiction("task", "init_from")
def needs_an_encoder(task, init_from):
    if init_from == "":
        return f"init_from is empty, but must name the encoder that {task} evaluates, for example a run's workdir"
    return None


@contradiction("task", "data.test_split", "data.test_fraction")
def needs_a_test_split(task, test_split, test_fraction):
    if test_split == "" and not test_fraction:
        return f"data.test_split is empty, but must name the labelled split that {task} tests on"
    return None


FEATURES = Group(
    "features",
    "passes of images through the frozen encoder",
    {
        "batch_size": Field(256, at_least(1), "Images per pass through the encoder, over all devices", resume="free"),
    },
)


@contradiction("sgd.schedule", "sgd.decay_epochs")
def _steps_need_epochs(schedule, decay_epochs):
    if schedule == "steps" and tuple(decay_epochs) == ():
        return "sgd.decay_epochs is empty, but must list the epochs when sgd.schedule is 'steps'"
    return None


@contradiction("epochs", "sgd.warmup_epochs")
def _longer_than_the_warmup(epochs, warmup):
    if epochs <= warmup:
        return f"epochs is {epochs}, but must be more than sgd.warmup_epochs, which is {warmup}"
    return None


SGD = Group(
    "sgd",
    "how a classifier is trained with labels",
    {
        "learning_rate_head": Field(
            0.3,
            at_least(0, float),
            "Initial learning rate of the classifier for a batch of 256; scaled by batch_size / 256",
        ),
        "learning_rate_encoder": Field(
            0.005, at_least(0, float), "Initial learning rate of the encoder when it is fine-tuned, scaled likewise"
        ),
        "momentum": Field(0.9, below_one, "Momentum"),
        "nesterov": Field(False, anything, "Whether to use Nesterov momentum"),
        "weight_decay": Field(1e-6, at_least(0, float), "Weight decay of all trained parameters"),
        "decay_norms": Field(True, anything, "Whether to decay the scales and shifts of batch norms too"),
        "decay_biases": Field(True, anything, "Whether to decay the biases of linear layers too"),
        "schedule": Field(
            "cosine", one_of(("cosine", "steps")), "How learning rates fall, epoch by epoch: cosine to 0, or steps"
        ),
        "decay_epochs": Field(
            (),
            rising_above_zero,
            "With steps, learning rates are multiplied by decay_factor after these epochs; fractions are allowed",
        ),
        "decay_factor": Field(0.1, between(0, 1), "Factor of the learning rates at each of decay_epochs"),
        "warmup_epochs": Field(0, at_least(0), "Epochs in which learning rates rise from 0, step by step"),
        "evaluate_every_epochs": Field(1, at_least(1), "Epochs from one evaluation on the test images to the next"),
    },
    (_steps_need_epochs, _longer_than_the_warmup),
)
