"""The task `export`: an encoder to a folder, to be used elsewhere. No data is read."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.groups.run import INIT_FROM
from bt_jax.config.rules import anything, one_of, values

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

EXPORT = Group(
    "export",
    "what goes into the folder",
    {
        "dtype": Field(
            "float32", one_of(("float32", "bfloat16")), "Type that the weights are kept in: float32 or bfloat16"
        ),
        "projector": Field(True, anything, "Whether the heads of the method go with the encoder, such as a projector"),
        "classifier": Field(True, anything, "Whether a classifier goes with the encoder, where there is one"),
        "safetensors": Field(True, anything, "Write encoder.safetensors in torchvision's names, for PyTorch"),
        "program": Field(True, anything, "Write a jax.export program, which needs nothing but JAX"),
        "platforms": Field(
            ("cpu", "cuda", "tpu"),
            values(None, "of 'cpu', 'cuda', 'rocm' and 'tpu'", PLATFORMS.__contains__),
            "Platforms that the program runs on: cpu, cuda, rocm, tpu",
        ),
    },
)

TASK = Task("export", "writes an encoder to a folder, to be used elsewhere", (INIT_FROM, EXPORT))
