"""Barlow Twins is not very sensitive to λ.

Claimed:    Zbontar et al. 2021, section 4 ("Sensitivity to λ") and Figure 5: from 0.002 to 0.02 top-1 stays between 70.8 and 71.6 %.
Measure:    kNN accuracy (k = 200, all train images vote) after the last step.
Prediction: flat at `cpu` within a point for twice and half the default; that alone would say little, so the ends are tried: a tenth
            and ten times of the default, where I expect a loss of at most 3 points. As the off-diagonal term grows with D², the best
            λ should fall about as 1/D; this needs widths that two cores do not reach, and is stated for `gpu` only.
Rule:       for each statement the mean paired effect over the seeds and its 95 % interval (harness/judge.py).
Not judged: (2026-11-28, before the first result at another λ) the paper's own range, which is inside of these ends: a loss at an end would
            not contradict the paper.
"""

from harness.claim import Arm, Statement

TITLE = "λ may be ten times smaller or larger"
AXIS = "λ"
DEFAULT = 0.0051


def arms(scale):
    widths = (scale.width,) if scale.name == "cpu" else (512, scale.width)
    return [_arm(scale, width, factor) for width in widths for factor in (0.1, 1.0, 10.0)]


def statements(scale):
    base = _name(scale.width, 1.0)
    found = [
        Statement(f"λ × {factor:g}: within 3 points", {_name(scale.width, factor): 1, base: -1}, "same", 3.0)
        for factor in (0.1, 10.0)
    ]
    if scale.name != "cpu":
        wide = {_name(scale.width, 0.1): 1, _name(scale.width, 10.0): -1}
        narrow = {_name(512, 0.1): -1, _name(512, 10.0): 1}
        found.append(Statement("a wide embedding prefers a smaller λ than one of 512", wide | narrow, "above", 1.0))
    return found


def _arm(scale, width, factor):
    fields = {} if factor == 1 else {"barlow_twins.lambd": round(factor * DEFAULT, 6)}
    if width != scale.width:
        fields["barlow_twins.projector"] = (width,) * 3
    return Arm(_name(width, factor), fields=fields, line=f"D = {width}", x=factor * DEFAULT)


def _name(width, factor):
    return f"λ × {factor:g}, D = {width}"
