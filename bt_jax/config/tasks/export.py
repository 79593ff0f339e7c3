"""The task `export`: writes an encoder to a folder for use elsewhere. It reads no data."""

from bt_jax.config.field import Field, Group, Task
from bt_jax.config.groups.run import INIT_FROM
from bt_jax.config.rules import anything, one_of, values

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

EXPORT = Group(
    "export",
    "what goes into the folder",
    {
        "dtype": Field(
            "float32", one_of(("float32", "bfloat16")), "Type in which the weights are stored: float32 or bfloat16"
        ),
        "target": Field(
            False, anything, "Whether to export a run's target network (byol has one) in place of the online network"
        ),
        "projector": Field(True, anything, "Whether to export the method's heads too, such as a projector"),
        "classifier": Field(True, anything, "Whether to export the classifier too, if there is one"),
        "safetensors": Field(
            True, anything, "Whether to write encoder.safetensors with torchvision's names, for PyTorch"
        ),
        "hub": Field(
            False,
            anything,
            "Whether to write a folder that timm and the Hugging Face hub take too, for a standard ResNet",
        ),
        "detectron2": Field(
            False, anything, "Whether to write detectron2.pkl too, for detection with Detectron2, for a standard ResNet"
        ),
        "program": Field(True, anything, "Whether to write a jax.export program, which needs only JAX and flatbuffers"),
        "platforms": Field(
            ("cpu", "cuda", "tpu"),
            values(None, "of 'cpu', 'cuda', 'rocm' and 'tpu'", PLATFORMS.__contains__),
            "Platforms that the program runs on: cpu, cuda, rocm, tpu",
        ),
    },
)

TASK = Task("export", "writes an encoder to a folder for use elsewhere", (INIT_FROM, EXPORT))
