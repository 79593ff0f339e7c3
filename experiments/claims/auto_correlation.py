"""The redundancy term may as well come from the embeddings' auto-correlations.

Claimed:    Zbontar et al. 2021, section 5.2 and appendix A, in words: off-diagonal terms of one network's auto-correlation,
            in place of the cross-correlation, do about as well. No number is given.
Measure:    kNN accuracy (k = 200, all train images vote) after the last step.
Prediction: within a point, as in VICReg, whose covariance term is this one.
Rule:       shown if the 95 % interval of the mean paired difference lies within ± 1 point, opposite if outside of it.
"""

from harness.claim import Arm, Statement

TITLE = "Off-diagonals of auto-correlations do as well"


def arms(scale):
    return [
        Arm("Barlow Twins", paper="71.4"),
        Arm("auto-correlations", fields={"barlow_twins.off_diagonals": "auto"}, paper="similar"),
    ]


def statements(scale):
    text = "off-diagonals of auto-correlations: the same as of the cross-correlation"
    return [Statement(text, {"auto-correlations": 1, "Barlow Twins": -1}, "same", 1.0)]
