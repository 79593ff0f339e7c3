"""The task `embed`: the features of all images of a folder, in a file."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.groups.data import DATA
from bt_jax.config.groups.evaluation import FEATURES, needs_an_encoder
from bt_jax.config.groups.mesh import MESH
from bt_jax.config.groups.run import INIT_FROM, RUN
from bt_jax.config.rules import anything, at_least

EMBED = Group(
    "embed",
    "files of features",
    {
        "piece": Field(
            4096,
            at_least(1),
            "Images per piece; a killed run resumes after its last whole piece, rounded to whole batches",
        ),
        "parquet": Field(
            False,
            anything,
            "Whether to write embeddings.parquet too; needs pip install -e '.[parquet]'",
            resume="free",
        ),
    },
)

TASK = Task(
    "embed",
    "writes the features of all images of a folder to a file",
    (RUN, INIT_FROM, DATA, EMBED, FEATURES, MESH),
    defaults={"data.train_split": ".", "data.image_size": 0},
    free=("init_from",),
    contradictions=(needs_an_encoder,),
)
