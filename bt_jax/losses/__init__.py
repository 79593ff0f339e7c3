"""Losses: pure functions of arrays, exact on one device and on a mesh."""

from bt_jax.losses.barlow_twins import (
    barlow_twins_loss,
    choose_form,
    cross_correlation,
    expected_loss_at_start,
    loss_floor,
)
from bt_jax.losses.barlow_twins_ablations import Ablation, ablated_barlow_twins_loss, mixed_regulariser
from bt_jax.losses.byol import byol_loss
from bt_jax.losses.nce import memory_cross_entropy, memory_nce
from bt_jax.losses.nt_xent import nt_xent
from bt_jax.losses.softmax import softmax_cross_entropy
from bt_jax.losses.swav import sinkhorn, swav_loss
from bt_jax.losses.vicreg import vicreg_loss

__all__ = [
    "Ablation",
    "ablated_barlow_twins_loss",
    "barlow_twins_loss",
    "byol_loss",
    "choose_form",
    "cross_correlation",
    "expected_loss_at_start",
    "loss_floor",
    "memory_cross_entropy",
    "memory_nce",
    "mixed_regulariser",
    "nt_xent",
    "sinkhorn",
    "softmax_cross_entropy",
    "swav_loss",
    "vicreg_loss",
]
