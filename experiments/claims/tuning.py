"""The learning rate of each method, before any claim is tried.

Not a claim: each method's rate, and with it that of biases, is tried at half, once and twice the base of recipe.py, with seed 9 on
45 000 train images; the other 5000 judge. The factor with the highest kNN accuracy goes into recipe.py (`TUNED`), for all claims.
Factors differ from their neighbours by more than the noise of one run only sometimes; the point is that every method has had the
same three tries.
"""

import recipe
from harness.claim import Arm

TITLE = "Learning rates"
SEEDS = (9,)
FACTORS = (0.5, 1.0, 2.0)


def arms(scale):
    return [_arm(scale, method, factor) for method in recipe.METHODS for factor in FACTORS]


def statements(scale):
    return []


def _arm(scale, method, factor):
    base = recipe.SCALES[scale.name](method)
    fields = {f"optimizer.{name}": factor * base.optimizer[name] for name in recipe.rates(method)}
    return Arm(f"{method} × {factor:g}", method, fields, held_out=True, line=method, x=factor)
