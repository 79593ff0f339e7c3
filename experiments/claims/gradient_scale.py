"""The official code's division of the gradient by the number of GPUs changes little.

Claimed:    not by the paper: the official code's loss is summed where a mean over GPUs is taken, so that its gradient is the true one
            divided by their number (16 in the published run). LARS cancels that for weights, and not for biases and batch norms.
            Recipes here divide by 16 (ImageNet) or 10 (CIFAR-10) for that reason.
Measure:    kNN accuracy (k = 200, all train images vote) after the last step, with the recipe's divisor and with 1.
Prediction: within a point: the rates of biases and batch norms are ten times as high, which few steps notice.
Rule:       shown if the 95 % interval of the mean paired difference lies within ± 1 point, opposite if outside of it.
"""

from harness.claim import Arm, Statement

TITLE = "The official gradient's scale changes little"


def arms(scale):
    return [Arm("as in the recipe"), Arm("true gradient", fields={"optimizer.gradient_divisor": 1.0})]


def statements(scale):
    return [Statement("the true gradient: the same", {"true gradient": 1, "as in the recipe": -1}, "same", 1.0)]
