"""What pre-training looks at while it goes on, and when it is done."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.groups.views import CROP_AND_FLIP, view_fields
from bt_jax.config.rules import above_zero, anything, at_least


def pairs_rule(v: int) -> str | None:
    return None if v == 0 or v >= 2 else "must be 0, or an integer of at least 2"


@contradiction("monitor.every_epochs", "data.test_split")
def _monitor_needs_a_test_split(every, test_split):
    if every > 0 and test_split == "":
        return "data.test_split is empty, but must name a split when monitor.every_epochs is not 0"
    return None


MONITOR = Group(
    "monitor",
    "the accuracy of a kNN classifier, and the health of the features, while training goes on",
    {
        "every_epochs": Field(
            0, at_least(0), "Look before training, every so many epochs, and after; 0 for never", resume="free"
        ),
        "train_examples": Field(
            10000, at_least(1), "Labelled train images that vote, spread evenly over the train split", resume="free"
        ),
        "test_examples": Field(10000, at_least(1), "Test images that are classified", resume="free"),
        "batch_size": Field(
            256, at_least(1), "Images whose features are computed at once, over all devices", resume="free"
        ),
        "k": Field(200, at_least(1), "Neighbours that vote", resume="free"),
        "temperature": Field(0.1, above_zero, "A neighbour's vote weighs exp(cosine / temperature)", resume="free"),
        "pairs": Field(
            1024,
            pairs_rule,
            "Train images by whose two views alignment and uniformity are told; 0 to leave them out",
            resume="free",
        ),
        "judge_at_end": Field(
            False,
            anything,
            "Whether to end with a linear probe and with fine-tuning on few labels, against training from scratch (see judge)",
            resume="free",
        ),
    },
    (_monitor_needs_a_test_split,),
)

JUDGE = Group(
    "judge",
    "the short evaluation at the end of a run, where monitor.judge_at_end is set",
    {
        name: Field(field.default, field.rule, field.doc, resume="free")
        for name, field in {
            "labels_a_class": Field(
                10, at_least(1), "Labels a class to fine-tune on, or as many as the smallest class has"
            ),
            "epochs": Field(
                20,
                at_least(1),
                "Epochs of fine-tuning; the more, the more a new encoder makes up for what it lacks at the start",
            ),
            "learning_rate": Field(
                0.5, at_least(0, float), "Rate of encoder and head, with and without pre-training, for a batch of 256"
            ),
            "batch_size": Field(
                32,
                at_least(1),
                "Images in a step of fine-tuning; rounded to what divides among the devices and the labels",
            ),
            **view_fields("view", **CROP_AND_FLIP),
        }.items()
    },
)
