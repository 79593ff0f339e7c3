"""Losses: pure functions of arrays, exact on one device and on a mesh."""

from bt_jax.losses.barlow_twins import (
    barlow_twins_loss,
    choose_form,
    cross_correlation,
    expected_loss_at_start,
    loss_floor,
)
from bt_jax.losses.barlow_twins_ablations import Ablation, ablated_barlow_twins_loss, mixed_regulariser
from bt_jax.losses.softmax import softmax_cross_entropy

__all__ = [
    "Ablation",
    "ablated_barlow_twins_loss",
    "barlow_twins_loss",
    "choose_form",
    "cross_correlation",
    "expected_loss_at_start",
    "loss_floor",
    "mixed_regulariser",
    "softmax_cross_entropy",
]
