"""A deeper projector is better, up to three layers.

Claimed:    Zbontar et al. 2021, section 4 ("Projector Network Depth & Width"), in words: better with more layers, saturating at
            three. Elsewhere a projector is worth 18 points to SimCLR and 20 to VICReg after 100 epochs of ImageNet (Balestriero et
            al. 2023, section 3.2).
Measure:    kNN accuracy (k = 200, all train images vote) of the encoder's features after the last step. All layers have the same
            width; without a projector the loss is on the features.
Prediction: no projector loses at `gpu`. At `cpu` it may not: two epochs of the quickstart showed no difference, and a narrow
            encoder's 128 features have little to lose.
Rule:       for each statement the mean paired difference over the seeds and its 95 % interval (harness/judge.py).
Not judged: (2026-11-28) that three layers are enough.
"""

from harness.claim import Arm, Statement

TITLE = "The projector's depth matters"
AXIS = "layers of the projector"


def arms(scale):
    depths = (0, 1, 3) if scale.name == "cpu" else (0, 1, 2, 3, 4)
    return [
        Arm(f"{depth} layers", fields={} if depth == 3 else _layers(scale.width, depth), line="Barlow Twins", x=depth)
        for depth in depths
    ]


def statements(scale):
    return [
        Statement("no projector: below three layers", {"0 layers": 1, "3 layers": -1}, "below", 2.0),
        Statement("one layer: below three", {"1 layers": 1, "3 layers": -1}, "below", 0.5),
    ]


def _layers(width, depth):
    return {"barlow_twins.projector": (width,) * depth}
