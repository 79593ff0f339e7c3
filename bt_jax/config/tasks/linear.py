"""The task `linear`: trains a linear classifier on the frozen encoder."""

from bt_jax.config.field import Field, Group, Task, contradiction
from bt_jax.config.groups.checkpoint import CHECKPOINT
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.evaluation import FEATURES, SGD, needs_a_test_split, needs_an_encoder
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.model import MODEL
from bt_jax.config.groups.run import INIT_FROM, LENGTHS, LOG, REPEATS, RUN
from bt_jax.config.methods.supervised import SUPERVISED
from bt_jax.config.rules import anything, at_least, positive_numbers


@contradiction("linear.batch_norm", "linear.cached")
def _cached_features_are_standardised(batch_norm, cached):
    if batch_norm and cached:
        return "linear.batch_norm is True, but with linear.cached features are standardised once and need no batch norm"
    return None


LINEAR = Group(
    "linear",
    "a linear classifier on frozen features",
    {
        "cached": Field(
            False, anything, "Whether to compute features once, without augmentation, and fit by L-BFGS instead of SGD"
        ),
        "batch_norm": Field(
            False,
            anything,
            "Whether the classifier trained by SGD has a batch norm on the features, with running statistics on test images",
        ),
        "l2": Field(
            (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            positive_numbers,
            "With cached, the values to try for l2 in the objective, mean loss + ½ l2 ‖W‖²",
        ),
        "held_out": Field(
            0.1,
            lambda v: None if 0 < v < 1 else "must be more than 0 and less than 1",
            "With cached, the fraction of the train images on which l2 is chosen",
        ),
        "max_iterations": Field(1000, at_least(1), "With cached, the largest number of L-BFGS iterations"),
    },
    (_cached_features_are_standardised,),
)

TASK = Task(
    "linear",
    "trains a linear classifier on the frozen encoder",
    (RUN, LENGTHS, REPEATS, INIT_FROM, DATA, MODEL, SUPERVISED, SGD, LINEAR, FEATURES, MESH, CHECKPOINT, LOG),
    defaults={"batch_size": 256, "epochs": 100},
    free=("init_from",),  # the encoder is identified by its hash, wherever it is
    contradictions=(needs_an_encoder, needs_a_test_split),
)
