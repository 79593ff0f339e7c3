"""The task `knn`: nearest neighbours among frozen features, and measures of the features. Nothing is trained."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.evaluation import FEATURES, needs_a_test_split, needs_an_encoder
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.model import MODEL
from bt_jax.config.groups.monitor import pairs_rule
from bt_jax.config.groups.run import INIT_FROM, RUN
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import above_zero, anything, at_least, between, positive_integers

KNN = Group(
    "knn",
    "a weighted kNN classifier, and measures of the features",
    {
        "k": Field(
            (10, 20, 50, 100, 200), positive_integers, "Numbers of neighbours that vote; one search serves all of them"
        ),
        "temperature": Field(0.1, above_zero, "A neighbour's vote weighs exp(cosine / temperature)"),
        "health_examples": Field(
            25600, at_least(2), "Largest number of test images for RankMe, correlation and dead features"
        ),
        "pairs": Field(
            1024,
            pairs_rule,
            "Train images with two views each for alignment and uniformity; 0 for neither",
        ),
        "lidar_images": Field(0, pairs_rule, "Largest number of train images for LiDAR, such as 1000; 0 for no LiDAR"),
        "lidar_views": Field(
            10, between(2, 500), "Views of each image for LiDAR, drawn from pairs.view_a and pairs.view_b in turn"
        ),
        "layers": Field(
            False,
            anything,
            "Whether to measure each layer of the projector too: kNN with the first k, a linear probe, RankMe and LiDAR",
        ),
        "layer_examples": Field(
            50000, at_least(2), "Largest number of train images for the measures of layers, spread evenly"
        ),
    },
)

PAIRS = Group(
    "pairs",
    "the two views for alignment, uniformity and LiDAR; by default the paper's",
    {**view_fields("view_a"), **view_fields("view_b", blur=0.1, solarize=0.2)},
)

TASK = Task(
    "knn",
    "classifies by nearest neighbours among the encoder's features",
    (RUN, INIT_FROM, DATA, MODEL, KNN, PAIRS, FEATURES, MESH),
    free=("init_from",),
    contradictions=(needs_an_encoder, needs_a_test_split),
)
