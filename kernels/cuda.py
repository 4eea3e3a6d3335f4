"""The CUDA kernels (*.cu): compiled by cupy's NVRTC when first asked for, and launched.

A binding of a stem, beside that of its C, ends with `on_cuda = Twin(supports, forward, backward)`;
fused.py takes the twin where the arrays are cupy's. cupy keeps compiled kernels on disk. Launches
go to the current stream and nothing here waits for one.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
OPTIONS = ("-std=c++17", f"-I{FOLDER}")
TYPES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}
HALF = ("float16", "bfloat16")
THREADS = 256
i4, i8 = np.int32, np.int64


class Twin(NamedTuple):
    """What fused.py asks of a kernel."""

    supports: Any
    forward: Any
    backward: Any = None


def runs(xp, *arrays, dtypes=tuple(TYPES)):
    """Whether these are arrays of cupy, not empty, all of one of these dtypes."""
    if xp is np or not all(isinstance(a, xp.ndarray) and a.size for a in arrays):
        return False
    found = {a.dtype.name for a in arrays}
    return len(found) == 1 and found <= set(dtypes)


def launch(xp, stem, name, grid, args, *, threads=THREADS, shared=0):
    """Run the kernel that `name` spells in stem.cu, "swiglu_forward<float,4>" say.

    Arrays must be contiguous and scalars numpy's: cupy looks at neither.
    """
    kernel = function(xp, stem, name)
    if shared >= 48 * 1024:  # with the kernel's own more than every block has; given if asked for
        kernel.max_dynamic_shared_size_bytes = max(shared, 49 * 1024)
    kernel(grid if isinstance(grid, tuple) else (grid,), (threads,), args, shared_mem=shared)


@functools.cache
def function(xp, stem, name):
    code = (FOLDER / f"{stem}.cu").read_text()
    module = xp.RawModule(code=code, options=OPTIONS, name_expressions=(name,))
    return module.get_function(name)


MOST, CHUNK = 120, 8192  # arrays in one launch and entries of a block, as in arrays.cuh
ARRAY = np.dtype([("x", "u8"), ("y", "u8"), ("n", "i8"), ("first", "i8")])


def tables(arrays, written=None):
    """(Table of arrays.cuh, how many arrays are in it, their blocks) for MOST of them at a time."""
    written = arrays if written is None else written
    for start in range(0, len(arrays), MOST):
        table, first = np.zeros((), [("of", ARRAY, MOST)]), 0
        some = list(zip(arrays, written, strict=True))[start : start + MOST]
        for i, (x, y) in enumerate(some):
            table["of"][i] = (x.data.ptr, y.data.ptr, x.size, first)
            first += blocks(x.size, CHUNK)
        yield table, i4(len(some)), first


def contiguous(xp, *arrays):
    return [a if a.flags.c_contiguous else xp.ascontiguousarray(a) for a in arrays]


def rows(xp, a):
    """a with the entries of a row side by side; how the rows lie does not matter."""
    return a if a.strides[-1] == a.itemsize else xp.ascontiguousarray(a)


def steps(a):
    """Entries from one batch, head and row of a (b, h, t, k) to the next."""
    return [i8(s // a.itemsize) for s in a.strides[:3]]


STEPS = np.dtype([(name, "i8") for name in ("batch", "head", "row")])  # Steps in the .cu files


def views(*arrays):
    """For each array (b, h, t, d) its address and its Steps."""
    return [x for a in arrays for x in (a.data, np.array(tuple(steps(a)), STEPS))]


def heads(xp, shape, dtype):
    """An array (b, h, t, d) that merges to (b, t, h d) without a copy."""
    b, h, t, d = shape
    return xp.empty((b, t, h, d), dtype).swapaxes(1, 2)


def wide(dtype):
    """The type that sums are kept in: float32 but for float64."""
    return np.float64 if dtype == np.float64 else np.float32


def width(n, *arrays):
    """How many numbers a thread may read at once: 16 bytes of them if all begin and end at such."""
    most = 16 // arrays[0].itemsize
    even = n % most == 0 and all(a.data.ptr % 16 == 0 for a in arrays if a is not None)
    return most if even else 1


def blocks(n, per_block=THREADS):
    return math.ceil(n / per_block)


def type_of(a):
    return TYPES[a.dtype.name]
