"""What both optimisers have."""

from bt_jax.config.field import Field, contradiction
from bt_jax.config.rules import anything

# Its rule is that the fields beside it are those of the optimiser that it names (bt_jax/config/checks.py).
NAME_DOC = (
    "Name of the optimiser, which says what fields this group has; a config file chooses it by default(optimizer=…)"
)


def name_field(name: str) -> Field:
    return Field(name, anything, NAME_DOC)


@contradiction("epochs", "optimizer.warmup_epochs")
def longer_than_its_warmup(epochs, warmup):
    if epochs <= warmup:
        return f"epochs is {epochs}, but must be more than optimizer.warmup_epochs, which is {warmup}"
    return None
