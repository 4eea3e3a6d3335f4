"""numpy or cupy behind one door: the only file that imports cupy.

A backend is a namespace with numpy's names, called `xp` wherever it is passed. Which one an
array belongs to is read off its type, so nothing here imports cupy before somebody asks for
`device="cuda"` or hands in a cupy array.
"""

import ctypes
import functools
import os
import sys
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from . import dtypes


class DeviceError(RuntimeError):
    """A device that is not there, or two devices in one operation."""


# Python's numbers and numpy's scalars go with either backend; None here means "no opinion".
_namespaces = {np.ndarray: np, int: None, float: None, bool: None}
_namespaces |= {d.type: None for d in dtypes.SUPPORTED}


def namespace(arrays):
    """The module (numpy or cupy) that these arrays belong to; DeviceError if they disagree."""
    xp = None
    for a in arrays:
        kind = type(a)
        found = _namespaces[kind] if kind in _namespaces else _classify(kind)
        if found is None or found is xp:
            continue
        if xp is not None:
            names = " and ".join(device_of(b) for b in arrays if hasattr(b, "dtype"))
            raise DeviceError(f"arrays on different devices: {names}; move one with .to(device)")
        xp = found
    return np if xp is None else xp


def _classify(kind):
    """Numpy for its subclasses and sequences, cupy for cupy's arrays; remembered by type."""
    cupy = sys.modules.get("cupy")  # no cupy array can exist before cupy is imported
    if cupy is not None and issubclass(kind, cupy.ndarray):
        _namespaces[kind] = cupy
        return cupy
    _namespaces[kind] = np if issubclass(kind, np.ndarray) else None
    return _namespaces[kind]


errstate = np.errstate  # what numpy warns of; a GPU warns of nothing


def is_host(xp):
    """Whether a namespace is numpy."""
    return xp is np


def row_max(x):
    """The greatest entry of each row      floats (..., n) -> (..., 1)"""
    if namespace([x]) is np:  # given a number to start from, numpy copies no first column
        return x.max(axis=-1, keepdims=True, initial=-np.inf)
    return x.max(axis=-1, keepdims=True)


def row_sums(x):
    """The sum of each row      floats (..., n) -> (..., 1)"""
    if namespace([x]) is np:  # a product, for numpy's sum is slow on short rows
        return x @ np.ones((x.shape[-1], 1), x.dtype)
    return x.sum(axis=-1, keepdims=True)


def is_array(x):
    """True for an array of either backend (numpy's scalars count)."""
    return isinstance(x, np.generic | np.ndarray) or namespace([x]) is not np


def device_of(array):
    """'cpu', or 'cuda:0' and so on."""
    return "cpu" if namespace([array]) is np else f"cuda:{array.device.id}"


def to_host(array):
    """The same numbers as a numpy array; no copy if they are there already."""
    return np.asarray(array) if namespace([array]) is np else array.get()


def to_device(array, device):
    """The same bits on `device`: 'cpu', 'cuda' (the current GPU) or 'cuda:1'; no copy if there."""
    if device is None or device == device_of(array):
        return array
    if device == "cpu":
        return to_host(array)
    cupy = _cupy(device)
    current = cupy.cuda.Device() if device == "cuda" else cupy.cuda.Device(_index(device))
    graph = _recorded.get()
    with current:
        return cupy.asarray(array) if graph is None else graph.constant(array)


def filled(shape, value, dtype, device):
    """A new array of one value, made where it is to be."""
    if device is None or device == "cpu":
        return np.full(shape, value, dtype)
    cupy = _cupy(device)
    with cupy.cuda.Device() if device == "cuda" else cupy.cuda.Device(_index(device)):
        return cupy.full(shape, value, dtype)


def from_dlpack(x):
    """A numpy or cupy array on the memory of any array that speaks DLPack; no copy."""
    kind, index = x.__dlpack_device__()
    return np.from_dlpack(x) if kind == 1 else _cupy(f"cuda:{index}").from_dlpack(x)  # 1: kDLCPU


def check_device(device):
    """The device's name, or an error that says what is missing."""
    if device is None or device == "cpu":
        return "cpu"
    cupy = _cupy(device)
    return f"cuda:{cupy.cuda.Device().id if device == 'cuda' else _index(device)}"


class Memory(NamedTuple):
    """Bytes on a GPU: in arrays now, and taken from the driver so far.

    cupy's pool gives nothing back by itself, so what it holds is the most that was ever used at
    once, and what was lost between arrays.
    """

    used: int
    held: int


def memory(device="cuda"):
    """The Memory of this process on one GPU."""
    cupy = _cupy(device)
    with cupy.cuda.Device() if device == "cuda" else cupy.cuda.Device(_index(device)):
        pool = cupy.get_default_memory_pool()
        return Memory(pool.used_bytes(), pool.total_bytes())


def _index(device):
    name, _, index = device.partition(":")
    if name != "cuda" or not index.isdigit():
        raise ValueError(f"device: got {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    return int(index)


def _cupy(device):
    """cupy, or the reason why not: the name, the package, the driver or the GPU."""
    if not isinstance(device, str) or device.partition(":")[0] != "cuda":
        raise ValueError(f"device: got {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"device {device!r} needs cupy, which is not installed: pip install "
            "'tinygrad_ml[cuda13]' (or [cuda12] for a CUDA 12 driver)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = (
            "no GPU was found (is one visible? see CUDA_VISIBLE_DEVICES)"
            if "NoDevice" in str(error)
            else "no NVIDIA driver answers (or it is older than cupy's CUDA)"
        )
        raise DeviceError(f"device {device!r}: {reason}; cupy says: {error}") from error
    if device != "cuda" and _index(device) >= count:
        raise DeviceError(f"device {device!r}: this machine has {count} GPU(s), counted from 0")
    return cupy


# -------------------------------------------------------------------------------------- graphs


_recorded = ContextVar("recorded", default=None)  # the Graph that is being recorded


def is_recorded():
    """Whether what is done now is only recorded, to be done later and again."""
    return _recorded.get() is not None


class Graph:
    """A CUDA graph: what a function did on the current GPU, done again by one call.

        graph = Graph()
        with graph.memory():
            f()                     # kernels are compiled, cuBLAS wakes up, memory is there
        with graph.recording():
            f()                     # does nothing yet
        graph.launch()              # on the current stream; f's arrays have the new numbers

    The arrays that f makes live in a pool of their own, for the graph writes to them ever again.
    What f takes from the host is what it was at the time of recording.
    """

    def __init__(self):
        cupy = self.cupy = _cupy("cuda")
        self.pool, self.stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self.beside, self.constants, self.graph = cupy.cuda.Stream(non_blocking=True), [], None

    @contextmanager
    def memory(self):
        """What runs here runs now, on the stream and in the memory of the recording to come."""
        self.cupy.cuda.get_current_stream().synchronize()
        with self.stream, self.cupy.cuda.using_allocator(self.pool.malloc):
            yield
            self.stream.synchronize()

    @contextmanager
    def recording(self):
        """What runs here is recorded; DeviceError if it waits for the device."""
        with self.memory():
            self.stream.begin_capture()
            token = _recorded.set(self)
            try:
                yield
            except Exception as error:
                with suppress(RuntimeError):  # CUDA has spoilt the recording, and says so again
                    self.stream.end_capture()
                if not any(word in str(error) for word in ("StreamCapture", "is capturing")):
                    raise
                raise DeviceError(
                    "a recorded step must not look at its numbers, nor take new ones from the "
                    f"host: cupy says {error}"
                ) from error
            finally:
                _recorded.reset(token)
            self.graph = self.stream.end_capture()

    def constant(self, array):
        """A host array on the device, copied while the recording stands beside."""
        with self.beside:
            self.constants.append(self.cupy.asarray(array))
            self.beside.synchronize()
        return self.constants[-1]

    def launch(self):
        self.graph.launch()


# ------------------------------------------------------------------------------------ products


# How float32 matrices are multiplied: "highest", as float32; "high", in parts; "tf32", rounded.
_precision = ContextVar("precision", default="highest")


@contextmanager
def _multiplied(how):
    token = _precision.set(how)
    try:
        yield
    finally:
        _precision.reset(token)


def matmul_precision(precision):
    """`with tg.matmul_precision("high"):` makes large products of float32 matrices of bfloat16's.

    a = a1 + a2 + rest, a1 the nearest bfloat16 to a and a2 to a - a1, so |a2| <= 2^-8 |a| and
    |rest| <= 2^-16 |a|; b likewise. Added up, in float32, is a1 b1 + a1 b2 + a2 b1. Missing are
    a2 b2 and what the rests would add: at most 3 2^-16 |a| |b|, in sums of random terms some 2^-19
    where float32 has 2^-22. On a GPU's tensor cores three products of halves should take a quarter
    of float32's time. A CPU's bfloat16 is twice as fast at best without AMX: 1.4 to 2.5 times
    float32's time was measured, so there it only shows what a GPU would compute; with AMX nothing
    was measured.

    "highest", the default, is float32 throughout. Forward and backward each go by what is in force
    when they run, which of this and allow_tf32 is the inner one. Nothing changes for other dtypes,
    products of batches, on the CPU those of few rows, and on a GPU those within
    linear_cross_entropy. Infinities, and what bfloat16 rounds to one (3.39e38), give NaN.
    """
    if precision not in ("highest", "high"):
        raise ValueError(f"matmul_precision: got {precision!r}, expected 'highest' or 'high'")
    return _multiplied(precision)


def allow_tf32():
    """`with tg.allow_tf32():` large products of float32 matrices may round their factors to TF32.

    10 bits of mantissa in place of 23, so a relative error of 2^-11 each, added up in float32 by
    tensor cores: some eight times as fast on a GPU of 2020 or later. Off unless asked for. Nothing
    changes for other dtypes, products of batches, or on the CPU, which has no such thing.
    """
    return _multiplied("tf32")


def float32_products():
    """How float32 matrices are multiplied here: "highest", "high" or "tf32"."""
    return _precision.get()


def gemm(a, b, dtype, out=None):
    """a @ b of two cupy arrays of one of GEMM's dtypes, as `dtype`: any ranks. `out`: added to it.

    Halves are added up in float32; float32 is rounded to TF32 where that is allowed and these are
    matrices. By cublasGemmStridedBatchedEx, since cupy's own product takes no batches of bfloat16,
    widens float16, and refuses to be recorded. Operands are read as they lie where a row or a
    column is contiguous.
    """
    cupy = namespace([a, b])
    rows, columns = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if rows.shape[-1] != columns.shape[-2]:
        raise ValueError(f"matmul: {a.shape} and {b.shape} do not go together")
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    shape = (*batch, rows.shape[-2], columns.shape[-1])
    y = cupy.empty(shape, dtype) if out is None else out.reshape(shape)
    if a.size and b.size:
        known = out is not None
        _gemm(cupy, _matrices(cupy, rows, batch), _matrices(cupy, columns, batch), y, known)
    elif out is None:
        y[...] = 0
    y = y[..., 0, :] if a.ndim == 1 else y
    return y[..., 0] if b.ndim == 1 else y


def matmul(a, b):
    """a @ b of two cupy arrays of any dtypes."""
    if a.dtype == b.dtype and a.dtype.name in GEMM and a.ndim and b.ndim:
        return gemm(a, b, a.dtype)
    return namespace([a, b]).matmul(a, b)


def _matrices(cupy, x, batch):
    """(matrices, entries from one to the next, whether transposed, its leading dimension)"""
    shape = x.shape[-2:]
    if x.size == shape[0] * shape[1]:
        x, step = x.reshape(shape), 0  # one for all
    else:
        x = cupy.broadcast_to(x, (*batch, *shape)).reshape(-1, *shape)
        step = None
    down, right = (s // x.itemsize for s in x.strides[-2:])
    if right == 1 and down >= shape[1]:
        transposed, leading = False, down
    elif down == 1 and right >= shape[0]:
        transposed, leading = True, right
    else:
        x = cupy.ascontiguousarray(x)
        transposed, leading = False, shape[1]
    return x, x.strides[0] // x.itemsize if step is None else step, transposed, leading


# dtype -> cudaDataType, cublasComputeType_t and the dtype of sums
GEMM = {
    "float16": (2, 68, np.float32),
    "bfloat16": (14, 68, np.float32),
    "float32": (0, 68, np.float32),
    "float64": (1, 70, np.float64),
}
_TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32


def _gemm(cupy, a, b, y, known):
    """y (+)= a b. cuBLAS counts by columns: it is told y^T = b^T a^T, with nothing moved."""
    (a, step_a, turned_a, leading_a), (b, step_b, turned_b, leading_b) = a, b
    m, n = y.shape[-2:]
    kind, compute, wide = GEMM[a.dtype.name]
    if kind == 0 and y.ndim == 2 and float32_products() == "tf32":
        compute = _TF32
    one, of_known = np.ones((), wide), np.full((), known, wide)
    handle, library = cupy.cuda.device.get_cublas_handle(), cublas_library()
    status = library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr)
    status = status or library.cublasGemmStridedBatchedEx(
        handle, int(turned_b), int(turned_a), n, m, a.shape[-1],
        one.ctypes.data, b.data.ptr, kind, leading_b, step_b,
        a.data.ptr, kind, leading_a, step_a,
        of_known.ctypes.data, y.data.ptr, GEMM[y.dtype.name][0], n, m * n,
        y.size // (m * n), compute, -1,
    )  # fmt: skip
    if status:
        raise DeviceError(f"matmul of {a.shape} and {b.shape}: cuBLAS answers with status {status}")


@functools.cache
def cublas_library():
    """cuBLAS itself, which cupy has loaded: cupy's own calls of it refuse to be recorded."""
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    major = cublas.getVersion(get_cublas_handle()) // 10000
    library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    pointer, number, step = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    operand = [pointer, number, number, step]
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasGemmStridedBatchedEx.argtypes = [
        pointer, *[number] * 5, pointer, *operand, *operand, pointer, *operand, *[number] * 3,
    ]  # fmt: skip
    return library


# --------------------------------------------------------------------- writing where indices say


def last_writes(xp, shape, index):
    """For each place that [index] of an array of `shape` names, which of the writes to it is last.

    Writes are counted from 0 in numpy's order; numpy lets the last one stand, cupy any.
    """
    last = xp.zeros(shape, np.uint64)
    order = xp.arange(last[index].size, dtype=np.uint64).reshape(last[index].shape)
    if _is_basic(index):
        return order
    xp.maximum.at(last, index, order)
    return last[index]


def assign(array, index, values):
    """array[index] = values; of entries named twice the last value stands, on every device."""
    xp = namespace([array])
    if xp is not np and not _is_basic(index):
        last = last_writes(xp, array.shape, index)
        values = xp.broadcast_to(xp.asarray(values, array.dtype), last.shape).reshape(-1)[last]
    array[index] = values


def scatter_add(array, index, values):
    """array[index] += values in place, counting repeated indices each time (np.add.at)."""
    xp = namespace([array])
    if _is_basic(index):  # names nothing twice
        array[index] += values
    elif xp is not np and array.dtype.name == "bfloat16":  # cupy knows no such additions
        wide = array.astype(np.float32)
        xp.add.at(wide, index, values.astype(np.float32))
        array[...] = wide
    elif xp is np and _are_rows(array, index):
        _add_rows(array, index, values)
    else:
        xp.add.at(array, index, values)


def _is_basic(index):
    """Whether it picks by numbers, slices, None and ... alone, without copying."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(i is None or i is ... or type(i) in (int, slice) for i in parts)


def _are_rows(array, index):
    """Whether integers, and not a few, name whole rows, as tokens name those of an embedding."""
    is_rows = isinstance(index, np.ndarray) and index.dtype.kind in "iu" and array.ndim > 1
    return is_rows and index.size >= 64 and array.size > 0 and array.flags.c_contiguous


def _add_rows(array, index, values):
    """array[index] += values entry by entry: np.add.at is 5 times as fast along one axis."""
    count, width = len(array), array[0].size
    if not -count <= index.min() <= index.max() < count:
        raise IndexError(f"index: rows {index.min()} to {index.max()} of an array of {count}")
    values = np.broadcast_to(values, index.shape + array.shape[1:]).reshape(-1, width)
    rows = index.reshape(-1).astype(np.intp) % count  # negative ones count from the end
    entries, columns = array.reshape(-1), np.arange(width)
    some = max(1, 65536 // width)  # rows: the places of all entries would be large
    for i in range(0, len(rows), some):
        places = rows[i : i + some, None] * width + columns
        np.add.at(entries, places.reshape(-1), values[i : i + some].reshape(-1))
