"""The task `transfer`: evaluates the frozen encoder on images of another data set (paper, section 3.2).

It trains a linear classifier, as in the task `linear`, on any labelled set (Places, iNaturalist 2018), or linear SVMs on
PASCAL VOC 2007, whose images can have several classes.
"""

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.evaluation.judged import run_task
from bt_jax.evaluation.results import Result
from bt_jax.evaluation.voc import evaluate_voc
from bt_jax.tasks.linear import evaluate_linear


def transfer(config: ConfigDict, workdir: str) -> Result:
    """Evaluates the encoder that `config.init_from` names on the set of `config.data`, by `transfer.protocol`.

    Returns:
      The content of WORKDIR/transfer.json, complete on the first process.

    Raises:
      UserError: bad input.
    """
    return run_task(config, workdir, evaluate_transfer)


def evaluate_transfer(config: ConfigDict, workdir: epath.Path, mesh: Mesh) -> Result:
    """Like `transfer`, in joined processes, on a mesh."""
    evaluate = evaluate_voc if config.transfer.protocol == "svm" else evaluate_linear
    return evaluate(config, workdir, mesh)
