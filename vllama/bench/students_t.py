"""Quantiles of Student's t and of the normal distribution, for two-sided confidence intervals."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import mpmath

CONFIDENCE = 0.95
"""Probability with which each interval of the bench contains the true value."""


@cache
def t_quantile(degrees_of_freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the value that |t| stays below with this confidence; 12.706 for one degree of freedom and 0.95.

    With f degrees of freedom and y = t² / (f + t²), the probability of a smaller |t| is the regularized incomplete beta
    function I_y(1 / 2, f / 2). Bisection finds its root below that for one degree of freedom, which has a closed form.
    Raises ValueError for fewer than one degree of freedom.
    """
    if degrees_of_freedom < 1:
        message = f"Student's t needs at least 1 degree of freedom, not {degrees_of_freedom}"
        raise ValueError(message)
    f = degrees_of_freedom

    def excess(t: float) -> float:
        probability: float = mpmath.betainc(0.5, f / 2, 0, t * t / (f + t * t), regularized=True)
        return probability - confidence

    highest = math.tan(math.pi * confidence / 2)
    return float(mpmath.findroot(excess, (0.0, 2 * highest), solver="bisect"))


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return the value that |z| stays below with this confidence; 1.960 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
