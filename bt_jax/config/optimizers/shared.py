"""Fields and conditions that both optimizers share."""

from bt_jax.config.field import Field, contradiction
from bt_jax.config.rules import anything

# bt_jax/config/checks.py checks that the other fields in the group are those of the optimizer that it names.
NAME_DOC = "Name of the optimizer, which determines this group's fields; a config file sets it by default(optimizer=…)"


def name_field(name: str) -> Field:
    return Field(name, anything, NAME_DOC)


@contradiction("epochs", "optimizer.warmup_epochs")
def longer_than_its_warmup(epochs, warmup):
    if epochs <= warmup:
        return f"epochs is {epochs}, but must be more than optimizer.warmup_epochs, which is {warmup}"
    return None
