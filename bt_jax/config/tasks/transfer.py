"""The task `transfer`: frozen features on another data set."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.groups.checkpoint import CHECKPOINT
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.evaluation import FEATURES, SGD, needs_a_test_split, needs_an_encoder
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.model import MODEL
from bt_jax.config.groups.run import INIT_FROM, LENGTHS, LOG, REPEATS, RUN
from bt_jax.config.methods.supervised import SUPERVISED
from bt_jax.config.rules import at_least, one_of, positive_numbers
from bt_jax.config.tasks.linear import LINEAR

TRANSFER = Group(
    "transfer",
    "another data set",
    {
        "protocol": Field(
            "linear",
            one_of(("linear", "svm")),
            "linear, like the task of this name, or svm: one linear SVM per class, for PASCAL VOC",
        ),
        "svm_costs": Field(
            (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
            positive_numbers,
            "With svm, the values of C to try; each class uses the best one in cross-validation",
        ),
        "svm_folds": Field(3, at_least(2), "With svm, the number of folds of the cross-validation"),
    },
)

TASK = Task(
    "transfer",
    "trains a classifier on the frozen encoder, on another data set",
    (RUN, LENGTHS, REPEATS, INIT_FROM, DATA, MODEL, SUPERVISED, SGD, LINEAR, TRANSFER, FEATURES, MESH, CHECKPOINT, LOG),
    defaults={"batch_size": 256, "epochs": 100},
    free=("init_from",),
    contradictions=(needs_an_encoder, needs_a_test_split),
)
