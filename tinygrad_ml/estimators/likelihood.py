"""The logistic likelihood: stated once in Tensors, summed over blocks of rows that fit the cache.

    k outputs: 1 for two classes (y is 0 or 1), K for more (y is 0 ... K - 1)
    z = theta x, the logits      z: (k, n)  theta: (k, p)  x: (n, p), the last of p is the intercept
    objective(theta) = sum_i w_i loss(z_i, y_i) / sum_i w_i + sum_j l2_j theta_j^2 / 2

The engine differentiates the loss by the logits, twice; the rest of the chain is the linear map,
so gradient = loss' X and Hessian = X^T loss'' X. On the CPU one pass over the rows makes each of
them (kernels/logistic.c); where that cannot be, the fused twins compute loss, loss' and loss'' of a
block in one go from one exponential; `tg.use_kernels(False)` runs the engine instead.
"""

import math

import numpy as np

from .. import kernels, ops
from ..autograd import grad
from ..backend import namespace
from ..functional import binary_cross_entropy_with_logits
from ..fused import accelerated
from ..tensor import Tensor
from ..transforms import hvp
from .validation import is_sparse

EPS = float(np.finfo(np.float64).eps)
CPU_BLOCK, GPU_BLOCK = 2 << 20, 64 << 20  # bytes of X that are looked at together
SAMPLE = 50_000  # rows from which column scales are estimated


# -------------------------------------------------------------------- the model, in three lines


def loss_of_logits(z, y, weight):
    """sum_i w_i [y_i log(1 + e^-z_i) + (1 - y_i) log(1 + e^z_i)], in which nothing cancels, or
    sum_i w_i [-log softmax(z_i)[y_i]]      z: (k, n)
    """
    if z.shape[0] == 1:
        return (weight * binary_cross_entropy_with_logits(z[0], y, reduction="none")).sum()
    return (weight * ops.nll(z.transpose(1, 0), targets=y)).sum()


# ------------------------------------------------------------- its derivatives, fused and derived


class FusedGradient:
    """Loss and loss' from one exponential a logit."""

    @staticmethod
    def supports(xp, z, y, weight):
        return z.dtype == np.float64

    @staticmethod
    def forward(xp, z, y, weight):
        if z.shape[0] == 1:
            z = z[0]
            e = xp.exp(-xp.abs(z))  # at most 1, so nothing overflows
            loss = weight @ (xp.maximum(z, 0) - y * z + xp.log1p(e))
            residual = xp.where(z >= 0, 1, e) / (1 + e) - y
            return float(loss), (weight * residual)[None]
        p, normaliser = _softmax(xp, z)
        rows = xp.arange(z.shape[1])
        loss = weight @ (normaliser - z[y, rows])
        p[y, rows] -= 1
        return float(loss), weight * p


def _softmax(xp, z):
    """softmax over the k outputs, and the log of its denominator."""
    m = z.max(axis=0)
    p = xp.exp(z - m)
    total = p.sum(axis=0)
    p /= total
    return p, m + xp.log(total)


@accelerated(FusedGradient)
def loss_and_gradient(z, y, weight):
    """(loss, d loss / d z)      z: (k, n) -> a number, (k, n)"""
    z = Tensor.leaf(z, requires_grad=True)
    loss = loss_of_logits(z, y, weight)
    return loss.item(), grad(loss, z).data


class FusedCurvature:
    """w p (1 - p), or w (diag(p) - p p^T)."""

    @staticmethod
    def supports(xp, z, y, weight):
        return z.dtype == np.float64

    @staticmethod
    def forward(xp, z, y, weight):
        if z.shape[0] == 1:
            e = xp.exp(-xp.abs(z))
            return (weight * e / (1 + e) ** 2)[None]
        p, _ = _softmax(xp, z)
        curvature = -p[:, None] * (weight * p)
        for a in range(len(p)):
            curvature[a, a] = weight * p[a] * (1 - p[a])
        return curvature


@accelerated(FusedCurvature)
def curvature_of(z, y, weight):
    """d2 loss / d z d z, one k x k matrix a sample      z: (k, n) -> (k, k, n)"""
    xp = namespace([z])
    rows = []
    for a in range(len(z)):
        unit = xp.zeros_like(z)
        unit[a] = 1  # samples do not interact: one product gives row a of every sample's matrix
        rows.append(hvp(lambda t: loss_of_logits(t, y, weight), _leaf(z), _leaf(unit)).data)
    return xp.stack(rows)


class FusedGram:
    """By symmetric products, which are half the work: S^T S with S = sqrt(w p (1 - p)) X; for
    more classes sum_a X^T diag(w p_a) X on the diagonal, less the product of the rows p_i (x) x_i.
    """

    @staticmethod
    def supports(xp, z, y, weight, X):
        return z.dtype == np.float64

    @staticmethod
    def forward(xp, z, y, weight, X):
        if len(z) == 1:
            root = xp.sqrt(FusedCurvature.forward(xp, z, y, weight)[0, 0])[:, None] * X
            return root.T @ root
        (k, n), p = z.shape, X.shape[1]
        probability, _ = _softmax(xp, z)
        rows = (xp.sqrt(weight) * probability).T[:, :, None] * X[:, None, :]
        rows = rows.reshape(n, k * p)
        H = -(rows.T @ rows)
        for a in range(k):
            root = xp.sqrt(weight * probability[a])[:, None] * X
            H[a * p : (a + 1) * p, a * p : (a + 1) * p] += root.T @ root
        return H


@accelerated(FusedGram)
def gram(z, y, weight, X):
    """sum_i (d2 loss / d z_i d z_i) (x) (x_i x_i^T)      z: (k, n)  X: (n, p) -> (k p, k p)"""
    W = curvature_of(z, y, weight)
    return namespace([X]).concatenate(
        [namespace([X]).concatenate([X.T @ (w[:, None] * X) for w in row], axis=1) for row in W]
    )


class FusedProduct:
    """The curvature times a direction, without the k x k matrices."""

    @staticmethod
    def supports(xp, z, y, weight, v):
        return z.dtype == np.float64

    @staticmethod
    def forward(xp, z, y, weight, v):
        if z.shape[0] == 1:
            return FusedCurvature.forward(xp, z, y, weight)[0] * v
        p, _ = _softmax(xp, z)
        return weight * p * (v - (p * v).sum(axis=0))


@accelerated(FusedProduct)
def curvature_times(z, y, weight, v):
    """(d2 loss / d z d z) v, sample by sample      z, v: (k, n) -> (k, n)"""
    return hvp(lambda t: loss_of_logits(t, y, weight), _leaf(z), _leaf(v)).data


def _leaf(array):
    return Tensor.leaf(array)


# --------------------------------------------------------------------------- sums over the rows
#
# X: (n, d)  theta: (k, p), p = d + 1 with an intercept


@accelerated(kernels.logistic.gradient)
def summed_gradient(X, y, weight, theta, *, block_rows):
    """(loss, d loss / d theta)"""
    loss, g = 0.0, 0 * theta
    for x, labels, w in blocks(X, y, weight, block_rows):
        part, residual = loss_and_gradient(logits(theta, x), labels, w)
        loss += part
        g += by_theta(residual, x, theta)
    return loss, g


@accelerated(kernels.logistic.product)
def summed_product(X, y, weight, theta, v, *, block_rows):
    """(d2 loss / d theta d theta) v: (k, p)"""
    product = 0 * theta
    for x, labels, w in blocks(X, y, weight, block_rows):
        bent = curvature_times(logits(theta, x), labels, w, logits(v, x))
        product += by_theta(bent, x, theta)
    return product


@accelerated(kernels.logistic.hessian)
def summed_hessian(X, y, weight, theta, *, block_rows):
    """d2 loss / d theta d theta, one p x p block for each pair of outputs: (k p, k p)"""
    H = namespace([theta]).zeros((theta.size, theta.size))
    for x, labels, w in blocks(X, y, weight, block_rows):
        H += gram(logits(theta, x), labels, w, with_ones(x, theta))
    return H


def blocks(X, y, weight, block_rows):
    """(X, y, weight) of one block of rows after another; X in float64."""
    for start in range(0, X.shape[0], block_rows):
        rows = slice(start, start + block_rows)
        yield X[rows].astype(np.float64, copy=False), y[rows], weight[rows]


def logits(theta, X):
    """theta x for each row of X: (k, n)"""
    d = X.shape[1]
    z = theta[:, :d] @ X.T
    if theta.shape[1] > d:
        z += theta[:, d:]
    return z


def by_theta(residual, X, theta):
    """sum_i residual_i x_i^T, of theta's shape      residual: (k, n)"""
    d = X.shape[1]
    g = namespace([theta]).empty(theta.shape)
    g[:, :d] = residual @ X
    if theta.shape[1] > d:
        g[:, d] = residual.sum(axis=1)
    return g


def with_ones(X, theta):
    """A block of rows, dense, with a column of ones where theta has an intercept."""
    X = X.toarray() if is_sparse(X) else X
    if theta.shape[1] == X.shape[1]:
        return X
    full = namespace([theta]).empty((len(X), theta.shape[1]))
    full[:, :-1] = X
    full[:, -1] = 1
    return full


# ---------------------------------------------------------------------------------- objective


class Objective:
    """Mean loss plus a quadratic penalty, as a function of the flat vector theta (k p,).

    X          (n, d), dense on either device, or scipy CSR; never copied
    y          (n,), 0 or 1 (or between) for k = 1, else the class's number
    weight     (n,), not all zero
    intercept  whether theta's rows have one more entry than X has columns
    l2         the penalty's strength for each entry of a row of X; the intercept has none
    """

    noise = 16 * EPS  # of its value, relative

    def __init__(self, X, y, weight, outputs, intercept=True, l2=0.0):
        self.X, self.y, self.intercept = X, y, intercept
        self.xp = np if is_sparse(X) else namespace([X])
        self.total_weight = float(weight.sum())
        self.weight = weight / self.total_weight
        self.samples, self.features = X.shape
        self.shape = (outputs, self.features + intercept)
        self.size = outputs * self.shape[1]
        self.l2 = self.xp.full(self.shape, float(l2))
        if intercept:
            self.l2[:, -1] = 0
        self.l2 = self.l2.reshape(-1)
        self.block_rows = self._block_rows()
        self._sizes = None

    def _block_rows(self):
        if is_sparse(self.X):
            row_bytes = max(12 * self.X.nnz // self.samples, 1)
        else:
            row_bytes = 8 * (self.features + self.shape[0])
        return max((CPU_BLOCK if self.xp is np else GPU_BLOCK) // row_bytes, 128)

    def subset(self, rows):
        """The same objective of some of the rows (a slice or indices)."""
        part = Objective.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.X, part.y, weight = self.X[rows], self.y[rows], self.weight[rows]
        part.samples = len(weight)
        part.weight = weight / weight.sum()
        part._sizes = None
        return part

    def blocks(self):
        """(X, y, weight) of one block of rows after another; X in float64."""
        return blocks(self.X, self.y, self.weight, self.block_rows)

    def logits(self, theta, X):
        """theta x for each row of X: (k, n)"""
        return logits(theta.reshape(self.shape), X)

    def with_ones(self, X):
        """A block of rows with the intercept's column of ones, dense."""
        return with_ones(X, self.l2.reshape(self.shape))

    def _summed(self, sums, theta, *v):
        """A function of the rows and of (k, p), at a flat theta."""
        of_theta = (t.reshape(self.shape) for t in (theta, *v))
        return sums(self.X, self.y, self.weight, *of_theta, block_rows=self.block_rows)

    def _penalty(self, theta):
        return 0.5 * float(self.l2 @ (theta * theta))

    # --- value and derivatives

    def value(self, theta):
        """The objective."""
        return self.gradient(theta)[0]

    def gradient(self, theta):
        """(value, gradient), in one pass over the rows."""
        loss, g = self._summed(summed_gradient, theta)
        return self._penalty(theta) + loss, self.l2 * theta + g.reshape(-1)

    def hessian(self, theta):
        """X^T W X + diag(l2), one p x p block for each pair of outputs."""
        H = self._summed(summed_hessian, theta)
        diagonal = self.xp.arange(self.size)
        H[diagonal, diagonal] += self.l2
        return H

    def hessian_product(self, theta):
        """A function v -> H v at theta, by the curvature of the logits alone."""
        return lambda v: self.l2 * v + self._summed(summed_product, theta, v).reshape(-1)

    # --- what solvers ask about the data

    def column_moments(self):
        """(mean, standard deviation, root mean square) of each column, the intercept's 0, 1, 1.

        From every row up to SAMPLE of them, from evenly spaced ones beyond: they set scales only.
        """
        if self._sizes is None:
            stride = -(-self.samples // SAMPLE)
            X, weight = self.X[::stride], self.weight[::stride]
            weight = weight / weight.sum() if float(weight.sum()) > 0 else weight
            mean = weight @ X
            square = weight @ (X.multiply(X) if is_sparse(X) else X.astype(np.float64) ** 2)
            variance = self.xp.maximum(square - mean * mean, 0)
            exact = variance > 1e-12 * square  # what is left of a constant column is rounding
            std = self.xp.where(exact, self.xp.sqrt(variance), 0)
            rms = self.xp.sqrt(square)
            if self.intercept:
                one = self.xp.ones(1)
                mean, std, rms = (
                    self.xp.concatenate([a, b])
                    for a, b in ((mean, 0 * one), (std, one), (rms, one))
                )
            self._sizes = mean, std, rms
        return self._sizes

    def hessian_trace_bound(self):
        """At least the Hessian's greatest eigenvalue, at any theta: a loss bends by 1/4 at most."""
        _, _, rms = self.column_moments()
        bend = 0.25 if self.shape[0] == 1 else 0.5
        return bend * float((rms * rms).sum()) + float(self.l2.max())

    def rounding(self, theta):
        """How large rounding alone can make a gradient entry: about eps |x| (1 + |x| |theta|)."""
        _, _, rms = self.column_moments()
        reach = 1 + float((rms * self.xp.abs(theta.reshape(self.shape))).sum(axis=1).max())
        level = 4 * EPS * rms * reach
        return self.xp.tile(level, self.shape[0]) + 4 * EPS * self.l2 * self.xp.abs(theta)

    def anchored(self, H):
        """H with the direction filled in along which equal changes of all outputs cancel.

        Softmax does not see it, nor does the gradient while theta's columns sum to zero, so
        the Newton step stays the same and H can be factorised.
        """
        k, p = self.shape
        if k == 1:
            return H
        H = H.reshape(k, p, k, p)
        mean = sum(H[a, :, a] for a in range(k)) / k
        return (H + mean[None, :, None] / k).reshape(self.size, self.size)

    def centred(self, theta, intercept_only=False):
        """theta with the mean over outputs taken out, which no probability notices."""
        theta = theta.reshape(self.shape).copy()
        if self.shape[0] > 1:
            which = slice(self.features if intercept_only else 0, None)
            theta[:, which] -= theta[:, which].mean(axis=0)
        return theta.reshape(-1)

    def margins(self, theta):
        """(least, greatest) of z_true - z_other over the samples: (> 0, ...) separates them all."""
        low, high = math.inf, -math.inf
        for X, y, weight in self.blocks():
            z = self.logits(theta, X)
            if len(z) == 1:
                margin = self.xp.where(y > 0.5, z[0], -z[0])
            else:
                rows = self.xp.arange(z.shape[1])
                true = z[y, rows].copy()
                z[y, rows] = -math.inf
                margin = true - z.max(axis=0)
            margin = margin[weight > 0]
            if margin.size:
                low, high = min(low, float(margin.min())), max(high, float(margin.max()))
        return low, high


class FirthObjective(Objective):
    """Mean loss minus log det(X^T W X) / (2 n): Jeffreys' prior, finite for separable data.

    Firth 1993; Heinze & Schemper 2002. Two classes. W is the curvature, h the leverages
    w p (1 - p) x^T (X^T W X)^-1 x, and the score sum_i [w_i (y_i - p_i) + h_i (1/2 - p_i)] x_i.
    """

    noise = 1e-11  # a determinant is less exact than a sum

    def gradient(self, theta):
        loss, g = super().gradient(theta)
        information = self.total_weight * super().hessian(theta)
        sign, logdet = self.xp.linalg.slogdet(information)
        if not float(sign) > 0:
            return math.inf, g
        loss -= 0.5 * float(logdet) / self.total_weight
        covariance = self.xp.linalg.inv(information)
        for X, y, weight in self.blocks():
            z = self.logits(theta, X)
            W = curvature_of(z, y, weight)[0, 0] * self.total_weight
            full = self.with_ones(X)
            leverage = W * ((full @ covariance) * full).sum(axis=1)
            half_minus_p = -0.5 * self.xp.tanh(z[0] / 2)
            slope = by_theta((leverage * half_minus_p)[None], X, theta[None])
            g -= slope.reshape(-1) / self.total_weight
        return loss, g


# ------------------------------------------------------------------------ other coordinates


class Standardised:
    """An objective in coordinates in which its columns are centred and of like curvature.

    theta_j = u_j / s_j,  theta_intercept = (u_intercept - sum_j mean_j u_j / s_j) ...: a linear
    change of variables, so minimisers map to minimisers, penalty included; X stays as it is
    (and sparse). For the solvers that are not themselves indifferent to scale.
    """

    def __init__(self, objective):
        self.of, self.xp, self.size, self.shape = (
            objective, objective.xp, objective.size, objective.shape
        )  # fmt: skip
        mean, std, _ = objective.column_moments()
        k, xp = self.shape[0], self.xp
        spread = 0.25 if k == 1 else (1 - 1 / k) / k  # the curvature at theta = 0
        scale = xp.sqrt(spread * std**2 + objective.l2.reshape(self.shape)[0])
        self.noise = objective.noise
        self.scale = xp.where(scale > 0, scale, 1)
        self.mean = mean if objective.intercept else xp.zeros_like(mean)

    def outer(self, u):
        """theta of u."""
        theta = u.reshape(self.shape) / self.scale
        if self.of.intercept:
            theta[:, -1] -= theta @ self.mean
        return theta.reshape(-1)

    def inner(self, theta):
        """u of theta."""
        theta = theta.reshape(self.shape).copy()
        if self.of.intercept:
            theta[:, -1] += theta @ self.mean
        return (theta * self.scale).reshape(-1)

    def pull(self, g):
        """The gradient by u of that by theta."""
        g = g.reshape(self.shape)
        if self.of.intercept:
            g = g - g[:, -1:] * self.mean
        return (g / self.scale).reshape(-1)

    def push(self, g):
        """The gradient by theta of that by u."""
        g = g.reshape(self.shape) * self.scale
        if self.of.intercept:
            g = g + g[:, -1:] * self.mean
        return g.reshape(-1)

    def value(self, u):
        return self.of.value(self.outer(u))

    def gradient(self, u):
        value, g = self.of.gradient(self.outer(u))
        return value, self.pull(g)

    def hessian_product(self, u):
        times = self.of.hessian_product(self.outer(u))
        return lambda v: self.pull(times(self.outer(v)))

    def subset(self, rows):
        part = Standardised.__new__(Standardised)
        part.__dict__.update(self.__dict__)
        part.of = self.of.subset(rows)
        return part
