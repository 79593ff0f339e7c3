"""Batch statistics of each view by itself, or of both together, make little difference.

Claimed:    not by the paper, which does not mention it: the official code passes one view after the other through the network, so that
            each has its own batch statistics; SimCLR and SwAV take both together. Views have one distribution here.
Measure:    kNN accuracy (k = 200, all train images vote) after the last step.
Prediction: within a point.
Rule:       shown if the 95 % interval of the mean paired difference lies within ± 1 point, opposite if outside of it.
"""

from harness.claim import Arm, Statement

TITLE = "Batch statistics of both views together do as well"


def arms(scale):
    return [Arm("each view by itself"), Arm("both together", fields={"barlow_twins.joint_statistics": True})]


def statements(scale):
    return [Statement("both together: the same", {"both together": 1, "each view by itself": -1}, "same", 1.0)]
