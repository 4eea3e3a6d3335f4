"""New Tensors: constants, ranges and random numbers.

Floats are float32 unless `dtype` says otherwise. Random numbers are always drawn on the host, by
the numpy Generator that is passed in, and moved: so every device starts from the same ones.
"""

import math

import numpy as np

from . import dtypes
from .arrays import array_of
from .backend import check_device, device_of, filled, namespace, to_device
from .tensor import Tensor


def _made(array, dtype, device, requires_grad):
    """A leaf with the numbers of a new host array."""
    array = np.asarray(array).astype(dtypes.as_dtype(dtype), copy=False)
    if device is not None:
        array = to_device(array, check_device(device))
    return Tensor.leaf(array, requires_grad)


def full(shape, value, dtype=None, device=None, requires_grad=False):
    """All entries `value`; a Python float makes float32, an int int64, a bool bool."""
    if dtype is None:
        dtype = np.asarray(value).dtype
        if not hasattr(value, "dtype") and dtype == dtypes.float64:
            dtype = dtypes.float32
    return Tensor.leaf(filled(shape, value, dtypes.as_dtype(dtype), device), requires_grad)


def zeros(shape, dtype="float32", device=None, requires_grad=False):
    """All entries 0."""
    return full(shape, 0, dtype, device, requires_grad)


def ones(shape, dtype="float32", device=None, requires_grad=False):
    """All entries 1."""
    return full(shape, 1, dtype, device, requires_grad)


def full_like(x, value, dtype=None, device=None, requires_grad=False):
    """All entries `value`, in x's shape, dtype and device (unless told otherwise)."""
    device = device_of(array_of(x)) if device is None else device
    return full(x.shape, value, x.dtype if dtype is None else dtype, device, requires_grad)


def zeros_like(x, dtype=None, device=None, requires_grad=False):
    """All entries 0, in x's shape, dtype and device."""
    return full_like(x, 0, dtype, device, requires_grad)


def ones_like(x, dtype=None, device=None, requires_grad=False):
    """All entries 1, in x's shape, dtype and device."""
    return full_like(x, 1, dtype, device, requires_grad)


def arange(start, stop=None, step=1, dtype=None, device=None, requires_grad=False):
    """start, start + step, ... below stop; one argument counts from 0.

    int64 for ints, float32 as soon as one of them is a float.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise ValueError("step: got 0, expected another number")
    values = np.arange(start, stop, step)  # in float64: the same places in every dtype
    if dtype is None:
        dtype = dtypes.int64 if values.dtype.kind in "iu" else dtypes.float32
    return _made(values, dtype, device, requires_grad)


def linspace(start, stop, num=50, endpoint=True, dtype="float32", device=None, requires_grad=False):
    """`num` evenly spaced numbers from start to stop, with or without the end point."""
    values = np.linspace(start, stop, num, endpoint=endpoint)
    return _made(values, dtype, device, requires_grad)


def eye(rows, columns=None, k=0, dtype="float32", device=None, requires_grad=False):
    """Ones on the k-th diagonal of a matrix (square unless told otherwise), zeros elsewhere."""
    return _made(np.eye(rows, columns, k), dtype, device, requires_grad)


def tri(rows, columns=None, k=0, dtype="float32", device=None, requires_grad=False):
    """Ones on and below the k-th diagonal; as dtype="bool" a causal mask."""
    return _made(np.tri(rows, columns, k), dtype, device, requires_grad)


def one_hot(indices, length, dtype="float32", device=None):
    """y[..., indices[...]] = 1, zeros elsewhere      indices: (...) ints -> (..., length)"""
    found = np.asarray(array_of(indices)) if isinstance(indices, list) else array_of(indices)
    xp = namespace([found])
    found = xp.asarray(found)
    if found.dtype not in dtypes.INTEGER:
        raise TypeError(f"indices: got dtype {found.dtype}, expected integers")
    if found.size and not (found.min() >= 0 and found.max() < length):
        raise IndexError(f"indices: got {found.min()} to {found.max()}, expected 0 to {length - 1}")
    hot = (found[..., None] == xp.arange(length)).astype(dtypes.as_dtype(dtype))
    return Tensor.leaf(hot if device is None else to_device(hot, check_device(device)))


def normal(shape, *, rng, mean=0.0, std=1.0, dtype="float32", device=None, requires_grad=False):
    """Independent normal numbers of this mean and standard deviation."""
    if std < 0:
        raise ValueError(f"std: got {std}, expected a number >= 0")
    drawn = _generator(rng).standard_normal(shape, _drawn_in(dtype))
    return _made(drawn * float(std) + float(mean), dtype, device, requires_grad)


def uniform(shape, *, rng, low=0.0, high=1.0, dtype="float32", device=None, requires_grad=False):
    """Independent numbers, evenly spread over [low, high)."""
    if not low <= high or not math.isfinite(high - low):
        raise ValueError(f"low, high: got {low} and {high}, expected finite ones in order")
    drawn = _generator(rng).random(shape, _drawn_in(dtype))
    return _made(drawn * float(high - low) + float(low), dtype, device, requires_grad)


def _generator(rng):
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng: got {type(rng).__name__}, expected a numpy Generator, "
            "as np.random.default_rng(seed) makes it"
        )
    return rng


def _drawn_in(dtype):
    """The dtype that the Generator draws in."""
    dtype = dtypes.as_dtype(dtype)
    if not dtypes.is_float(dtype):
        raise TypeError(f"dtype: got {dtype}, expected a floating one")
    return dtypes.float64 if dtype == dtypes.float64 else dtypes.float32


__all__ = [
    "arange", "eye", "full", "full_like", "linspace", "normal", "one_hot", "ones", "ones_like",
    "tri", "uniform", "zeros", "zeros_like",
]  # fmt: skip
