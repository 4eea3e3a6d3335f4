"""What is known of numpy's functions in arrays.py."""

# fmt: off  (tables, aligned by hand)
import numpy as np
import scipy.special

from .. import arrays
from .registry import Subgradient, declare
from .specs_ops import INDICES, _clip_kinks, _runner_up, along, binary, logits, reduction, unary
from .strategies import MILD, POSITIVE, REAL, Domain

PLAIN = {"flavours": ("plain", "special")}  # no ties


def shaped(*shapes, domain=MILD, **array):
    """Arrays of these shapes."""
    return lambda draw: tuple(draw.array(s, domain, **array) for s in shapes)


def options(inputs, *choices):
    """The same inputs with one of these dicts of options."""
    return lambda draw: (inputs(draw), draw.pick(choices))


def either(*inputs):
    """One of several ways to make inputs."""
    return lambda draw: draw.pick(inputs)(draw)


def listed(function):
    """A function of a list of arrays, as one of several arrays."""
    return lambda *xs, **options: function(xs, **options)


def declare_list(function, inputs, reference, **fields):
    """Enter a function of a list of arrays."""
    name = f"arrays.{function.__name__}"
    declare(listed(function), inputs, listed(reference), name=name, **fields)


def _as_numpy(name, inputs, **fields):
    declare(getattr(arrays, name), inputs, getattr(np, name), analytic=True, **fields)


# --- elementwise

_as_numpy("square", unary())
_as_numpy("positive", unary())
_as_numpy("reciprocal", unary(POSITIVE))
declare(arrays.floor_divide, binary(MILD, Domain(0.7, 2), flavours=("plain",)), np.floor_divide)
declare(arrays.deg2rad, unary(), np.deg2rad)
declare(arrays.rad2deg, unary(), np.rad2deg)
declare(arrays.logaddexp2, binary(), np.logaddexp2)
declare(arrays.sinc, unary(MILD), lambda x: np.where(x == 0, 1, np.sin(np.pi * x)
        / np.where(x == 0, 1, np.pi * x)))
declare(arrays.lerp, shaped((2, 3), (3,), (2, 1)), lambda a, b, w: a * (1 - w) + b * w,
        analytic=True)
declare(arrays.logit, unary(Domain(0.05, 0.95, (1e-30,))), scipy.special.logit)
declare(arrays.nan_to_num, unary(Domain(-3, 3, (np.inf, -np.inf, np.nan))), np.nan_to_num)
declare(arrays.clip, options(unary(), {"min": -1.0, "max": 1.0}, {"max": 0.5}),
        lambda x, *, min=None, max=None: np.clip(x, min, max), kinks=_clip_kinks)
declare(lambda x, low, high: arrays.clip(x, low, high), shaped((2, 3), (3,), (2, 1), flavours=("plain",)),
        lambda x, low, high: np.minimum(np.maximum(x, low), high), name="arrays.clip (bounds)")
declare(arrays.round, unary(MILD, flavours=("plain",)), np.round)
declare(arrays.astype, options(unary(MILD), {"dtype": "float64"}), lambda x, *, dtype: x * 1,
        analytic=True)

# --- reductions


def _gaps(extreme):
    return lambda x, *, axis=None, keepdims=False: _runner_up(x, axis, extreme)


for name in ("sum", "mean"):
    _as_numpy(name, reduction())
declare(arrays.max, reduction(), np.max, kinks=_gaps(np.max))
declare(arrays.min, reduction(), np.min, kinks=_gaps(np.min))
declare(arrays.ptp, reduction(), np.ptp, kinks=lambda x, *, axis=None, keepdims=False: [
    _runner_up(x, axis, np.max), _runner_up(x, axis, np.min)])
declare(arrays.logsumexp, logits(reduction()), scipy.special.logsumexp)


def _var(x, *, axis=None, keepdims=False):
    centred = x - np.mean(x, axis=axis, keepdims=True)
    centred = centred - np.mean(centred, axis=axis, keepdims=True)  # of x's size it was rounded
    return np.mean(centred * centred, axis=axis, keepdims=keepdims)


declare(arrays.variance, reduction(MILD), _var, analytic=True)
declare(arrays.var, reduction(MILD), _var, analytic=True)
declare(arrays.std, reduction(MILD), lambda x, **o: np.sqrt(_var(x, **o)),
        kinks=lambda x, *, axis=None, keepdims=False: np.ptp(x, axis=axis),
        subgradients=(Subgradient("std of equal entries", ([2.0, 2.0],), ([0.0, 0.0],), says="0"),),
        )
declare(arrays.prod, reduction(MILD), np.prod, analytic=True)
declare(arrays.average, lambda draw: ((draw.array((2, 3), MILD),), {}), lambda x: np.mean(x),
        analytic=True)
declare(lambda x, w: arrays.average(x, 1, w), shaped((2, 3), (3,), domain=POSITIVE),
        lambda x, w: (x * w).sum(1) / w.sum(), name="arrays.average (weights)",
        analytic=True)
_as_numpy("cumsum", along(MILD))
_as_numpy("cumprod", along(MILD))
_as_numpy("diff", options(shaped((3, 4)), {"n": 1}, {"n": 2, "axis": 0}, {"n": 3},
          {"prepend": 2.0, "append": np.ones((3, 2))}))

# --- order statistics

APART = {"flavours": ("plain",)}  # ties come with the subgradients
declare(lambda x, **o: arrays.sort(x, descending=True, **o), along(MILD, **APART),
        lambda x, axis: np.flip(np.sort(x, axis), axis), name="arrays.sort (descending)")
declare(arrays.sort, along(MILD, **APART), np.sort, subgradients=(
    Subgradient("sort of equal entries", ([2.0, 1.0, 1.0],), ([1.0, 1.0, 1.0],),
                says="each entry keeps the gradient of its (stable) place"),))
declare(lambda x, **o: arrays.topk(x, **o)[0],
        options(shaped((3, 4), **APART), {"k": 2}, {"k": 1, "axis": 0}, {"k": 0},
                {"k": 3, "largest": False}),
        lambda x, k, axis=-1, largest=True: (np.flip(np.sort(x, axis), axis) if largest
                                             else np.sort(x, axis)).take(range(k), axis),
        name="arrays.topk")
declare(arrays.quantile, options(shaped((3, 4), **APART), {"q": 0.5}, {"q": 0.3, "axis": 0},
        {"q": 1.0, "axis": (0, 1), "keepdims": True}, {"q": 0.4, "method": "midpoint"},
        {"q": np.array([0.2, 0.9]), "axis": 1, "method": "lower"}), np.quantile)
declare(arrays.median, reduction(MILD, **APART), np.median)

# --- shape

_as_numpy("ravel", unary(MILD))
declare(arrays.reshape, options(shaped((2, 6)), {"shape": (3, -1)}, {"shape": 12}),
        lambda x, shape: x.reshape(shape), analytic=True)  # np.reshape's name for it has changed
declare(arrays.transpose, options(shaped((2, 3, 4)), {}, {"axes": (1, 0, 2)}, {"axes": (-1, 0, 1)}),
        np.transpose, analytic=True)
declare(arrays.swapaxes, options(shaped((2, 3, 4)), {"axis1": 0, "axis2": -1}), np.swapaxes,
        analytic=True)
_as_numpy("moveaxis", options(shaped((2, 3, 4)), {"source": 0, "destination": -1},
          {"source": (0, 1), "destination": (2, 0)}))
_as_numpy("expand_dims", options(shaped((2, 3)), {"axis": 0}, {"axis": (0, -1)}))
_as_numpy("squeeze", options(shaped((2, 1, 3, 1)), {}, {"axis": 1}, {"axis": (1, -1)}))
_as_numpy("atleast_1d", unary(MILD))
_as_numpy("atleast_2d", unary(MILD))
_as_numpy("flip", options(shaped((2, 3)), {}, {"axis": 0}, {"axis": (0, 1)}))
_as_numpy("rot90", options(shaped((2, 3)), {"k": 1}, {"k": 2}, {"k": 3}, {"k": 0}))
declare(arrays.rolled, options(shaped((2, 3)), {"shift": 1}, {"shift": -2, "axis": 1},
        {"shift": (1, 2), "axis": (0, 1)}), np.roll, analytic=True)
_as_numpy("roll", options(shaped((2, 3)), {"shift": 1}, {"shift": 5, "axis": 0}))
_as_numpy("tile", options(shaped((2, 3)), {"reps": 2}, {"reps": (2, 1, 3)}))
_as_numpy("repeat", options(shaped((2, 3)), {"repeats": 2}, {"repeats": [1, 0, 2], "axis": 1}))
_as_numpy("broadcast_to", options(shaped((2, 1)), {"shape": (3, 2, 4)}))
declare(arrays.pad, options(shaped((2, 3)), {"widths": ((1, 0), (0, 2))}, {"widths": 1, "value": 2},
        {"widths": ((1, 0), (2, 1)), "mode": "reflect"}, {"widths": 2, "mode": "wrap"}),
        lambda x, *, widths, value=0, mode="constant": np.pad(
            x, widths, mode, **({"constant_values": value} if mode == "constant" else {})),
        analytic=True)
declare(lambda *xs, **o: tuple(arrays.meshgrid(*xs, **o)),
        options(shaped((2,), (3,)), {}, {"indexing": "ij"}), np.meshgrid, name="arrays.meshgrid",
        analytic=True)
declare_list(arrays.concatenate, options(shaped((2, 3), (1, 3)), {}), np.concatenate, analytic=True)
declare_list(
    arrays.stack, options(shaped((2, 3), (2, 3)), {}, {"axis": -1}), np.stack, analytic=True
)
declare_list(arrays.vstack, shaped((3,), (2, 3)), np.vstack, analytic=True)
declare_list(arrays.hstack, shaped((2, 1), (2, 3)), np.hstack, analytic=True)
for name in ("split", "array_split"):
    _as_numpy(name, lambda draw: (draw.array((4, 3), MILD), draw.pick([2, (1, 3)])))

# --- picking and placing


def _index_add(x, index, values):
    y = np.array(x, dtype=np.result_type(x, values))
    np.add.at(y, index, values)
    return y


def _index_update(x, index, values):
    y = np.array(x, dtype=np.result_type(x, values))
    y[index] = values
    return y


def _indexed(draw):
    index = draw.pick(INDICES)
    shape = np.zeros((3, 4))[index].shape
    return draw.array((3, 4), MILD), index, draw.array(draw.pick([shape, ()]), MILD)


def _put(x, indices, values, axis=-1):
    y = np.array(x, dtype=np.result_type(x, values))
    np.put_along_axis(y, indices, values, axis)
    return y


PLACES = np.array([[0, 2], [3, 1], [1, 1]])
declare(arrays.index_add, _indexed, _index_add, analytic=True)
declare(arrays.index_update, _indexed, _index_update, analytic=True)
declare(arrays.put_along_axis, lambda draw: (draw.array((3, 4), MILD), PLACES,
        draw.array((3, 2), MILD)), _put, analytic=True)
declare(arrays.scatter, lambda draw: (draw.array((3, 4), MILD), PLACES,
        draw.array((3, 2), MILD)), _put, analytic=True)
declare(arrays.take_along_axis, options(shaped((3, 4)), {"indices": PLACES, "axis": 1}),
        np.take_along_axis, analytic=True)
_as_numpy("take", options(shaped((3, 4)), {"indices": np.array([0, 5, 5])},
          {"indices": np.array([[2, 0], [0, 0]]), "axis": 0}))
_as_numpy("tril", options(shaped((2, 3, 3)), {}, {"k": 1}, {"k": -1}))
_as_numpy("triu", options(shaped((2, 3, 4)), {}, {"k": 1}, {"k": -1}))
_as_numpy("diagonal", options(shaped((2, 3, 3)), {}, {"offset": 1, "axis1": 1, "axis2": 2}))
declare(arrays.diag, lambda draw: ((draw.array(draw.pick([(3,), (3, 4)]), MILD),),
        draw.pick([{}, {"k": 1}, {"k": -1}])), np.diag, analytic=True)
_as_numpy("trace", options(shaped((3, 4)), {}, {"offset": 1}))

# --- products

_as_numpy("dot", lambda draw: draw.pick([shaped((3,), (3,)), shaped((2, 3), (3, 2)),
          shaped((2, 2, 3), (3,)), shaped((2, 3), (2, 3, 2)), shaped((), (3,))])(draw))
declare(arrays.vdot, shaped((2, 3), (2, 3)), lambda a, b: (a * b).sum(), analytic=True)
_as_numpy("inner", lambda draw: draw.pick([shaped((3,), (3,)), shaped((2, 3), (4, 3))])(draw))
_as_numpy("outer", shaped((2, 2), (3,)))
_as_numpy("tensordot", options(shaped((2, 3, 4), (3, 4, 2)), {"axes": 2},
          {"axes": ((0,), (2,))}))
_as_numpy("kron", lambda draw: draw.pick([shaped((2, 2), (1, 3)), shaped((3,), (2, 2))])(draw))
_as_numpy("cross", shaped((2, 3), (3,), domain=REAL))

EINSUMS = (
    ("ij,jk->ik", (2, 3), (3, 2)), ("bij,bjk->bik", (2, 2, 3), (2, 3, 1)), ("ii->i", (3, 3)),
    ("ij->", (2, 3)), ("i,j->ji", (2,), (3,)), ("...i,i->...", (2, 2, 3), (3,)),
    ("ij,jk,kl->il", (2, 3), (3, 2), (2, 2)), ("iij->j", (2, 2, 3)), ("i,i,i->i", (3,), (3,), (3,)),
)


def _contraction(draw):
    subscripts, *shapes = draw.pick(EINSUMS)
    return (subscripts, *shaped(*shapes)(draw))


_as_numpy("einsum", _contraction)
