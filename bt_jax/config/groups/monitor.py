"""What pre-training measures during training and at its end."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.groups.views import CROP_AND_FLIP, view_fields
from bt_jax.config.rules import above_zero, anything, at_least


def pairs_rule(v: int) -> str | None:
    return None if v == 0 or v >= 2 else "must be 0, or an integer of at least 2"


@contradiction("monitor.every_epochs", "data.test_split", "data.labels", "data.test_fraction")
def _monitor_needs_a_test_split(every, test_split, labels, test_fraction):
    if every > 0 and test_split == "" and labels != "none" and not test_fraction:
        return "data.test_split is empty, but must name a split when monitor.every_epochs is not 0"
    return None


MONITOR = Group(
    "monitor",
    "measures of the features during training and, with labels, the accuracy of a kNN classifier",
    {
        "every_epochs": Field(
            0, at_least(0), "Measure before training, every so many epochs, and after; 0 for never", resume="free"
        ),
        "train_examples": Field(
            10000, at_least(1), "Train images that vote, spread evenly over the train split", resume="free"
        ),
        "test_examples": Field(10000, at_least(1), "Test images that are classified", resume="free"),
        "batch_size": Field(256, at_least(1), "Images per pass through the encoder, over all devices", resume="free"),
        "k": Field(200, at_least(1), "Neighbours that vote", resume="free"),
        "temperature": Field(0.1, above_zero, "A neighbour's vote weighs exp(cosine / temperature)", resume="free"),
        "pairs": Field(
            1024,
            pairs_rule,
            "Train images with two views each for alignment and uniformity; 0 for neither",
            resume="free",
        ),
        "neighbours": Field(
            12,
            at_least(0),
            "Images that the report shows with their nearest neighbours; 0 for none",
            resume="free",
        ),
        "judge_at_end": Field(
            False,
            anything,
            "Whether to end with a linear probe, and with fine-tuning on few labels against training from scratch (see judge)",
            resume="free",
        ),
    },
    (_monitor_needs_a_test_split,),
)

JUDGE = Group(
    "judge",
    "the short evaluation at the end of a run, if monitor.judge_at_end is set",
    {
        name: Field(field.default, field.rule, field.doc, resume="free")
        for name, field in {
            "labels_a_class": Field(
                10, at_least(1), "Labels per class for fine-tuning; at most as many as the smallest class has"
            ),
            "epochs": Field(
                20,
                at_least(1),
                "Epochs of fine-tuning; the more there are, the closer training from scratch comes",
            ),
            "learning_rate": Field(
                0.5,
                at_least(0, float),
                "Learning rate of encoder and head for a batch of 256, with and without pre-training",
            ),
            "batch_size": Field(
                32,
                at_least(1),
                "Images per step of fine-tuning; rounded to fit the devices and the number of labels",
            ),
            **view_fields("view", **CROP_AND_FLIP),
        }.items()
    },
)
