"""The fields of SwAV; the defaults are its paper's for ImageNet with batches of 4096 (Caron et al. 2020)."""

from bt_jax.config.field import Field, Group, MethodFields, contradiction
from bt_jax.config.groups.views import view_fields
from bt_jax.config.rules import above_zero, at_least, positive_integers

COLOURS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5, "interpolation": "bilinear"}


@contradiction("swav.prototypes", "swav.queue", "batch_size")
def _filled_by_batch_and_queue(prototypes, queue, batch_size):
    if prototypes > batch_size + queue:
        return (
            f"swav.prototypes is {prototypes}, more than the {batch_size + queue} embeddings that batch_size and swav.queue "
            "give to share among them; lower it, or lengthen the queue"
        )
    return None


@contradiction("swav.queue", "batch_size")
def _whole_batches(queue, batch_size):
    if queue % batch_size:
        below = queue // batch_size * batch_size
        return f"swav.queue is {queue}, but must be a multiple of batch_size, such as {below} or {below + batch_size}"
    return None


@contradiction("swav.queue", "swav.queue_from_epoch", "epochs")
def _queue_begins_in_time(queue, queue_from_epoch, epochs):
    if queue and queue_from_epoch >= epochs:
        return (
            f"swav.queue_from_epoch is {queue_from_epoch}, but must be less than epochs, which is {epochs}; or set "
            "swav.queue to 0"
        )
    return None


@contradiction("swav.small_crops", "swav.small_size", "data.image_size")
def _small_crops_are_small(small_crops, small_size, image_size):
    if small_crops and small_size > image_size:
        return f"swav.small_size is {small_size}, but must be at most data.image_size, which is {image_size}"
    return None


METHOD = MethodFields(
    Group(
        "swav",
        "SwAV, which predicts from each view the prototypes to which the image's large crops are assigned",
        {
            "projector": Field(
                (2048, 128), positive_integers, "Widths of the projector's layers; the last is the embedding's"
            ),
            "prototypes": Field(3000, at_least(2), "How many prototypes"),
            "freeze_epochs": Field(1, at_least(0), "Epochs at the start in which the prototypes do not move"),
            "temperature": Field(0.1, above_zero, "T, by which scores are divided before the softmax"),
            "epsilon": Field(
                0.05, above_zero, "ε of Sinkhorn's assignment; larger spreads images over more prototypes"
            ),
            "iterations": Field(
                3,
                at_least(0),
                "Turns of Sinkhorn's algorithm; ablation: with 0 prototypes are not used evenly, which collapses",
            ),
            "queue": Field(
                0,
                at_least(0),
                "Embeddings of earlier batches that are assigned together with the batch; a multiple of batch_size, 0 for none",
            ),
            "queue_from_epoch": Field(
                15, at_least(0), "The queue begins to fill with this epoch, counted from 0; it is used once it is full"
            ),
            "small_crops": Field(6, at_least(0), "Small crops of each image besides the two large ones; 0 for none"),
            "small_size": Field(
                96, at_least(1), "Side of a small crop in pixels; data.image_size is that of a large one"
            ),
            **view_fields("view", crop_scale=(0.14, 1.0), **COLOURS),
            **view_fields("small_view", crop_scale=(0.05, 0.14), **COLOURS),
        },
        (_filled_by_batch_and_queue, _whole_batches, _queue_begins_in_time, _small_crops_are_small),
    ),
    optimizer="larc",
    defaults={"batch_size": 4096},
)
