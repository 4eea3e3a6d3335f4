"""Minimisers of a convex objective: each a page, each the textbook's, each honest about its end.

All take (objective, theta, stop) and return a Result. `stop` says when a gradient is small enough;
by default that is the level of its own rounding errors, so that what is returned is the minimum
and not a point on the way to it.

    newton            Cholesky; a factor is kept while it still works     few parameters
    newton_cg         Hessian-vector products only                        many parameters
    lbfgs             gradients only
    proximal_newton   L1: coordinate descent on the quadratic model       few parameters
    fista             L1: accelerated proximal gradient, with restarts
    sgd               mini-batches with variance reduction; L1 too        many rows
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from .likelihood import EPS, Standardised


@dataclass
class Result:
    """Where a solver ended.

    value   the objective there, if the solver has it
    reason  "" if it converged; else what kept it from it
    """

    theta: object
    iterations: int
    gradient_norm: float
    reason: str = ""
    value: float | None = None

    @property
    def converged(self):
        return not self.reason


class SeparatedError(Exception):
    """The likelihood grows for ever in some direction: there is no maximum."""

    def __init__(self, theta, iterations):
        self.theta, self.iterations = theta, iterations


@dataclass
class Stop:
    """When to stop: max |gradient| <= tol, or (tol None) at the level of rounding errors.

    bar        something with update() and set_postfix(), for progress
    separable  whether to look for a direction in which the likelihood grows for ever
    """

    tol: float | None
    max_iter: int
    bar: object
    separable: bool = False

    def small(self, objective, theta, g):
        """Whether the gradient g at theta is small enough."""
        xp = objective.xp
        allowed = objective.rounding(theta)
        if self.tol is not None:
            allowed = xp.maximum(allowed, self.tol)
        return bool((xp.abs(g) <= allowed).all())

    def step(self, norm):
        self.bar.update(1)
        self.bar.set_postfix(gradient=f"{norm:.1e}")


def _norm(objective, g):
    return float(objective.xp.abs(g).max())


def _finish(objective, theta, g, iterations, converged, stop, stalled=False):
    norm = _norm(objective, g)
    if converged:
        return Result(theta, iterations, norm)
    if stalled:
        return Result(theta, iterations, norm, "rounding errors allow no further descent")
    return Result(theta, iterations, norm, f"max_iter={stop.max_iter} iterations were not enough")


# ------------------------------------------------------------------------------- line search


def line_search(objective, theta, f, g, step, t=1.0):
    """(theta, f, g) at a point of sufficient decrease along `step`, or None if there is none.

    Armijo's rule with quadratic interpolation (Nocedal & Wright 2006, section 3.5). A convex
    objective needs no curvature condition: the gradients' difference along a step is positive
    anyway. Where f can no longer tell two points apart, the slope decides, which can (Hager &
    Zhang 2005).
    """
    slope = float(g @ step)
    if not slope < 0:
        return None
    noise = objective.noise * max(abs(f), 1e-3)
    for _ in range(40):
        there = theta + t * step
        f1, g1 = objective.gradient(there)
        if -t * slope > 1e3 * noise:
            good = f1 <= f + 1e-4 * t * slope
        else:
            good = f1 <= f + noise and abs(float(g1 @ step)) <= 0.95 * abs(slope)
        if good:
            return there, f1, g1
        bend = f1 - f - t * slope
        best = -slope * t * t / (2 * bend) if math.isfinite(bend) and bend > 0 else t / 4
        t = min(max(best, t / 10), t / 2)
    return None


# ------------------------------------------------------------------------------------ newton


def newton(objective, theta, stop):
    """Newton's method with Cholesky's factorisation and a line search.

    The factor of one Hessian serves for as long as each step shrinks the gradient tenfold, or by
    half where there are so many parameters that a Hessian costs a hundred gradients (Shamanskii
    1967: a Hessian costs about as many gradients as a quarter of the parameters). Of very many
    rows, evenly spaced ones give a start a standard error or so from the minimum, and its factor.
    """
    theta, factor = _start_from_sample(objective, objective.centred(theta), stop)
    f, g = objective.gradient(theta)
    fresh, patience = False, 0.01 if objective.size < 200 else 0.25
    for iteration in range(stop.max_iter):
        if stop.small(objective, theta, g):
            return replace(_finish(objective, theta, g, iteration, True, stop), value=f)
        if factor is None:
            H = objective.anchored(objective.hessian(theta))
            factor, fresh = inverse(objective.xp, H), True
        step = -factor(g)
        decrement = -float(g @ step)
        found = line_search(objective, theta, f, g, step)
        if found is None:
            if fresh:
                return _finish(objective, theta, g, iteration, False, stop, stalled=True)
            factor = None
            continue
        theta, f, g = found
        stop.step(_norm(objective, g))
        if stop.separable and (f < 0.3 or iteration >= 12):
            _look_for_separation(objective, theta, step, iteration)
        if not float(g @ factor(g)) < patience * decrement:
            factor, fresh = None, False
        else:
            fresh = False
    converged = stop.small(objective, theta, g)
    return _finish(objective, theta, g, stop.max_iter, converged, stop)


def inverse(xp, H):
    """A function g -> H^-1 g, by Cholesky of H scaled to a unit diagonal.

    Where H is singular, the least-squares solution of least norm.
    """
    d = xp.sqrt(xp.where(xp.diag(H) > 0, xp.diag(H), 1))
    scaled = H / d[:, None] / d
    try:
        L = xp.linalg.cholesky(scaled)
        regular = float(xp.diag(L).min()) > 1e-7  # 1e-14 of the variance is left: rounding
    except np.linalg.LinAlgError:
        regular = False
    if regular:
        root = inverse_triangle(xp, L)
        return lambda g: (root.T @ (root @ (g / d))) / d
    values, vectors = xp.linalg.eigh(scaled)
    keep = values > 1e-12 * values.max()
    values, vectors = values[keep], vectors[:, keep]
    return lambda g: (vectors @ ((vectors.T @ (g / d)) / values)) / d


def inverse_triangle(xp, L):
    """L^-1 of a lower triangle, by halves: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]].

    Almost all of it is matrix products: a fifth of the time that a general inverse takes.
    """
    n = len(L)
    if n <= 64:
        return xp.linalg.inv(L)
    half = n // 2
    R = xp.zeros_like(L)
    R[:half, :half] = inverse_triangle(xp, L[:half, :half])
    R[half:, half:] = inverse_triangle(xp, L[half:, half:])
    R[half:, :half] = -R[half:, half:] @ (L[half:, :half] @ R[:half, :half])
    return R


def _start_from_sample(objective, theta, stop):
    """(theta, factor or None): the minimum over evenly spaced rows, if there are very many."""
    stride = objective.samples // max(40 * objective.size, 40_000)
    if stride < 5 or bool(theta.any()):
        return theta, None
    sample = objective.subset(slice(None, None, stride))
    f, g = sample.gradient(theta)
    here, factor = theta, None
    for _ in range(8):
        factor = inverse(sample.xp, sample.anchored(sample.hessian(here)))
        found = line_search(sample, here, f, g, -factor(g))
        if found is None:
            break
        here, f, g = found
        if _norm(sample, g) < 1e-4:
            return here, factor
    return theta, None  # a sample that is hard to fit is no help


def _look_for_separation(objective, theta, step, iterations):
    """SeparatedError if theta classifies every sample right, or the step only ever gains.

    If all margins of theta are positive then theta times t has a likelihood that tends to 1 with
    t (complete separation, Albert & Anderson 1984). If a step raises some margins and lowers none,
    going on along it raises the likelihood for ever (quasi-complete separation).
    """
    if objective.margins(theta)[0] > 0:
        raise SeparatedError(theta, iterations)
    if iterations >= 12:
        low, high = objective.margins(step)  # linear: how the margins change
        if high > 0 and low > -1e-6 * high:
            raise SeparatedError(theta, iterations)


# --------------------------------------------------------------------- newton-cg and l-bfgs


def newton_cg(objective, theta, stop):
    """Newton's method whose linear systems are solved by conjugate gradients, only as well as
    it pays: to min(0.1, sqrt|g|) of the gradient (Nocedal & Wright 2006, algorithm 7.1)."""
    inner, outer = Standardised(objective), objective
    u = inner.inner(outer.centred(theta))
    f, g = inner.gradient(u)
    first = max(float(outer.xp.sqrt(g @ g)), 1e-300)
    for iteration in range(stop.max_iter):
        theta, gradient = inner.outer(u), inner.push(g)
        if stop.small(outer, theta, gradient):
            return _finish(outer, theta, gradient, iteration, True, stop)
        if stop.separable and iteration >= 4:
            _look_for_separation(outer, theta, theta, 0)
        rtol = min(0.1, math.sqrt(float(outer.xp.sqrt(g @ g)) / first))
        step = conjugate_gradients(inner.hessian_product(u), g, rtol, 10 * inner.size)
        found = line_search(inner, u, f, g, step)
        if found is None:
            theta, gradient = _whole_steps(inner, u, g)
            converged = stop.small(outer, theta, gradient)
            return _finish(outer, theta, gradient, iteration, converged, stop, stalled=True)
        u, f, g = found
        stop.step(_norm(outer, g))
    theta, gradient = inner.outer(u), inner.push(g)
    converged = stop.small(outer, theta, gradient)
    return _finish(outer, theta, gradient, stop.max_iter, converged, stop)


def _whole_steps(inner, u, g):
    """(theta, its gradient) after Newton steps as long as each one halves the gradient.

    So close to the minimum that f and its slope are rounding errors a line search sees nothing,
    but the gradient still tells how far it is, and the objective is a parabola.
    """
    while True:
        there = u + conjugate_gradients(inner.hessian_product(u), g, 0.01, 10 * inner.size)
        _, after = inner.gradient(there)
        if not _norm(inner, after) < _norm(inner, g) / 2:
            return inner.outer(u), inner.push(g)
        u, g = there, after


def conjugate_gradients(times, g, rtol, max_iter):
    """x with |H x + g| <= rtol |g|, H given by v -> H v."""
    x, r = 0 * g, -g
    p, rho = r, float(r @ r)
    goal, steepest = rtol * rtol * rho, 0.0
    for _ in range(max_iter):
        Hp = times(p)
        curvature, length = float(p @ Hp), float(p @ p)
        if curvature <= EPS * steepest * length:  # H sees this direction by rounding alone
            break
        steepest = max(steepest, curvature / length)
        alpha = rho / curvature
        x, r = x + alpha * p, r - alpha * Hp
        previous, rho = rho, float(r @ r)
        if rho <= goal:
            break
        p = r + (rho / previous) * p
    return x if bool(x.any()) else -g


def lbfgs(objective, theta, stop, memory=20):
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithms 7.4 and 7.5), columns standardised.

    Differences of gradients sink into rounding errors before the gradient itself does: once it
    has not halved for a hundred steps, Newton-CG takes the last ones.
    """
    inner, outer = Standardised(objective), objective
    u = inner.inner(outer.centred(theta))
    f, g = inner.gradient(u)
    pairs = deque(maxlen=memory)
    best, since = math.inf, 0
    for iteration in range(stop.max_iter):
        theta, gradient = inner.outer(u), inner.push(g)
        if stop.small(outer, theta, gradient):
            return _finish(outer, theta, gradient, iteration, True, stop)
        if stop.separable and f < 0.3 and iteration % 10 == 9:
            _look_for_separation(outer, theta, theta, 0)
        norm = _norm(outer, gradient)
        best, since = (norm, 0) if norm < best / 2 else (best, since + 1)
        found = line_search(inner, u, f, g, -_two_loops(pairs, g))
        if found is None or since > 100:
            last = newton_cg(outer, theta, replace(stop, max_iter=stop.max_iter - iteration))
            return replace(last, iterations=last.iterations + iteration)
        s, d = found[0] - u, found[2] - g
        if float(s @ d) > EPS * float(d @ d):
            pairs.append((s, d, 1 / float(s @ d)))
        u, f, g = found
        stop.step(_norm(outer, g))
    theta, gradient = inner.outer(u), inner.push(g)
    converged = stop.small(outer, theta, gradient)
    return _finish(outer, theta, gradient, stop.max_iter, converged, stop)


def _two_loops(pairs, g):
    """The inverse Hessian's estimate times g, from the last steps s and gradient changes d."""
    q, alphas = g, []
    for s, d, rho in reversed(pairs):
        alpha = rho * float(s @ q)
        alphas.append(alpha)
        q = q - alpha * d
    if pairs:
        s, d, rho = pairs[-1]
        q = q / (rho * float(d @ d))
    for (s, d, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * float(d @ q)) * s
    return q


# ------------------------------------------------------------------------------ with L1 terms


def subgradient(xp, theta, g, l1):
    """The least vector among the subgradients of f + sum_j l1_j |theta_j|: 0 at a minimum."""
    at_zero = xp.sign(g) * xp.maximum(xp.abs(g) - l1, 0)
    return xp.where(theta == 0, at_zero, g + l1 * xp.sign(theta))


def soft_threshold(xp, x, t):
    """argmin_v (v - x)^2 / 2 + t |v|"""
    return xp.sign(x) * xp.maximum(xp.abs(x) - t, 0)


def proximal_newton(objective, theta, stop, l1):
    """Minimise the quadratic model plus the L1 term, then search along the way to its minimum.

    Lee, Sun & Saunders 2014; the model by coordinate descent (Friedman, Hastie & Tibshirani 2010).
    """
    xp = objective.xp
    f, g = objective.gradient(theta)
    for iteration in range(stop.max_iter):
        s = subgradient(xp, theta, g, l1)
        if stop.small(objective, theta, s):
            return _finish(objective, theta, s, iteration, True, stop)
        H = objective.hessian(theta)
        there = minimise_model(xp, H, g, theta, l1)
        found = _composite_search(objective, theta, f, g, there - theta, l1)
        if found is None:
            return _finish(objective, theta, s, iteration, False, stop, stalled=True)
        theta, f, g = found
        stop.step(_norm(objective, subgradient(xp, theta, g, l1)))
    s = subgradient(xp, theta, g, l1)
    return _finish(objective, theta, s, stop.max_iter, stop.small(objective, theta, s), stop)


def minimise_model(xp, H, g, theta, l1, sweeps=200):
    """argmin_v g (v - theta) + (v - theta) H (v - theta) / 2 + sum_j l1_j |v_j|

    Coordinate descent finds which entries are zero and the signs of the others; given those the
    minimum is that of a linear system, which is then solved exactly. On the host: coordinates
    come one after the other.
    """
    H, g, start, l1 = (np.asarray(a.get() if xp is not np else a) for a in (H, g, theta, l1))
    v, slope = start.copy(), g.copy()  # slope: the model's gradient at v
    diagonal = np.maximum(np.diag(H), 1e-300)
    for sweep in range(sweeps):
        before = v.copy()
        everywhere = sweep % 8 == 0
        for j in range(len(v)) if everywhere else np.flatnonzero(v):
            x = v[j] - slope[j] / diagonal[j]
            moved = math.copysign(max(abs(x) - l1[j] / diagonal[j], 0.0), x) - v[j]
            if moved:
                v[j] += moved
                slope += moved * H[j]
        if everywhere and (np.sign(v) == np.sign(before)).all():
            exact = _on_support(H, g, start, l1, v)
            if exact is not None:
                v = exact
                break
    return xp.asarray(v)


def _on_support(H, g, start, l1, v):
    """The model's minimum with the zeros and signs of v, or None if it has others."""
    free = (v != 0) | (l1 == 0)
    if not free.any():
        return v
    target = H[np.ix_(free, free)] @ v[free] - (
        (H @ (v - start) + g)[free] + l1[free] * np.sign(v[free])
    )
    exact = np.zeros_like(v)
    exact[free] = inverse(np, H[np.ix_(free, free)])(target)
    slope = g + H @ (exact - start)
    kept = (np.sign(exact) == np.sign(v)) | (l1 == 0)
    idle = np.abs(slope) <= l1 * (1 + 1e-9) + 1e-300
    return exact if (kept & (free | idle)).all() else None


def _composite_search(objective, theta, f, g, step, l1):
    """line_search for f + sum_j l1_j |theta_j|."""
    xp = objective.xp
    penalty = float(l1 @ xp.abs(theta))
    expected = float(g @ step) + float(l1 @ xp.abs(theta + step)) - penalty
    noise, t = 8 * EPS * (abs(f) + penalty), 1.0
    size = _norm(objective, subgradient(xp, theta, g, l1))
    for _ in range(40):
        there = theta + t * step
        f1, g1 = objective.gradient(there)
        change = f1 + float(l1 @ xp.abs(there)) - f - penalty
        if change <= 1e-4 * t * min(expected, 0.0) and expected < -noise:
            return there, f1, g1
        if change <= noise and _norm(objective, subgradient(xp, there, g1, l1)) < 0.9 * size:
            return there, f1, g1
        t /= 2
    return None


def fista(objective, theta, stop, l1):
    """Accelerated proximal gradient (Beck & Teboulle 2009), columns standardised.

    The step is found by backtracking; momentum restarts whenever it points uphill (O'Donoghue &
    Candes 2015), which makes convergence linear.
    """
    inner, xp = Standardised(objective), objective.xp
    weights = l1 / xp.tile(inner.scale, objective.shape[0])
    u = inner.inner(theta)
    v, momentum, lipschitz = u, 1.0, 1.0
    for iteration in range(stop.max_iter):
        f, g = inner.gradient(v)
        while True:
            new = soft_threshold(xp, v - g / lipschitz, weights / lipschitz)
            move = new - v
            if lipschitz > 1e12 or inner.value(new) <= f + float(g @ move) + (
                0.5 * lipschitz * float(move @ move) + 8 * EPS * abs(f)
            ):
                break
            lipschitz *= 2
        if float((v - new) @ (new - u)) > 0:
            momentum, v = 1.0, new
        else:
            following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
            v = new + ((momentum - 1) / following) * (new - u)
            momentum = following
        u = new
        if iteration % 10 == 0:
            s = _true_subgradient(objective, inner, u, l1)
            stop.bar.update(9)
            stop.step(_norm(objective, s))
            if stop.small(objective, inner.outer(u), s):
                return _finish(objective, inner.outer(u), s, iteration + 1, True, stop)
    s = _true_subgradient(objective, inner, u, l1)
    return _finish(objective, inner.outer(u), s, stop.max_iter, False, stop)


def _true_subgradient(objective, inner, u, l1):
    theta = inner.outer(u)
    return subgradient(objective.xp, theta, objective.gradient(theta)[1], l1)


# --------------------------------------------------------------------------------------- sgd


def sgd(objective, theta, stop, l1, rng, batch_size=256):
    """Mini-batch gradient steps with variance reduction; with an L1 term, proximal ones.

    An epoch takes one gradient over all rows at a reference point, then walks through them in
    random batches, correcting each batch's gradient by its own at the reference point: the noise
    vanishes with the distance, so a constant step converges (SVRG, Johnson & Zhang 2013; with a
    proximal step Xiao & Zhang 2014). Only one batch of rows is in memory at a time.
    """
    inner, xp = Standardised(objective), objective.xp
    weights = l1 / xp.tile(inner.scale, objective.shape[0])
    u = inner.inner(theta)
    n = objective.samples
    batch_size = min(batch_size, max(n // 16, 1))
    rate = 1.0 / _largest_curvature(inner, rng, min(batch_size, n))
    total = objective.weight
    best = (math.inf, u)
    for epoch in range(stop.max_iter):
        f, full = inner.gradient(u)
        f += float(weights @ xp.abs(u))
        s = subgradient(xp, u, inner.push(full), l1)
        if stop.small(objective, inner.outer(u), s):
            return _finish(objective, inner.outer(u), s, epoch, True, stop)
        if not f <= best[0] + 1e-3 * abs(best[0]):  # it diverges: go back, with a smaller step
            u, rate = best[1], rate / 2
            continue
        best = (min(f, best[0]), u if f <= best[0] else best[1])
        reference = u
        for rows in batches(rng, n, batch_size):
            share = float(total[rows].sum())
            if share == 0:
                continue
            part = inner.subset(rows)
            _, g = part.gradient(u)
            _, g_reference = part.gradient(reference)
            scale = share * n / len(rows)  # a batch's mean, by its weight among equal batches
            g = full + scale * (g - g_reference)
            u = soft_threshold(xp, u - rate * g, rate * weights)
        stop.step(_norm(objective, s))
    _, full = inner.gradient(u)
    s = subgradient(xp, u, inner.push(full), l1)
    converged = stop.small(objective, inner.outer(u), s)
    return _finish(objective, inner.outer(u), s, stop.max_iter, converged, stop)


def batches(rng, n, size):
    """Every row once: runs of consecutive rows (which a disk can read), in random order."""
    starts = np.arange(0, n, size)
    offset = int(rng.integers(size))
    for start in rng.permutation(starts):
        rows = (np.arange(start, min(start + size, n)) + offset) % n
        yield np.sort(rows)


def _largest_curvature(inner, rng, batch):
    """A bound on the Hessian's norm over batches: the greatest of a few, by the power method."""
    n, xp = inner.of.samples, inner.xp
    found = 0.0
    for _ in range(4):
        rows = np.sort(rng.choice(n, size=min(batch, n), replace=False))
        if not float(inner.of.weight[rows].sum()) > 0:
            continue
        part = inner.subset(rows)
        times = part.hessian_product(xp.zeros(inner.size))
        v = xp.asarray(rng.standard_normal(inner.size))
        for _ in range(12):
            v = v / xp.sqrt(v @ v)
            v = times(v)
        found = max(found, float(xp.sqrt(v @ v)))
    return 3 * max(found, 1e-12)
