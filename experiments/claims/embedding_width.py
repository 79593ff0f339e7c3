"""Barlow Twins gains from very wide embeddings, where others do not.

Claimed:    Zbontar et al. 2021, section 4 and Figure 4, a picture: Barlow Twins rises from 16 to 16384 dimensions, BYOL and SimCLR
            saturate. But there Barlow Twins scales all three layers of its projector, and the others the last one only. With equal
            arms SimCLR grows as well, and VICReg does not with fixed hidden layers (Garrido et al. 2022, arXiv 2206.02574, Table S5:
            d-d-d, 256 to 8192: SimCLR 63.4 to 68.7, VICReg 61.4 to 68.1; 8192-8192-d: SimCLR flat, VICReg 65.0 to 68.1).
Measure:    kNN accuracy (k = 200, all train images vote) of the encoder's features after the last step. Equal arms: three layers,
            all of width D, or the first two fixed and the last D wide; for Barlow Twins also with λ·D fixed.
Prediction: with all layers scaled, Barlow Twins gains most from 16 to the base width, and SimCLR gains too; with hidden layers fixed
            both gain less. So with the paper's arms (Barlow Twins scaled, SimCLR fixed) the gap is larger than with equal ones.
Rule:       for each statement the mean paired effect over the seeds and its 95 % interval (harness/judge.py).
Not judged: (2026-11-28) whether others gain nothing: SimCLR may gain, only less. At `cpu` neither BYOL nor widths above 512.
"""

from harness.claim import Arm, Statement

TITLE = "Barlow Twins gains from wide embeddings, more than SimCLR"
AXIS = "width D of the embedding"
NARROW = 16


def arms(scale):
    found = []
    for method, name in _methods(scale).items():
        for width in _widths(scale):
            for arm in ("scaled", "fixed"):
                if arm == "fixed" and (width == scale.width or (scale.name == "cpu" and width != NARROW)):
                    continue
                found.append(
                    Arm(
                        _name(name, width, arm),
                        method,
                        _head(scale, method, width, arm),
                        line=f"{name}, {arm}",
                        x=width,
                        also=_also(method, name) if width == scale.width else (),
                    )
                )
    lambd = round(0.0051 * scale.width / NARROW, 6)
    fields = _head(scale, "barlow_twins", NARROW, "scaled") | {"barlow_twins.lambd": lambd}
    found.append(
        Arm(
            f"Barlow Twins, {NARROW}, scaled, λ·D fixed",
            fields=fields,
            line="Barlow Twins, scaled, λ·D fixed",
            x=NARROW,
        )
    )
    return found


def statements(scale):
    wide = scale.width

    def gain(name, arm, weight=1.0):
        return {_name(name, wide, "scaled"): weight, _name(name, NARROW, arm): -weight}

    return [
        Statement(f"Barlow Twins, all layers scaled: gains from {NARROW} to {wide}", gain("Barlow Twins", "scaled"), "above", 2.0),
        Statement(
            "gains more than SimCLR, with the paper's arms (scaled against fixed)",
            gain("Barlow Twins", "scaled") | gain("SimCLR", "fixed", -1), "above", 1.0,
        ),
        Statement(
            "gains more than SimCLR, with equal arms (all scaled)",
            gain("Barlow Twins", "scaled") | gain("SimCLR", "scaled", -1), "above", 1.0,
        ),
    ]  # fmt: skip


def _methods(scale):
    methods = {"barlow_twins": "Barlow Twins", "simclr": "SimCLR"}
    return methods if scale.name == "cpu" else methods | {"byol": "BYOL"}


def _also(method, name):
    """At the base width all lines of a method meet."""
    return (f"{name}, fixed", *(("Barlow Twins, scaled, λ·D fixed",) if method == "barlow_twins" else ()))


def _widths(scale):
    return {
        "cpu": (NARROW, 128, scale.width),
        "gpu": (NARROW, 64, 256, 1024, scale.width, 4096, 16384),
        "paper": (NARROW, 64, 256, 1024, 4096, scale.width, 16384),
    }[scale.name]


def _head(scale, method, width, arm):
    hidden = width if arm == "scaled" else scale.width
    if method == "barlow_twins":
        return {} if width == scale.width else {"barlow_twins.projector": (hidden, hidden, width)}
    fields = {f"{method}.projector": (hidden, hidden, width)}
    return fields | ({"byol.predictor": (hidden,)} if method == "byol" else {})


def _name(name, width, arm):
    return f"{name}, {width}, {arm}"
