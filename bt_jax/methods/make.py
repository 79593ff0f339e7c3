"""Makes the method of a run from its config."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.facts import Facts
from bt_jax.import_path import import_object, is_import_path
from bt_jax.methods.base import Method
from bt_jax.methods.checks import check_class, check_method
from bt_jax.models import check_encoder, make_encoder
from bt_jax.models.encoders import takes_any_size
from bt_jax.models.inputs import Inputs

# The class of each method; the name is also that of its config group.
METHODS = {
    "barlow_twins": "bt_jax.methods.barlow_twins:BarlowTwins",
    "simclr": "bt_jax.methods.simclr:SimCLR",
    "byol": "bt_jax.methods.byol:BYOL",
    "swav": "bt_jax.methods.swav:SwAV",
    "pirl": "bt_jax.methods.pirl:PIRL",
    "vicreg": "bt_jax.methods.vicreg:VICReg",
    "supervised": "bt_jax.methods.supervised:Supervised",
}


def make_method(config: ConfigDict, facts: Facts, mesh: Mesh | None) -> Method:
    """The method that `config.method` names, one of `METHODS` or an import path, built for a run.

    Args:
      config: of a run.
      facts: the run's lengths.
      mesh: of the run; None for one device.

    Raises:
      UserError: the path cannot be imported or is not a method's, or the method refuses its settings.
    """
    own = is_import_path(config.method)
    cls = import_object(config.method if own else METHODS[config.method], "method")
    if own:
        check_class(cls, config.method)
    inputs, model = Inputs.of(config.data, config.dtype), config.model
    encoder = make_encoder(**model, dtype=inputs.dtype)
    settings = config.get(cls.config_group if own else config.method, ConfigDict())
    method = cls.build(settings, encoder=encoder, inputs=inputs, facts=facts, mesh=mesh)
    if own:
        check_method(method, config.method)
    if not takes_any_size(encoder):
        sizes = [(group.num_views, group.size) for group in method.view_groups]
        check_encoder(encoder, model.arch, inputs.image_size, sizes, channels=inputs.pixels.channels)
    return method
