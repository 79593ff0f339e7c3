"""Methods of training: networks, views, the loss on a batch, and what follows an update of the parameters."""

from bt_jax.methods.barlow_twins import BarlowTwins
from bt_jax.methods.base import Method, model_state_of
from bt_jax.methods.byol import BYOL
from bt_jax.methods.checks import check_source
from bt_jax.methods.make import METHODS, make_method
from bt_jax.methods.pirl import PIRL
from bt_jax.methods.simclr import SimCLR
from bt_jax.methods.supervised import Supervised
from bt_jax.methods.swav import SwAV
from bt_jax.methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "METHODS",
    "PIRL",
    "BarlowTwins",
    "Method",
    "SimCLR",
    "Supervised",
    "SwAV",
    "VICReg",
    "check_source",
    "make_method",
    "model_state_of",
]
