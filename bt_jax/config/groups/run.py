"""The fields at the top level of a config, and those about logs and profiles."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import anything, at_least, between, one_of

RUN = Group(
    "",
    "fields of every run that computes something",
    {
        "seed": Field(
            0, between(0, 2**31 - 1), "Seed for the initial weights, the order of the images and their views"
        ),
        "dtype": Field(
            "float32",
            one_of(("float32", "bfloat16")),
            "Type of the network's computations, float32 or bfloat16; parameters, statistics and the loss stay float32",
        ),
    },
)

INIT_FROM = Group(
    "",
    "where weights come from",
    {
        "init_from": Field(
            "",
            anything,
            "Weights to start from, evaluate or export: a run's workdir, one of its checkpoints, an export folder, or a .pth "
            "or .safetensors file from torchvision, timm, the official project, solo-learn or lightly; empty for random weights",
        ),
    },
)

LENGTHS = Group(
    "",
    "the length of a training",
    {
        "batch_size": Field(2048, at_least(2), "Images per step, over all devices"),
        "epochs": Field(1000, at_least(1), "Passes over the training images"),
    },
)


@contradiction("steps_per_dispatch", "data.views")
def _dispatches_need_the_set_on_the_device(steps, views):
    if steps > 1 and views == "host":
        return (
            f"steps_per_dispatch is {steps}, but must be 1 when data.views is 'host'; "
            "set data.views to 'device' to make views on the device"
        )
    return None


DISPATCH = Group(
    "",
    "how steps are started",
    {
        "steps_per_dispatch": Field(
            1,
            at_least(1),
            "Steps per dispatch, if data.views is 'device' and the set is held in the device's memory; always 1 on a CPU",
            resume="free",
        ),
    },
    (_dispatches_need_the_set_on_the_device,),
)

REPEATS = Group(
    "",
    "how often an evaluation is repeated",
    {
        "repeats": Field(
            1,
            at_least(1),
            "How many trainings to run, with the seeds seed, seed + 1, …, for a mean and a spread",
        ),
    },
)

LOG = Group(
    "log",
    "what a run writes during training",
    {
        "every_steps": Field(50, at_least(1), "Steps between lines of progress and of metrics.jsonl", resume="free"),
        "tensorboard": Field(True, anything, "Whether to write TensorBoard events too", resume="free"),
        "wandb": Field(
            False,
            anything,
            "Whether to log to Weights & Biases too; needs pip install -e '.[wandb]', and its environment variables count",
            resume="free",
        ),
        "mlflow": Field(
            False,
            anything,
            "Whether to log to MLflow too; needs pip install -e '.[mlflow]'; into WORKDIR/mlruns unless MLFLOW_TRACKING_URI is set",
            resume="free",
        ),
    },
)

PROFILE = Group(
    "profile",
    "a trace of some steps, for TensorBoard and Perfetto",
    {
        "steps": Field(0, at_least(0), "Steps to trace into WORKDIR/profile, at least; 0 for no trace", resume="free"),
        "after": Field(
            20, at_least(1), "Steps before the trace; the first ones compile and fill caches", resume="free"
        ),
    },
)
