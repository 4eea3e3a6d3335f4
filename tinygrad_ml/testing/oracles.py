"""Derivatives by other means than the tape, each with an error bar.

    complex_step   exact to rounding; needs a function that can be evaluated at complex numbers
    difference     central differences at several steps, extrapolated; works for any function
    one_sided      the derivatives to the left and to the right, for points on a kink

All of them answer the same question: J v, for a function F from vectors to vectors, a point x and
a direction v. The answer is an interval [low, high] with a bar: the truth lies within it, or
within `bar` of it. A bar of infinity says that nothing is known (the function is not finite here).
"""

from typing import NamedTuple

import numpy as np

EPS = np.finfo(np.float64).eps
RATIO = 3.7  # of one step to the next; not a whole number, lest all of them alias alike
STEPS = [0.5 * RATIO**-k for k in range(15)]  # 0.5 to 6e-9
FIRST = STEPS[3:7]  # enough where F is smooth on the scale of v
MORE = STEPS[:3] + STEPS[7:]  # for noise, and for kinks close by


class Slope(NamedTuple):
    """J v lies in [low, high], give or take bar; one entry for each output."""

    low: np.ndarray
    high: np.ndarray
    bar: np.ndarray


def complex_step(F, x, v):
    """J v = Im F(x + i h v) / h: no difference, so no digit is lost.  Squire & Trapp 1998"""
    h = 2.0**-400  # h^2 vanishes beside everything, and h v does not underflow
    y = F(x + 1j * h * v)
    slope = y.imag / h
    bar = np.where(np.isfinite(slope) & np.isfinite(y.real), 16 * EPS * np.abs(slope), np.inf)
    return Slope(slope, slope, bar)


def jitter(F, x, v):
    """How far F's values scatter: what stays of them when a cubic is taken out, at points so close
    that F is one there. Rounding within F shows, however it came about.      Hamming 1962
    """
    values = np.array([F(x + k * 2.0**-26 * v) for k in range(1, 13)])  # from one side: no kink
    third = np.abs(np.diff(values, 3, axis=0)).max(axis=0)
    return np.where(np.isfinite(third), third / np.sqrt(20), 0)  # sqrt(1 + 9 + 9 + 1)


def difference(F, x, v, noise=None, smooth=None, scatter=0.0):
    """J v by four-point central differences, D4(h) = (r^2 D2(h) - D2(r h)) / (r^2 - 1).

    D2(h) = (F(x + h v) - F(x - h v)) / 2h errs by O(h^2), D4 by O(h^4). The bar is how far D4
    moves from one step to the next (Richardson 1911), and what rounding in F can do: whichever
    way the error comes about, it shows. Each output takes the step at which its bar is least.

    noise   the size of the numbers that F adds up, where they are greater than F (cancellation)
    scatter how far F's values are off, where that is known
    smooth  smooth(z) says whether z lies on the same smooth piece as x; steps beyond are left out
    """
    y = F(x)
    floor = np.abs(y) if noise is None else np.maximum(np.abs(y), noise)
    central, bend = {}, {}
    for steps in (FIRST, MORE):
        for h in steps:
            after, before = x + h * v, x - h * v
            if smooth is not None and not (smooth(after) and smooth(before)):
                central[h] = bend[h] = np.full(y.shape, np.nan)
                continue
            after, before = F(after), F(before)
            central[h] = (after - before) / (2 * h)
            bend[h] = np.abs((after - y) - (y - before)) / h
        slope = _extrapolated(central, floor, scatter)
        if np.all(slope.bar <= 1e-9 * np.maximum(np.abs(slope.low), 1e-3 * floor)):
            break
    kink = _stays(bend, (8 * EPS * floor + 4 * scatter), np.maximum(np.abs(slope.low), floor))
    return slope._replace(bar=np.where(kink, np.inf, slope.bar))


def _stays(bend, noise, size):
    """Whether right minus left derivative stays as steps shrink: it is h f'' where f is smooth.

    One passage to a finer step at which it shrinks, above the noise, tells that f is smooth there;
    coarse steps may jump over waves of f, and find anything.
    """
    steps = sorted((h for h in bend if h <= FIRST[-2]), reverse=True)
    finest = bend[FIRST[-1]]
    found = (finest > 0.7 * bend[FIRST[-2]]) & (finest > 1e-6 * size)
    for coarser, finer in zip(steps[:-1], steps[1:], strict=True):
        clear = bend[coarser] > 30 * noise / finer
        found &= ~(clear & (bend[finer] < 0.5 * bend[coarser]))
    return found


def _extrapolated(central, floor, scatter):
    """The best of the D4 of all steps, with its bar."""
    steps = sorted(central, reverse=True)
    square = RATIO**2
    fourth = np.array([(square * central[h] - central[wide]) / (square - 1)
                       for wide, h in zip(steps[:-1], steps[1:], strict=True)])  # fmt: skip
    moves = np.abs(np.diff(fourth, axis=0))  # moves[k] leads from fourth[k] to fourth[k + 1]
    bars = np.full(fourth.shape, np.inf)
    for k, h in enumerate(steps[1:]):
        first = min(max(k - 1, 0), len(moves) - 2)  # two moves, at either end too
        moved = np.fmax.reduce(moves[first : first + 2])  # NaN where neither is known
        rounding = 8 * EPS * np.maximum(floor, np.abs(fourth[k])) + 4 * scatter  # x + h v rounds
        bars[k] = 4 * moved + rounding / h  # 4: two steps may err alike
    bars[~np.isfinite(bars) | ~np.isfinite(fourth)] = np.inf
    bars[_refuted(fourth, bars)] = np.inf
    best = np.argmin(bars, axis=0)[None]
    slope = np.take_along_axis(fourth, best, 0)[0]
    return Slope(slope, slope, np.take_along_axis(bars, best, 0)[0])


def _refuted(fourth, bars):
    """Which estimates two finer ones contradict: F has a feature that their steps jump over.

    e.g. tanh(1000 x) about 0: to steps of 0.1 it is constant on either side, and they agree.
    A contradiction is by much, a hundredth of the size: finer steps are the noisier ones.
    """
    found = np.zeros(bars.shape, bool)
    for k in range(len(bars) - 2):
        finer = fourth[k + 1 :]
        apart = np.abs(finer - fourth[k])
        much = apart > np.maximum(4 * (bars[k + 1 :] + bars[k]), 0.01 * np.abs(finer))
        found[k] = (much[:-1] & much[1:]).any(axis=0)
    return found


def one_sided(F, x, v, scatter=0.0, smooth=None, on_kink=True):
    """The interval between the left and the right derivative along v: a subgradient lies in it.

    Three-point differences from one side, (4 F(x + h v) - F(x + 2 h v) - 3 F(x)) / 2h.

    smooth   as in `difference`. Where x lies beside a kink, not on it, F is differentiable: the side
             without the kink knows the derivative, and the other one that beyond the kink
    on_kink  whether v leads off a kink that x lies on: then the answer is between the two
    """
    y = F(x)
    sides, crossing = [], []
    for sign in (-1, 1):
        steps = [sign * 2.0**-k for k in range(6, 21, 2)]
        found = np.array([(4 * F(x + h * v) - F(x + 2 * h * v) - 3 * y) / (2 * h) for h in steps])
        if smooth is not None and not on_kink:
            within = np.array([smooth(x + h * v) and smooth(x + 2 * h * v) for h in steps])
            found[~within] = np.nan
            crossing.append(not within[-3:].all())
        bars = np.abs(np.diff(found, axis=0)) * 2
        rounding = 8 * EPS * np.maximum(np.abs(y), np.abs(found[1:])) + 8 * scatter
        bars += rounding / np.abs(steps[1:])[:, None]
        bars[~np.isfinite(bars)] = np.inf
        bars[_refuted(found[1:], bars)] = np.inf
        best = np.argmin(bars, axis=0)[None]
        sides.append((np.take_along_axis(found[1:], best, 0)[0],
                      np.take_along_axis(bars, best, 0)[0]))  # fmt: skip
    if any(crossing):
        slope, bar = sides[int(crossing[0])]
        return Slope(slope, slope, np.full(bar.shape, np.inf) if all(crossing) else bar)
    (left, left_bar), (right, right_bar) = sides
    return Slope(np.minimum(left, right), np.maximum(left, right), np.maximum(left_bar, right_bar))
