"""tg.linalg against torch.linalg: values, gradients, and torch's double backward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import linalg

torch = pytest.importorskip("torch")

TOLERANCE = 1e-9  # float64; second derivatives divide twice by gaps of 0.3 or more


def matrix(rng, m, n, batch):
    """Singular values between 1 and 3, no two closer than 0.3."""
    u, _, vt = np.linalg.svd(rng.normal(size=(*batch, m, n)), full_matrices=False)
    return u * (1 + 0.5 * np.arange(min(m, n)) + rng.uniform(0, 0.2, min(m, n))) @ vt


def square(rng, batch):
    return matrix(rng, 4, 4, batch)


def tall(rng, batch):
    return matrix(rng, 5, 3, batch)


def wide(rng, batch):
    return matrix(rng, 3, 5, batch)


def definite(rng, batch):
    q, _ = np.linalg.qr(rng.normal(size=(*batch, 4, 4)))
    return symmetric(q * (1 + 0.5 * np.arange(4)) @ q.swapaxes(-1, -2))


def symmetric(x):
    return (x + x.swapaxes(-1, -2)) / 2


def columns_times(x, y):
    """x_ik y_jk: the columns' signs, which are LAPACK's free choice, cancel"""
    return x[..., :, None, :] * y[..., None, :, :]


def eigh(la, a):
    w, v = la.eigh(a)
    return w, columns_times(v, v)


def svd(la, a):
    u, s, vt = la.svd(a, full_matrices=False)
    return columns_times(u, u), s, columns_times(u, vt.swapaxes(-1, -2))


def qr(la, a):
    q, r = la.qr(a)
    return columns_times(q, q), columns_times(q, r.swapaxes(-1, -2))


def matrix_exp(la, a):
    return la.expm(a) if la is linalg else la.matrix_exp(a)


CASES = {
    "inv": (lambda la, a: la.inv(a), square),
    "det": (lambda la, a: la.det(a), square),
    "slogdet": (lambda la, a: la.slogdet(a)[1], square),
    "solve": (lambda la, a: la.solve(a, a[..., :2] ** 2), square),
    "pinv, tall": (lambda la, a: la.pinv(a), tall),
    "pinv, wide": (lambda la, a: la.pinv(a), wide),
    "lstsq": (lambda la, a: la.lstsq(a, a[..., :2] ** 2)[0], tall),
    "cholesky": (lambda la, a: la.cholesky(a), definite),
    "eigh": (eigh, definite),
    "eigvalsh": (lambda la, a: la.eigvalsh(a), definite),
    "svd, tall": (svd, tall),
    "svd, wide": (svd, wide),
    "svd, square": (svd, square),
    "svdvals": (lambda la, a: la.svdvals(a), wide),
    "qr, tall": (qr, tall),
    "qr, square": (qr, square),
    "qr, wide": (qr, wide),
    "matrix_power": (lambda la, a: la.matrix_power(a, 3), square),
    "matrix exponential": (matrix_exp, square),
    "norm 3": (lambda la, a: la.vector_norm(a, ord=3), tall),
    "norm nuc": (lambda la, a: la.matrix_norm(a, ord="nuc"), tall),
    "norm 2": (lambda la, a: la.matrix_norm(a, ord=2), wide),
    "cond": (lambda la, a: la.cond(a), tall),
}


def outcome(la, f, a, gradients, weigh):
    """The outputs, the gradient of a function of them, and that of a function of the gradient."""
    y = f(la, a)
    y = y if isinstance(y, tuple) else (y,)
    total = sum((z * weigh(z, 0)).sum() + (z * z * weigh(z, 1)).sum() for z in y)
    (g,) = gradients(total, a, True)
    (h,) = gradients((g * weigh(g, 2)).sum(), a, False)
    return [*y, g, h]


def in_tinygrad_ml(f, a, weights):
    return outcome(
        linalg,
        f,
        tg.tensor(a, requires_grad=True),
        lambda y, x, create: tg.grad(y, [x], create_graph=create),
        weights,
    )


def in_torch(f, a, weights):
    return outcome(
        torch.linalg,
        f,
        torch.tensor(a, requires_grad=True),
        lambda y, x, create: torch.autograd.grad(y, [x], create_graph=create),
        lambda z, k: torch.tensor(weights(z, k)),
    )


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 2**32 - 1), batch=st.sampled_from([(), (2,)]))
def test_value_gradient_and_double_backward(name, seed, batch):
    f, inputs = CASES[name]
    a = inputs(np.random.default_rng(seed), batch)

    def weights(z, k):
        w = np.random.default_rng([seed, k]).normal(size=tuple(z.shape))
        return symmetric(w) if inputs is definite and k == 2 else w  # along symmetric matrices

    ours, theirs = in_tinygrad_ml(f, a, weights), in_torch(f, a, weights)
    for i, (y, z) in enumerate(zip(ours, theirs, strict=True)):
        y, z = y.numpy(), z.detach().numpy()
        if inputs is definite and i >= len(ours) - 2:  # torch may share it otherwise
            y, z = symmetric(y), symmetric(z)
        np.testing.assert_allclose(y, z, rtol=TOLERANCE, atol=TOLERANCE * (1 + np.abs(z).max()))
