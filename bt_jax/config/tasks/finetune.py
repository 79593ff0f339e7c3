"""The task `finetune`: trains the encoder and a classifier on few labels."""

from bt_jax.config.field import Field, Group, Task, contradiction
from bt_jax.config.groups.checkpoint import CHECKPOINT
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.evaluation import FEATURES, SGD, needs_a_test_split, needs_an_encoder
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.model import MODEL
from bt_jax.config.groups.run import INIT_FROM, LENGTHS, LOG, REPEATS, RUN
from bt_jax.config.methods.supervised import SUPERVISED
from bt_jax.config.rules import anything, at_least, one_of, positive_numbers


@contradiction("finetune.from_scratch", "task", "init_from")
def _needs_an_encoder_or_none(from_scratch, task, init_from):
    return None if from_scratch else needs_an_encoder.find(task, init_from)


@contradiction("finetune.chosen_by", "finetune.list_file")
def _a_list_has_a_file(chosen_by, list_file):
    if (chosen_by == "list") != (list_file != ""):
        return "finetune.list_file must name a file if finetune.chosen_by is 'list', and must be empty otherwise"
    return None


@contradiction("finetune.chosen_by", "finetune.per_class")
def _only_the_seed_counts(chosen_by, per_class):
    if chosen_by != "seed" and per_class:
        return f"finetune.per_class is {per_class}, but must be 0 when finetune.chosen_by is {chosen_by!r}"
    return None


FINETUNE = Group(
    "finetune",
    "which labels, and the baseline without pre-training",
    {
        "search_rates": Field(
            False,
            anything,
            "Whether to choose learning rates first, by accuracy on labelled train images that are held out; the training on all "
            "labels and the test follow once",
        ),
        "search_encoder": Field(
            (0.3, 1.0, 3.0),
            positive_numbers,
            "With search_rates, the factors of the encoder's learning rate that are tried, or of both from scratch",
        ),
        "search_head": Field(
            (0.3, 1.0, 3.0),
            positive_numbers,
            "With search_rates, the factors of the head's learning rate, each with each of the encoder's; not used from scratch",
        ),
        "search_held_out": Field(
            0.2,
            lambda v: None if 0 < v < 1 else "must be more than 0 and less than 1",
            "With search_rates, the fraction of each class's labels that is held out",
        ),
        "protocol": Field(
            "own settings",
            anything,
            "By whose protocol, such as SimCLR; set by recipes, and shown with the results",
            resume="free",
        ),
        "chosen_by": Field(
            "seed",
            one_of(("seed", "list", "source")),
            "What chooses the labels: the seed, a list, or the source, if the train split has no others",
        ),
        "percent": Field(
            1.0,
            lambda v: None if 0 < v <= 100 else "must be more than 0 and at most 100",
            "Percentage of the labels; for a list or a source, only what the result is reported as",
        ),
        "per_class": Field(0, at_least(0), "Labels per class instead of a percentage; 0 to use percent"),
        "list_file": Field("", anything, "For a list: SimCLR's 1percent.txt or 10percent.txt, for an image folder"),
        "from_scratch": Field(
            False, anything, "Train from scratch on the same labels, as a supervised baseline; init_from is not used"
        ),
        "learning_rate_from_scratch": Field(
            0.1, at_least(0, float), "Learning rate of encoder and head from scratch, in place of those in sgd"
        ),
    },
    (_a_list_has_a_file, _only_the_seed_counts),
)

TASK = Task(
    "finetune",
    "trains the encoder and a classifier on few labels",
    (RUN, LENGTHS, REPEATS, INIT_FROM, DATA, MODEL, SUPERVISED, SGD, FINETUNE, FEATURES, MESH, CHECKPOINT, LOG),
    defaults={"batch_size": 256, "epochs": 20},
    free=("init_from",),
    contradictions=(_needs_an_encoder_or_none, needs_a_test_split),
)
