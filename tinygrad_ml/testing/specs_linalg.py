"""What is known of linear algebra. Complex step goes through numpy's complex solvers."""

# fmt: off  (tables, aligned by hand)
import numpy as np
import scipy.linalg

from .. import linalg
from ..autograd import Value
from .registry import Subgradient, declare
from .specs_arrays import options, shaped
from .strategies import Domain

SMALL = Domain(-1, 1)
PLAIN = {"domain": SMALL, "flavours": ("plain",)}
LOOSE = 10_000  # condition numbers up to some hundreds, squared by the rules


SCALES = (1, 1, 1, 1e3, 1e-3)  # of a whole matrix


def sparse(draw, shape):
    """A matrix some of whose entries are exactly 0."""
    a = draw.array(shape, SMALL, flavours=("plain",))
    return np.where(draw.rng.random(shape) < draw.pick([0, 0.3]), 0, a) if a.shape[-1] > 1 else a


def square(*more, shapes=((3, 3), (2, 2, 2), (1, 1)), scales=SCALES):
    """Well-conditioned square matrices, and arrays that go with them."""

    def inputs(draw):
        a = sparse(draw, draw.pick(shapes))
        a = (a + 2 * np.eye(a.shape[-1])) * draw.pick(scales)
        return (a, *(sparse(draw, s(a.shape)) * draw.pick(scales) for s in more))

    return inputs


def symmetric(draw, scales=SCALES):
    """Positive definite, with eigenvalues well apart."""
    a = sparse(draw, draw.pick([(3, 3), (2, 2, 2), (1, 1)]))
    apart = np.diag(2.0 + 1.5 * np.arange(a.shape[-1]))
    return ((np.tril(a) + np.tril(a).swapaxes(-1, -2)) / 4 + apart) * draw.pick(scales),


def tall(*shapes, zeros=True):
    """Matrices of full rank with singular values apart."""

    def inputs(draw):
        shape = draw.pick(shapes)
        a = (sparse(draw, shape) if zeros else draw.array(shape, **PLAIN)) / 4
        return (a + np.eye(*a.shape[-2:]) * (1.0 + np.arange(a.shape[-1]))) * draw.pick(SCALES),

    return inputs


def _sym(a):
    return (a + a.swapaxes(-1, -2)) / 2


def _signed(f, axes):
    """Unchanged when vectors change their sign: in each the greatest entry is made positive.

    axes: along which the vectors lie, for each of f's results that holds vectors (else None). Their
    squares would not do: of an entry that is 0, LAPACK gives a rounding of the whole vector.
    """

    def signed(a):
        return tuple(p if axis is None else p * _sign(p, axis) for p, axis in zip(f(a), axes, strict=True))

    return signed


def _sign(p, axis):
    p = p.data if isinstance(p, Value) else p
    greatest = np.abs(p).argmax(axis=axis, keepdims=True)
    return np.sign(np.take_along_axis(p, greatest, axis))


declare(linalg.inv, square(), np.linalg.inv, analytic=True, rounding=LOOSE)
declare(
    linalg.solve, square(lambda s: (*s[:-1], 2)), np.linalg.solve, analytic=True, rounding=LOOSE
)
declare(lambda a, b: linalg.solve(a, b), square(lambda s: s[-1:], shapes=((3, 3),)), np.linalg.solve,
        name="linalg.solve (vector)", analytic=True, rounding=LOOSE)
declare(linalg.pinv, tall((3, 2), (2, 3), (2, 3, 2)), np.linalg.pinv, rounding=LOOSE)
declare(lambda a, b: linalg.lstsq(a, b)[0], lambda draw: (*tall((4, 2))(draw),
        draw.array((4,), SMALL)), lambda a, b: np.linalg.pinv(a) @ b,
        name="linalg.lstsq", rounding=LOOSE)
declare(linalg.det, square(), np.linalg.det, analytic=True, rounding=LOOSE, subgradients=(
    Subgradient("det of a singular matrix", ([[1.0, 0.0], [0.0, 0.0]],), ([[0.0, 0.0], [0.0, 1.0]],),
                says="the cofactors, as anywhere"),))
declare(linalg.cofactors, square(), lambda a: np.linalg.det(a)[..., None, None]
        * np.linalg.inv(a).swapaxes(-1, -2), analytic=True, rounding=LOOSE)
declare(linalg.cofactors_jvp, square(lambda s: s, shapes=((3, 3), (2, 2))), rounding=LOOSE)
declare(lambda a: linalg.slogdet(a)[1], square(), lambda a: np.log(np.linalg.det(a)),
        name="linalg.slogdet", analytic=True, rounding=LOOSE)


def of_symmetric(f):
    """f of (A + A^T) / 2, whose gradient its rule is: f itself reads one triangle."""
    return lambda a, **options: f(_sym(a), **options)


declare(of_symmetric(linalg.cholesky), options(
        lambda draw: symmetric(draw, scales=(1, 1, 1e6)), {}, {"upper": True}),  # L is its root
        lambda a, *, upper=False: np.linalg.cholesky(_sym(a), upper=upper),
        name="linalg.cholesky", rounding=LOOSE)
declare(_signed(of_symmetric(linalg.eigh), (None, -2)), symmetric,
        _signed(of_symmetric(np.linalg.eigh), (None, -2)), name="linalg.eigh", rounding=LOOSE)
declare(of_symmetric(linalg.eigvalsh), symmetric, of_symmetric(np.linalg.eigvalsh),
        name="linalg.eigvalsh", rounding=LOOSE)
for name in ("svd", "thin_svd"):
    declare(_signed(getattr(linalg, name), (-2, None, -1)), tall((3, 3), (2, 3, 2), (2, 3)),
            _signed(lambda a: np.linalg.svd(a, full_matrices=False), (-2, None, -1)),
            name=f"linalg.{name}", rounding=LOOSE)
declare(linalg.svdvals, tall((3, 3), (3, 2), (2, 3)), np.linalg.svdvals, rounding=LOOSE)
# Householder's signs jump where all below the diagonal is exactly 0
declare(linalg.qr, tall((3, 3), (3, 2), (2, 3), zeros=False), lambda a: tuple(np.linalg.qr(a)), rounding=LOOSE)
declare(linalg.thin_qr, tall((3, 3), (3, 2), zeros=False), lambda a: tuple(np.linalg.qr(a)), rounding=LOOSE)
declare(linalg.euclidean_norm, options(shaped((2, 3), domain=Domain(-3, 3, (), (1e-200, 1e200)),
        flavours=("plain", "scaled")), {}, {"axis": 1}, {"axis": (0, 1), "keepdims": True}),
        lambda x, *, axis=None, keepdims=False: np.sqrt((x * x).sum(axis=axis, keepdims=keepdims))
        if 1e-100 < abs(x).max() < 1e100 else 1e200 * np.sqrt(((x / 1e200) ** 2).sum(
            axis=axis, keepdims=keepdims)) if abs(x).max() > 1 else 1e-200 * np.sqrt(
            ((x * 1e200) ** 2).sum(axis=axis, keepdims=keepdims)), subgradients=(
    Subgradient("norm of 0", ([0.0, 0.0],), ([0.0, 0.0],), says="0"),))
declare(linalg.p_norm, options(shaped((2, 3), domain=Domain(-1, 1, (0.0,), (1e3,))), {"p": 3},
        {"p": 4.5, "axis": 1}),
        lambda x, *, p, axis=None: (abs(x) ** p).sum(axis=axis) ** (1 / p))
declare(linalg.norm, options(shaped((2, 3), **PLAIN), {}, {"axis": 0}, {"ord": 1, "axis": 1},
        {"ord": np.inf, "axis": 0}, {"ord": "nuc"}, {"ord": 2}), np.linalg.norm, rounding=LOOSE)
declare(linalg.vector_norm, options(shaped((2, 3), **PLAIN), {}, {"axis": 1}, {"ord": 3}, {"ord": 1}),
        np.linalg.vector_norm)
declare(linalg.matrix_norm, options(shaped((2, 3), **PLAIN), {}, {"ord": "nuc"}, {"ord": 1}, {"ord": 2}),
        np.linalg.matrix_norm, rounding=LOOSE)
declare(linalg.cond, options(tall((3, 3)), {}, {"p": "fro"}), np.linalg.cond, rounding=LOOSE)
declare(linalg.matrix_power, lambda draw: (*square()(draw), draw.pick([2, 0, 1, 5, -2])),
        np.linalg.matrix_power, analytic=True, rounding=LOOSE)
declare(lambda *xs: linalg.multi_dot(xs), shaped((2, 3), (3, 1), (1, 4), domain=SMALL),
        lambda *xs: np.linalg.multi_dot(xs), name="linalg.multi_dot", analytic=True)
declare(linalg.cross, shaped((2, 3), (2, 3), domain=SMALL), np.linalg.cross, analytic=True)
declare(linalg.expm, square(shapes=((3, 3), (2, 2, 2)), scales=(1,)), scipy.linalg.expm, rounding=LOOSE)
