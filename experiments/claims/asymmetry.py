"""Barlow Twins needs no asymmetry, and suffers from stop-gradient and predictor together.

Claimed:    Zbontar et al. 2021, section 4 and Table 6, top-1 in % after 300 epochs of ImageNet: 71.4; with a stop-gradient 70.5;
            with a predictor 70.2; with both 61.3.
Measure:    kNN accuracy (k = 200, all train images vote) after the last step. The predictor has one hidden layer as wide as the
            embedding, on one view, not symmetrised.
Prediction: both together lose several points, and more than either alone. Whether either alone loses a point cannot be told apart
            with three seeds on two cores, so nothing is stated about it.
Rule:       for each statement the mean paired effect over the seeds and its 95 % interval (harness/judge.py).
Not judged: (2026-11-28) that no asymmetry is needed, and that both together are worse than each alone; the second statement is about
            the mean of the two.
"""

from harness.claim import Arm, Statement

TITLE = "Stop-gradient and predictor together hurt"


def arms(scale):
    stop, predictor = {"barlow_twins.stop_gradient": True}, {"barlow_twins.predictor": (scale.width,)}
    return [
        Arm("Barlow Twins", paper="71.4"),
        Arm("stop-gradient", fields=stop, paper="70.5"),
        Arm("predictor", fields=predictor, paper="70.2"),
        Arm("stop-gradient and predictor", fields=stop | predictor, paper="61.3"),
    ]


def statements(scale):
    both = "stop-gradient and predictor"
    return [
        Statement("both together: below Barlow Twins", {both: 1, "Barlow Twins": -1}, "below", 2.0),
        Statement(
            "both together: below the mean of either alone",
            {both: 1, "stop-gradient": -0.5, "predictor": -0.5},
            "below",
            2.0,
        ),
    ]
