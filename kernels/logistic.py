"""Sums over the rows of X that logistic regression needs, of estimators/likelihood.py

    gradient  sum_i w_i loss_i,  sum_i w_i loss'_i x_i^T      loss' = p - y
    product   sum_i w_i (loss''_i v x_i) x_i^T                loss'' = diag(p) - p p^T, or p (1 - p)
    hessian   sum_i w_i loss''_i (x) x_i x_i^T

z_i = theta x_i    X: (n, d)  theta, v: (k, d or d + 1), the last column the intercept if there is
one    y: (n,), 0 ... 1 for one output (k = 1), else the class's number

Bytes: X once, float32 as it is, y and w; numpy reads a block of rows twice and writes some ten
arrays of the logits' size. Of the Hessian the upper triangles of X^T diag(w loss''_ab) X are made,
for a <= b alone: k (k + 1) n d^2 / 2 operations.
Accuracy: that of float64. Each piece of X is added up by one thread, and the pieces in order: the
same bits with any number of threads.
"""

from typing import Any, NamedTuple

import numpy as np

from .native import DOUBLE, SINGLE, call, contiguous, level, runs

REGISTER = 8  # numbers of the widest register, to a whole number of which rows are padded
BLOCK = 64  # as in logistic.c
MOST = 1 << 22  # numbers in all the pieces of a Hessian


class Kernel(NamedTuple):
    """What fused.py asks of one."""

    supports: Any
    forward: Any


def rows_supports(xp, X, y, weight, theta, v=None, *, block_rows):
    """Not where rows are spread in memory: there numpy's products are as fast."""
    return hessian_supports(xp, X, y, weight, theta, block_rows=block_rows) and (
        X.strides[1] == X.itemsize
    )


def hessian_supports(xp, X, y, weight, theta, *, block_rows):
    """Not with narrow registers: there numpy's products are faster."""
    known = isinstance(X, np.ndarray) and X.dtype in (SINGLE, DOUBLE) and X.size > 0
    if not known or not runs(xp, weight, theta) or level() not in ("v3", "v4"):
        return False
    if len(theta) == 1:
        return y.dtype == theta.dtype == DOUBLE
    return y.dtype == np.int64 and theta.dtype == DOUBLE and 0 <= y.min() <= y.max() < len(theta)


def gradient_forward(xp, X, y, weight, theta, *, block_rows):
    found = sums(X, y, weight, theta, None)
    return float(found[-1]), unpadded(found, theta.shape)


def product_forward(xp, X, y, weight, theta, v, *, block_rows):
    return unpadded(sums(X, y, weight, theta, v), theta.shape)


def sums(X, y, weight, theta, v):
    """(k wide + 1,): a gradient in padded rows, and the loss behind it."""
    k, p = theta.shape
    theta, v, (y, weight) = padded(theta), padded(v), contiguous(y, weight)
    of_one, of_many = (y, None) if k == 1 else (None, y)
    rows = max(32 * k, (1 << 17) // theta.shape[1]) // REGISTER * REGISTER  # 1 MB of X
    found = np.empty((-(-len(X) // rows), theta.size + 1))
    call("logistic_sums", DOUBLE, *laid_out(X), of_one, of_many, weight, theta, v, found,
         *X.shape, p, *theta.shape, rows)  # fmt: skip
    return found.sum(axis=0)


def hessian_forward(xp, X, y, weight, theta, *, block_rows):
    k, p = theta.shape
    theta, (weight,) = padded(theta), contiguous(weight)
    wide, pairs = theta.shape[1], k * (k + 1) // 2
    pieces = min(32, max(MOST // (pairs * wide * wide), 1))
    rows = max(512, -(-len(X) // (pieces * BLOCK)) * BLOCK)
    found = np.empty((-(-len(X) // rows), pairs, wide, wide))
    call("logistic_hessian", DOUBLE, *laid_out(X), weight, theta, found,
         *X.shape, p, *theta.shape, rows)  # fmt: skip
    upper = np.triu(found.sum(axis=0)[:, :p, :p])
    H = np.empty((k, p, k, p))
    for a, b, part in zip(*np.triu_indices(k), upper, strict=True):
        H[a, :, b] = H[b, :, a] = part + np.triu(part, 1).T
    return H.reshape(k * p, k * p)


def padded(theta):
    """theta (k, p) in C, with zeros behind its rows."""
    if theta is None:
        return None
    k, p = theta.shape
    full = np.zeros((k, -(-p // REGISTER) * REGISTER))
    full[:, :p] = theta
    return full


def unpadded(found, shape):
    """The rows of `sums` without what they were padded with, nor the loss."""
    return found[:-1].reshape(shape[0], -1)[:, : shape[1]]


def laid_out(X):
    """X, whether it is float32, and the entries to the next row and the next column."""
    return X, int(X.dtype == SINGLE), *(s // X.itemsize for s in X.strides)


gradient = Kernel(rows_supports, gradient_forward)
product = Kernel(rows_supports, product_forward)
hessian = Kernel(hessian_supports, hessian_forward)
