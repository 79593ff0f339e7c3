"""What is saved, when, and for how long."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import at_least


@contradiction("checkpoint.every_epochs", "checkpoint.keep_every_epochs")
def _kept_ones_are_saved(every, kept):
    if kept % every:
        return f"checkpoint.keep_every_epochs is {kept}, but must be a multiple of every_epochs, which is {every}"
    return None


CHECKPOINT = Group(
    "checkpoint",
    "what is saved, and for how long",
    {
        "every_epochs": Field(1, at_least(1), "Epochs from one checkpoint to the next", resume="free"),
        "every_steps": Field(
            0,
            at_least(0),
            "Also save every so many steps, for long epochs; 0 saves only at the ends of epochs",
            resume="free",
        ),
        "keep": Field(3, at_least(1), "How many of the newest checkpoints are kept", resume="free"),
        "keep_every_epochs": Field(
            0, at_least(0), "Checkpoints at multiples of this many epochs are kept forever; 0 for none", resume="free"
        ),
        "keep_best": Field(
            1,
            at_least(0),
            "Also keep this many checkpoints with the best kNN accuracy, or without labels the highest RankMe",
            resume="free",
        ),
    },
    (_kept_ones_are_saved,),
)
