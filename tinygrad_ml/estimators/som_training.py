"""How a self-organising map learns: a distance, the best-matching units, two rules, a beginning.

    n rows, d features, k units      X: (n, d)  codebook: (k, d), the units' prototypes

NaN in X stands for what was not observed: distances are taken over what was, and scaled up.
"""

import numpy as np

from .. import kernels
from ..backend import namespace
from ..fused import accelerated
from .som_grid import smooth

# A block of scores should stay in the cache between the product and the search for its maxima.
BLOCK_ENTRIES = {"euclidean": 1 << 20, "cosine": 1 << 20, "manhattan": 1 << 17}


# --------------------------------------------------------------------------------- distances
# Each is prepared for one codebook. Its score is the greater, the nearer a unit is to a row.


class Euclidean:
    """|x - w|, by way of score(x, w) = x.w - |w|^2 / 2, which is one matrix product.

    Over the observed features o the score is x_o.w_o - |w_o|^2 / 2: a product of twice the width.
    """

    def __init__(self, codebook, masked=False):
        xp = namespace([codebook])
        self.masked = masked
        self.center = codebook.mean(axis=0)  # of data far from 0, the differences keep their digits
        w = codebook - self.center
        halves = -0.5 * w * w
        table = xp.concatenate([w.T, halves.T if masked else halves.sum(axis=1)[None]])
        self.table = xp.ascontiguousarray(table)  # the product packs it anew for every block

    def scores(self, rows, out):
        xp = namespace([rows])
        if self.masked:
            x = rows - self.center
            observed = ~xp.isnan(x)
            left = xp.concatenate([xp.where(observed, x, 0), observed.astype(x.dtype)], axis=1)
        else:
            left = xp.ones((len(rows), rows.shape[1] + 1), self.table.dtype)
            xp.subtract(rows, self.center, out=left[:, :-1])
        return xp.matmul(left, self.table, out=out)

    def from_scores(self, rows, scores):
        """Distances: |x - w|^2 = |x|^2 - 2 score.      scores: (rows, any)"""
        xp = namespace([rows])
        x = rows - self.center
        squares = xp.nansum(x * x, axis=1) if self.masked else xp.einsum("nd,nd->n", x, x)
        squared = squares[:, None] - 2 * scores
        return xp.sqrt(xp.maximum(squared, 0) * _share_observed(rows, self.masked))

    @staticmethod
    def between(gaps):
        """|x - w| of given differences x - w: (..., d) -> (...)"""
        xp = namespace([gaps])
        return xp.sqrt(xp.nansum(gaps * gaps, axis=-1))

    @staticmethod
    def project(codebook):
        """The nearest codebook that this distance allows: any."""
        return codebook

    @staticmethod
    def prepare(X):
        """Rows as this distance wants them: any."""
        return X


class Manhattan(Euclidean):
    """sum_f |x_f - w_f|, feature by feature; the score is its negative."""

    def __init__(self, codebook, masked=False):
        self.masked, self.codebook = masked, codebook

    def scores(self, rows, out):
        xp = namespace([rows])
        gap = xp.empty_like(out)
        out[...] = 0
        for x, w in zip(rows.T, self.codebook.T, strict=True):
            xp.subtract(x[:, None], w, out=gap)
            xp.abs(gap, out=gap)
            if self.masked:
                gap[xp.isnan(x)] = 0
            out -= gap
        return out

    def from_scores(self, rows, scores):
        return -scores * _share_observed(rows, self.masked)

    @staticmethod
    def between(gaps):
        xp = namespace([gaps])
        return xp.nansum(xp.abs(gaps), axis=-1)


class Cosine(Euclidean):
    """1 - x.w / |x||w|: rows and prototypes are unit vectors      Kohonen 2013, sec. 3.4"""

    def __init__(self, codebook, masked=False):
        self.masked = masked
        self.table = namespace([codebook]).ascontiguousarray(_unit_rows(codebook).T)

    def scores(self, rows, out):
        return namespace([rows]).matmul(_unit_rows(rows), self.table, out=out)

    def from_scores(self, rows, scores):
        return namespace([rows]).maximum(1 - scores, 0)

    @staticmethod
    def between(gaps):
        """1 - x.w = |x - w|^2 / 2 for unit vectors"""
        return 0.5 * (gaps * gaps).sum(axis=-1)

    @staticmethod
    def project(codebook):
        """Prototypes of length 1."""
        return _unit_rows(codebook)

    @staticmethod
    def prepare(X):
        """X with rows of length 1; ValueError for a row of zeros, which has no direction."""
        zero = ~(X != 0).any(axis=1)
        if bool(zero.any()):
            raise ValueError(f"X: row {int(zero.argmax())} is all zeros: it has no cosine distance")
        return _unit_rows(X)


DISTANCES = {"euclidean": Euclidean, "manhattan": Manhattan, "cosine": Cosine}


def _unit_rows(x):
    xp = namespace([x])
    x = x / xp.maximum(xp.abs(x).max(axis=1, keepdims=True), np.finfo(x.dtype).tiny)  # no overflow
    length = xp.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / xp.where(length > 0, length, 1)


def _share_observed(rows, masked):
    """d / (features observed), for each row: a distance over half the features counts double."""
    if not masked:
        return 1.0
    observed = (~namespace([rows]).isnan(rows)).sum(axis=1, keepdims=True)
    return (rows.shape[1] / observed).astype(rows.dtype)


# ----------------------------------------------------------------------- best-matching units


def blocks(X, k, name, block_size=None):
    """Slices of rows, so many that a block of scores has a size that suits the cache."""
    size = block_size or max(1, BLOCK_ENTRIES[name] // k)
    return [slice(start, min(start + size, len(X))) for start in range(0, len(X), size)]


def best_matching_units(X, codebook, name="euclidean", *, count=1, masked=False, block_size=None):
    """The `count` nearest units of each row, and their distances: (n, count) both.

    Of units equally near the first is taken.
    """
    if name == "euclidean" and count == 1 and not masked:
        units, distances = nearest(X, codebook, block_size=block_size)
        return units[:, None], distances[:, None]
    return _by_scores(X, codebook, name, count, masked, block_size)


@accelerated(kernels.best_matching_units)
def nearest(X, codebook, *, block_size=None):
    """The unit of the least |x - w| for each row, the first of equals, and that distance: (n,)"""
    units, distances = _by_scores(X, codebook, "euclidean", 1, False, block_size)
    return units[:, 0], distances[:, 0]


def _by_scores(X, codebook, name, count, masked, block_size):
    xp, k = namespace([X]), len(codebook)
    distance = DISTANCES[name](codebook, masked)
    units = xp.empty((len(X), count), np.int64)
    found = xp.empty((len(X), count), X.dtype)
    parts = blocks(X, k, name, block_size)
    buffer = xp.empty((parts[0].stop, k), X.dtype)  # one for all blocks: fresh memory is slow
    for part in parts:
        rows = X[part]
        scores = distance.scores(rows, buffer[: len(rows)])
        line = xp.arange(len(rows))
        for c in range(count):
            best = scores.argmax(axis=1)
            units[part, c], found[part, c] = best, scores[line, best]
            if c + 1 < count:
                scores[line, best] = -np.inf
    return units, distance.from_scores(X, found)


def distances_to_units(X, codebook, name="euclidean", *, masked=False):
    """(n, k) distances. In float64 within: |x|^2 - 2 score loses digits where x is near w."""
    xp = namespace([X])
    distance = DISTANCES[name](codebook.astype(np.float64), masked)
    out = xp.empty((len(X), len(codebook)), X.dtype)
    for part in blocks(X, len(codebook), name):
        rows = X[part].astype(np.float64)
        scores = distance.scores(rows, xp.empty(out[part].shape))
        out[part] = distance.from_scores(rows, scores)
    return out


# ------------------------------------------------------------------------------- batch rule


@accelerated(kernels.unit_sums)
def unit_sums(values, weight, units, *, k):
    """For each unit the weighted sum of its rows' values, in float64: (n, m) -> (k, m)"""
    xp = namespace([values])
    columns = (column if weight is None else column * weight for column in values.T)
    return xp.stack([xp.bincount(units, column, k) for column in columns], axis=1)


def batch_step(X, weight, codebook, grid, neighborhood, radius, *, name, rate=1.0, masked=False,
               block_size=None):  # fmt: skip
    """One step of the batch rule; returns the codebook and the distances that it started from.

        w_i = sum_j h_ij s_j / sum_j h_ij n_j      s_j, n_j: sum and number of the rows of unit j

    Kohonen 1990; Cheng 1997; Mulier & Cherkassky 1995. At a rate < 1 a unit goes the part
    1 - (1 - rate)^m of the way, m = sum_j h_ij n_j: as far as m single steps of that rate. A unit
    that no row reaches stays.
    """
    xp, k = namespace([X]), len(codebook)
    units, distances = best_matching_units(X, codebook, name, masked=masked, block_size=block_size)
    units = units[:, 0]
    if masked:
        observed = ~xp.isnan(X)
        sums = unit_sums(xp.where(observed, X, 0), weight, units, k=k)
        counts = unit_sums(observed.astype(X.dtype), weight, units, k=k)
    else:
        sums = unit_sums(X, weight, units, k=k)
        counts = xp.bincount(units, weight, k).astype(np.float64)[:, None]
    smoothed = smooth(grid, xp.concatenate([sums, counts], axis=1), neighborhood, radius)
    total = smoothed[:, sums.shape[1] :]  # (k, d) or (k, 1)
    reached = total > 1e-200  # below it the quotient of two subnormal numbers would be noise
    mean = smoothed[:, : sums.shape[1]] / xp.where(reached, total, 1)
    part = 1.0 if rate == 1 else 1 - (1 - rate) ** total
    moved = xp.where(reached, codebook + part * (mean - codebook), codebook)
    return DISTANCES[name].project(moved).astype(X.dtype), distances[:, 0]


# -------------------------------------------------------------------------- sequential rule


def sequential_pass(X, weight, codebook, grid, neighborhood, schedule, order, *, name):
    """Rows one at a time; returns the codebook and each row's distance when its turn came.

        w_i <- w_i + a(t) h(i, c(x), r(t)) (x - w_i)      c(x): the best-matching unit of x

    Kohonen 1982. schedule(step) -> radius, rate. A row of weight m moves a unit as m single rows
    in succession would, the part 1 - (1 - a h)^m of the way; an unobserved feature moves none.
    """
    xp = namespace([X])
    distance = DISTANCES[name]
    windows = grid.windows(xp.asarray(grid.tables()))
    codebook, distances = xp.array(codebook, dtype=np.float64), []
    for step, i in enumerate(order):
        radius, rate = schedule(step)
        gaps = X[i] - codebook
        d = distance.between(gaps)
        winner = int(d.argmin())
        distances.append(d[winner])
        row, column = divmod(winner, grid.columns)
        around = windows[row % grid.parities, grid.rows - 1 - row, grid.columns - 1 - column]
        part = rate * neighborhood(around, radius).reshape(-1, 1)
        if weight is not None:
            part = 1 - xp.maximum(1 - part, 0) ** weight[i]
        codebook += xp.nan_to_num(part * gaps, copy=False)
        if name == "cosine":
            codebook = distance.project(codebook)
    return codebook.astype(X.dtype), xp.stack(distances)


# --------------------------------------------------------------------------- first codebooks


def pca_plane(X, weight, grid, rng):
    """The grid laid over the plane of the two main axes of the data, one deviation each way.

        w_i = mean + a_i sqrt(l_1) v_1 + b_i sqrt(l_2) v_2      a, b in [-1, 1]

    The longer side of the map goes with the longer axis. An eigenvector's sign is free: its
    largest entry is made positive.      Kohonen 2013, sec. 4.4
    """
    xp = namespace([X])
    share = xp.ones(len(X)) if weight is None else weight
    share = (share / share.sum())[:, None]
    observed = ~xp.isnan(X)
    filled = xp.where(observed, X, 0).astype(np.float64)
    mean = (share * filled).sum(axis=0) / xp.maximum((share * observed).sum(axis=0), 1e-300)
    centered = xp.where(observed, X - mean, 0) * xp.sqrt(share)
    axes = _principal_axes(centered)
    spread = grid.positions - grid.positions.min(axis=0)
    spread = 2 * spread / np.maximum(spread.max(axis=0), 1e-12) - (spread.max(axis=0) > 0)
    if grid.rows > grid.columns:
        spread = spread[:, ::-1]
    return mean + xp.asarray(np.ascontiguousarray(spread[:, : len(axes)])) @ axes


def _principal_axes(centered):
    """sqrt(l_j) v_j of the two greatest eigenvalues of C^T C, as rows      (C C^T if smaller)"""
    xp = namespace([centered])
    wide = centered.shape[1] > centered.shape[0]
    values, vectors = xp.linalg.eigh(centered @ centered.T if wide else centered.T @ centered)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    if wide:  # C^T u has the length sqrt(l) already
        axes = (centered.T @ vectors).T
    else:
        axes = (vectors * xp.sqrt(xp.maximum(values, 0))).T
    largest = xp.take_along_axis(axes, xp.abs(axes).argmax(axis=1)[:, None], axis=1)
    return xp.where(largest < 0, -axes, axes)


def samples(X, weight, grid, rng):
    """Rows of X drawn at random, without repetition if there are enough; of no NaN a mean."""
    xp = namespace([X])
    possible = np.arange(len(X))
    if weight is not None:
        possible = possible[np.asarray((weight > 0).tolist())]
    rows = rng.choice(possible, grid.size, replace=len(possible) < grid.size)
    return _filled(X[xp.asarray(rows)], X)


def uniform(X, weight, grid, rng):
    """Uniform numbers between the smallest and the greatest value of each feature."""
    xp = namespace([X])
    low, high = xp.nanmin(X, axis=0), xp.nanmax(X, axis=0)
    return low + xp.asarray(rng.random((grid.size, X.shape[1]))) * (high - low)


def _filled(rows, X):
    xp = namespace([X])
    return xp.where(xp.isnan(rows), xp.nanmean(X, axis=0), rows)


STARTS = {"pca": pca_plane, "samples": samples, "random": uniform}
