"""LARS with warm-up and cosine decay, as in the official code."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.optimizers.shared import longer_than_its_warmup, name_field
from bt_jax.config.rules import above_zero, anything, at_least, below_one, between, one_of

# Other settings with which the paper's rates were found.
_OF_THE_PAPER = {"scaling": "linear", "trust_coefficient": 0.001, "clip": False}


@contradiction("optimizer.rates", "method", *(f"optimizer.{name}" for name in _OF_THE_PAPER))
def _rates_of_the_paper(rates, method, *found):
    if rates != "paper":
        return None
    given = dict(zip(_OF_THE_PAPER, found, strict=True))
    if others := [name for name, value in given.items() if value != _OF_THE_PAPER[name]]:
        are = " and ".join(f"optimizer.{name} is {given[name]!r}" for name in others)
        return f"{are}, but the rates of optimizer.rates='paper' go with {' and '.join(repr(_OF_THE_PAPER[n]) for n in others)}"
    if method != "barlow_twins" and ":" not in method:  # a user's own method may be a variant of it
        return f"optimizer.rates is 'paper', but those are rates of Barlow Twins, and the method is {method!r}"
    return None


GROUP = Group(
    "optimizer",
    "LARS with warm-up and cosine decay",
    {
        "name": name_field("lars"),
        "learning_rate_weights": Field(
            0.2,
            at_least(0, float),
            "Peak learning rate of weights for a batch of 256; for others see scaling",
        ),
        "learning_rate_biases": Field(
            0.0048,
            at_least(0, float),
            "Peak learning rate of 1-D parameters (biases, batch-norm scales) for a batch of 256, scaled likewise",
        ),
        "rates": Field(
            "given",
            one_of(("given", "paper")),
            "Whether learning rates are the two above (given), or those that Barlow Twins' authors found best for the batch "
            "(paper: interpolated, with biases at 196/D of weights, and printed at the start)",
        ),
        "scaling": Field(
            "linear",
            one_of(("linear", "sqrt")),
            "How learning rates grow with the batch: by batch_size / 256 (linear) or by its square root (sqrt)",
        ),
        "weight_decay": Field(1e-6, at_least(0, float), "Weight decay, for weights only"),
        "momentum": Field(0.9, below_one, "Momentum"),
        "trust_coefficient": Field(0.001, above_zero, "A weight's step is scaled by this times ‖weight‖ / ‖update‖"),
        "warmup_epochs": Field(10, at_least(0), "Epochs in which learning rates rise from 0 to their peak"),
        "end_factor": Field(1e-3, between(0, 1), "The final learning rate as a fraction of the peak"),
        "rate_in_momentum": Field(
            False,
            anything,
            "Whether the learning rate is applied before the momentum, as in SimCLR's official code, and not after it",
        ),
        "clip": Field(
            False,
            anything,
            "Whether trust_coefficient × ‖weight‖ / ‖update‖ is divided by the learning rate and then at most 1, as in solo-learn",
        ),
        "gradient_divisor": Field(
            1.0,
            above_zero,
            "Divides the gradient; to match an official run, its number of GPUs, by which the official code divides",
        ),
    },
    (longer_than_its_warmup, _rates_of_the_paper),
)
