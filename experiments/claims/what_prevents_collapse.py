"""What keeps each method from collapsing: taking it away does harm.

Claimed:    BYOL without its predictor falls to 0.2 % on ImageNet, and with a target that is the online network (τ = 0) to 0.3 % (Grill
            et al. 2020, Table 5); SimCLR without negatives has the constant as its optimum; SwAV without balanced assignments too
            (Caron et al. 2020, section 3.1); Barlow Twins with λ = 0 and without standardising likewise (Bardes et al. 2022,
            Table 7: VICReg without its variance term collapses).
Measure:    kNN accuracy (k = 200, all train images vote) after the last step. A collapsed encoder still tells images apart by kNN on
            what little is left, as an untrained one does, so a collapse is an accuracy far below the method's own. RankMe is in the
            table too.
Prediction: all five lose clearly. SwAV without balance may need longer than these runs to end at one prototype.
Rule:       for each statement the mean paired difference over the seeds and its 95 % interval (harness/judge.py).
Not judged: (2026-11-28, after five results of other arms and before any of SwAV's) SwAV at `cpu`: its rate would have to be chosen first,
            and the core hours of all grids are spent.
"""

from harness.claim import Arm, Statement

TITLE = "What prevents collapse is needed"
WITHOUT = {
    "BYOL": ("byol", {
        "BYOL without predictor": {"byol.predictor": ()},
        "BYOL, τ = 0": {"byol.target_momentum": 0.0, "byol.target_momentum_at_end": 0.0},
    }),
    "SimCLR": ("simclr", {"SimCLR without negatives": {"simclr.negatives": False}}),
    "SwAV": ("swav", {"SwAV without Sinkhorn": {"swav.iterations": 0}}),
    "Barlow Twins": ("barlow_twins", {
        "Barlow Twins, λ = 0, not standardised": {"barlow_twins.terms": "invariance", "barlow_twins.normalization": "none"},
    }),
}  # fmt: skip


def _judged(scale):
    return {name: of for name, of in WITHOUT.items() if not (scale.name == "cpu" and name == "SwAV")}


def arms(scale):
    found = []
    for name, (method, without) in _judged(scale).items():
        found += [Arm(name, method), *(Arm(arm, method, fields) for arm, fields in without.items())]
    return found


def statements(scale):
    return [
        Statement(f"{arm}: below {name}", {arm: 1, name: -1}, "below", 5.0)
        for name, (_, without) in _judged(scale).items()
        for arm in without
    ]
