"""A cupy without a GPU: numpy computes what cupy's functions would, the simulator runs the kernels.

`install()` puts it where `import cupy` looks. It is stricter than numpy wherever cupy is: an array
of the device never becomes numpy's by itself, the two never mix, reductions give 0-d arrays,
names and parameters are those of the real package (cupy_signatures.json), products of
bfloat16 beyond matrices fail, and cublas is told everything by pointers. Beyond cupy: what `empty`
returns is NaNs that nobody may read, and every host synchronisation is counted.
"""

import contextlib
import ctypes
import functools
import json
import sys
import types
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np

from tinygrad_ml import backend

from . import launch

SIGNATURES = json.loads((Path(__file__).parent / "cupy_signatures.json").read_text())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_owners = weakref.WeakValueDictionary()  # every live array: a kernel may reach it behind a pointer


class Count:
    """What was done since `reset`: host synchronisations, launches, products by cublas."""

    syncs = launches = products = 0
    allowed = True  # cupyx.allow_synchronize

    @classmethod
    def reset(cls):
        cls.syncs = cls.launches = cls.products = 0

    @classmethod
    def sync(cls, what):
        cls.syncs += 1
        Stream.now().spoil(what)
        if not cls.allowed:
            raise DeviceSynchronized(f"{what} waits for the device")


class DeviceSynchronized(RuntimeError):
    """As cupyx's."""


_admitted = None  # frame -> whether code there may take our arrays for numpy's


def admit(whom):
    """Let callers of whom `whom(frame)` is true mix our arrays with numpy's: suite.py's tests."""
    global _admitted
    _admitted = whom


def _is_guest():
    """Whether the code that called us, past this file and numpy's, was admitted."""
    if _admitted is None:
        return False
    frame = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename == __file__ or "/numpy/" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return frame is not None and _admitted(frame)


# ------------------------------------------------------------------------------------ arrays


class ndarray:
    """cupy.ndarray: `_host` holds the numbers; `_unwritten` marks bytes that nobody wrote."""

    __slots__ = ("__weakref__", "_base", "_host", "_unwritten")
    __hash__ = None

    def __init__(self, host, base=None):
        self._host, self._unwritten, self._base = host, None, base
        _owners[id(self)] = self

    def __array__(self, dtype=None, copy=None):
        if _is_guest():
            return np.array(self._host, dtype)
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """numpy's scalars go with our arrays, as with cupy's; its arrays do not."""
        given = [hosts(i) for i in inputs]
        return wrap(done(lambda: getattr(ufunc, method)(*given, **options)))

    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    dtype = property(lambda self: self._host.dtype)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags))
    device = property(lambda self: Device(0))
    data = property(lambda self: MemoryPointer(self))
    T = property(lambda self: wrap(self._host.T, self))
    base = property(lambda self: self._base)
    real = property(lambda self: wrap(self._host.real, self))
    flat = property(lambda self: (wrap(np.asarray(v)) for v in self._host.flat))

    def get(self, stream=None, order="C", out=None, blocking=True):
        Count.sync("get")
        return host(self).copy(order)

    def set(self, arr, stream=None):
        Stream.now().spoil("a copy from the host's memory")
        if (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise ValueError(f"set: {arr.shape} {arr.dtype} into {self.shape} {self.dtype}")
        _written(self)[...] = arr

    def item(self):
        Count.sync("item")
        return host(self).item()

    def tolist(self):
        Count.sync("tolist")
        return host(self).tolist()

    __float__ = lambda self: float(self.item())
    __int__ = lambda self: int(self.item())
    __index__ = lambda self: self._host.__index__() if self.item() is not None else 0
    __complex__ = lambda self: complex(self.item())
    __len__ = lambda self: len(self._host)
    __repr__ = lambda self: repr(self.get())
    __str__ = lambda self: str(self.get())
    __format__ = lambda self, spec: format(self.get()[()], spec)

    def __bool__(self):
        Count.sync("bool")
        return bool(host(self))

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        whole, where = host(self, partial=True), indices(index)
        return wrap(done(lambda: np.asarray(whole[where])), self)

    def __setitem__(self, index, value):
        value, whole, where = hosts(value), _written(self), indices(index)
        done(lambda: _assign(whole, where, value))

    def __dlpack__(self, **options):
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self):
        return (2, 0)  # kDLCUDA


def _assign(whole, where, value):
    """whole[where] = value; of entries named twice cupy keeps any: here the first, not the last."""
    parts = where if isinstance(where, tuple) else (where,)
    if not any(isinstance(i, np.ndarray) and i.dtype.kind in "iu" and i.ndim for i in parts):
        whole[where] = value
        return
    places = np.arange(whole.size).reshape(whole.shape)[where]
    whole.flat[places.ravel()[::-1]] = np.broadcast_to(value, places.shape).ravel()[::-1]


class MemoryPointer:
    """An array as an address: a kernel is told its strides by other arguments."""

    def __init__(self, array):
        self.array, self.ptr = array, array._host.ctypes.data


class Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata


def wrap(result, base=None):
    """numpy's results as ours; 0-d arrays stay arrays, as cupy's do. A view knows its base."""
    if isinstance(result, np.ndarray | np.generic):
        made = np.asarray(result)
        is_view = base is not None and np.may_share_memory(made, base._host)
        return ndarray(made, (base if base._base is None else base._base) if is_view else None)
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*map(wrap, result))
    return type(result)(map(wrap, result)) if isinstance(result, tuple | list) else result


def root(a):
    return a if a._base is None else a._base


def host(a, partial=False):
    """An array's numbers, all of which must have been written (nobody knows which a view shows)."""
    mask = root(a)._unwritten
    if mask is not None and not partial and not mask.all():
        raise launch.KernelError("unwritten: an array of cupy.empty is read before it is filled")
    return a._host


def hosts(x, where="an operation"):
    """Arguments for numpy; TypeError for numpy's arrays, which cupy does not take."""
    if isinstance(x, ndarray):
        return host(x)
    if isinstance(x, np.ndarray) and x.ndim and not _is_guest():
        raise TypeError(f"Unsupported type {type(x)} in {where}")
    if isinstance(x, list | tuple) and any(isinstance(i, ndarray | list | tuple) for i in x):
        return type(x)([hosts(i, where) for i in x])
    return x


def indices(index):
    if isinstance(index, tuple):
        return tuple(map(indices, index))
    if isinstance(index, ndarray):
        if index.dtype == bool:
            Count.sync("an index of bools")
        return host(index)
    return index


# ----------------------------------------------------------------------------------- functions


@functools.cache
def parameters(name):
    """(how many positional ones, names, whether any) of a function of cupy."""
    listed = [p.strip() for p in SIGNATURES[name].split(",")]
    anything = any(p.startswith("*") and p != "*" for p in listed) or listed == ["?"]
    positional = listed.index("*") if "*" in listed else len(listed)
    return positional, frozenset(listed), anything


def check(name, args, options):
    """TypeError for what the real function would not take."""
    positional, names, anything = parameters(name)
    if len(args) > positional and not anything:
        raise TypeError(f"cupy.{name} takes {positional} positional arguments, got {len(args)}")
    unknown = set(options) - names
    if unknown and "**kwargs" not in names:
        raise TypeError(f"cupy.{name} got an unexpected keyword argument {min(unknown)!r}")


def _refuse_recording(name):
    """As cupy: its products are cuBLAS's, which it does not call while a stream is captured."""
    theirs = name in ("matmul", "dot", "inner", "outer", "vdot", "tensordot", "einsum")
    if theirs and Stream.now().is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")


def function(name):
    space, _, last = name.rpartition(".")
    theirs = getattr(getattr(np, space) if space else np, last)

    def call(*args, **options):
        check(name, args, options)
        _refuse_recording(name)
        out = options.pop("out", None)
        if name in ("clip", "copyto"):
            options = {k: v for k, v in options.items() if not (k == "where" and v is None)}
        if name in WAITS:
            Count.sync(name)
        arguments = [hosts(a, f"cupy.{name}") for a in args]
        if name == "copyto":
            arguments[0] = _written(args[0])
        others = {k: hosts(v, f"cupy.{name}") for k, v in options.items() if k not in DROPPED}
        if out is not None:
            outs = out if isinstance(out, tuple) else (out,)
            others["out"] = tuple(map(_written, outs)) if isinstance(out, tuple) else _written(out)
        result = done(lambda: theirs(*arguments, **others))
        if out is not None:
            return out[0] if isinstance(out, tuple) and len(out) == 1 else out
        return wrap(result, next((a for a in args if isinstance(a, ndarray)), None))

    call.__name__ = last
    for part in ("reduce", "accumulate", "outer", "at", "reduceat"):
        if isinstance(theirs, np.ufunc):
            setattr(call, part, _part(theirs, part))
    return call


WAITS = {"nonzero", "flatnonzero", "argwhere", "unique", "allclose", "array_equal"}
DROPPED = {"blocking"}


AT = {  # the dtypes of ufunc.at, by ufunc
    "add": {"float16", "float32", "float64", "int32", "uint32", "uint64", "int64"},
    "maximum": {"float32", "float64", "int32", "uint32", "uint64"},
}


def _at_indices(theirs):
    """ufunc.at: wraps bad indices silently, and takes some dtypes."""

    def call(a, indices_, b=None):
        if a.dtype.name not in AT.get(theirs.__name__, ()):
            raise TypeError(f"{theirs.__name__}.at only supports some dtypes, not {a.dtype}")
        index, length = indices(indices_), len(a)
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu":
            index = index % max(length, 1)
        whole, values = _written(a), hosts(b)
        done(lambda: theirs.at(whole, index, values))

    return call


def _part(theirs, part):
    if part == "at":
        return _at_indices(theirs)

    def call(*args, **options):
        given = [hosts(a) for a in args]
        return wrap(done(lambda: getattr(theirs, part)(*given, **options)))

    return call


def _written(a):
    """The numbers of an array that is about to be filled."""
    if not isinstance(a, ndarray):
        raise TypeError("out: expected an array of cupy")
    root(a)._unwritten = None  # which bytes an index names is numpy's business
    return a._host


VIEWS = {"swapaxes", "transpose", "reshape", "view", "squeeze"}


def method(name):
    def call(self, *args, **options):
        check("ndarray." + name, (self, *args), options)
        _refuse_recording(name)
        if name == "nonzero":
            Count.sync(name)
        if name == "fill":
            whole, value = _written(self), hosts(args[0])
            return done(lambda: whole.fill(value))
        out = options.pop("out", None)
        if out is not None:
            options["out"] = _written(out)
        theirs = getattr(host(self, partial=name in VIEWS), name)
        arguments, others = hosts(list(args)), {k: hosts(v) for k, v in options.items()}
        others = {k: v for k, v in others.items() if v is not None or k == "axis"}
        result = done(lambda: theirs(*arguments, **others))
        return out if out is not None else wrap(result, self)

    call.__name__ = name
    return call


HELD = {"get", "set", "item", "tolist", "data", "device"}
for _name in (n.partition(".")[2] for n in SIGNATURES if n.startswith("ndarray.")):
    if _name not in HELD and hasattr(np.ndarray, _name):
        setattr(ndarray, _name, method(_name))


def operator(name):
    def call(self, *others):
        if any(isinstance(o, np.ndarray) and o.ndim for o in others) and not _is_guest():
            raise TypeError(f"Unsupported type <class 'numpy.ndarray'> in {name}")
        if not all(
            isinstance(o, ndarray | np.generic | np.ndarray | int | float | complex) for o in others
        ):
            return NotImplemented
        if name in ("__matmul__", "__rmatmul__"):
            pair = (self, *others) if name == "__matmul__" else (*others, self)
            return matmul(*pair)
        mine, given = host(self), [hosts(o) for o in others]
        result = done(lambda: getattr(mine, name)(*given))
        if result is self._host:
            return self
        return NotImplemented if result is NotImplemented else wrap(result)

    return call


for _name in [
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "rfloordiv",
    "mod",
    "rmod",
    "pow",
    "rpow",
    "divmod",
    "rdivmod",
    "matmul",
    "rmatmul",
    "and",
    "rand",
    "or",
    "ror",
    "xor",
    "rxor",
    "lshift",
    "rlshift",
    "rshift",
    "rrshift",
    "neg",
    "pos",
    "abs",
    "invert",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
]:
    setattr(ndarray, f"__{_name}__", operator(f"__{_name}__"))


def matmul(*args, **options):
    """As cupy 14: matrices of halves are summed in float32, batches of bfloat16 are refused."""
    check("matmul", args, options)
    _refuse_recording("matmul")
    a, b = args
    halves = {BFLOAT16, np.dtype(np.float16)} & {a.dtype, b.dtype}
    if BFLOAT16 in halves and max(a.ndim, b.ndim) > 2:
        raise TypeError("batches of bfloat16 fall into cupy's product of integers, and fail")
    a, b = hosts(a, "cupy.matmul"), hosts(b, "cupy.matmul")
    narrow = bool(halves) and a.dtype == b.dtype

    def product():
        wide = (a.astype(np.float32), b.astype(np.float32)) if narrow else (a, b)
        return np.matmul(*wide).astype(a.dtype) if narrow else np.matmul(*wide)

    out = options.get("out")
    if out is None:
        return wrap(done(product))
    whole = _written(out)
    done(lambda: whole.__setitem__(..., product()))
    return out


def empty(shape, dtype=float, order="C"):
    made = ndarray(np.empty(shape, dtype, order))
    if made.size:
        made._host.reshape(-1, order="A").view(np.uint8)[...] = 0xFF  # a NaN, as a float
        made._unwritten = np.zeros(made.nbytes, np.uint8)
    return made


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    like = np.empty_like(prototype._host, dtype=dtype, order=order, shape=shape)
    made = ndarray(like)
    if made.size and like.flags.c_contiguous:
        like.reshape(-1).view(np.uint8)[...] = 0xFF
        made._unwritten = np.zeros(made.nbytes, np.uint8)
    return made


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        whole = host(obj)
        return wrap(done(lambda: np.array(whole, dtype, copy=True, order=order, ndmin=ndmin)))
    Stream.now().spoil("a copy from the host's memory")
    if isinstance(obj, list | tuple):
        obj = [host(o) if isinstance(o, ndarray) else o for o in obj]
    return ndarray(np.array(obj, dtype, copy=True, order=order, ndmin=ndmin))


def asarray(a, dtype=None, order=None, *, blocking=False):
    if isinstance(a, ndarray) and (dtype is None or a.dtype == np.dtype(dtype)):
        return a
    return array(a, dtype, order=order or "K")


def ascontiguousarray(a, dtype=None):
    fits = isinstance(a, ndarray) and (dtype is None or a.dtype == np.dtype(dtype))
    if fits and a.flags.c_contiguous and a.ndim:
        return a
    if not isinstance(a, ndarray):
        return array(np.ascontiguousarray(a, dtype))
    whole = hosts(a)
    return wrap(done(lambda: np.ascontiguousarray(whole, dtype)))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# ------------------------------------------------------------------------------------- kernels


class RawModule(launch.RawModule):
    """Kernels of the simulator, called with our arrays; what they write counts as written."""

    def __init__(self, code=None, *, options=(), name_expressions=None):
        super().__init__(code=code, options=options, name_expressions=name_expressions)

    def get_function(self, name):
        return RawKernel(super().get_function(name))


class RawKernel:
    def __init__(self, kernel):
        self._kernel = kernel
        self.name = kernel.name

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self._kernel.max_dynamic_shared_size_bytes = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        Count.launches += 1
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray) and (a.dtype.kind != "V" or a.size != 1):
                raise TypeError(f"Unsupported {a.dtype} of shape {a.shape}: argument {i} of "
                                f"{self.name}: only one structure goes by value")  # fmt: skip
        owners = {id(r): r for r in (root(a) for a in map(_array_of, args) if a is not None)}
        if any(isinstance(a, np.ndarray) and "u8" in str(a.dtype.descr) for a in args):
            # a table with pointers in it
            owners |= {id(r): r for r in map(root, list(_owners.values())) if r.flags.c_contiguous}
        masks = {id(r._host): r._unwritten for r in owners.values() if r._unwritten is not None}
        windows, reachable = [_window(a) for a in args], [r._host for r in owners.values()]
        done(lambda: self._kernel(grid, block, windows, shared_mem=shared_mem,
                                  written=masks, reachable=reachable))  # fmt: skip


def _array_of(argument):
    if isinstance(argument, MemoryPointer):
        return argument.array
    return argument if isinstance(argument, ndarray) else None


def _window(argument):
    a = _array_of(argument)
    if a is None:
        return argument
    return launch.Window(a._host, root(a)._host, isinstance(argument, MemoryPointer))


# --------------------------------------------------------------------------------------- cublas


def _at(pointer, dtype, shape, strides, write=False):
    """Numbers of a live array behind a pointer; an error for any other address."""
    dtype = np.dtype(dtype)
    last = pointer + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
    for a in list(_owners.values()):
        start = a._host.ctypes.data
        inside = start <= pointer and last <= start + a.nbytes and a.dtype == dtype
        dense = a._host.transpose(np.argsort(a._host.strides)[::-1])
        if inside and dense.flags.c_contiguous:
            if write:
                root(a)._unwritten = None
            flat = dense.reshape(-1).view(np.uint8)[pointer - start :]
            flat = flat[: flat.size // dtype.itemsize * dtype.itemsize].view(dtype)
            return np.lib.stride_tricks.as_strided(flat, shape, strides)
    raise launch.KernelError("cublas: a pointer to no array of this type, or beyond its end")


TYPES = {2: np.float16, 14: BFLOAT16, 0: np.float32, 1: np.float64}  # cudaDataType
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t


def _to_tf32(x):
    """float32 rounded to 10 bits of mantissa."""
    x = np.ascontiguousarray(x)
    return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


def cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA,
                         B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC, batchCount,
                         computeType, algo):  # fmt: skip
    """C = op(A) op(B) + beta C of column-major matrices, summed in float32 or float64."""
    Count.products += 1
    if computeType not in ((COMPUTE_64F,) if Atype == 1 else (COMPUTE_32F, COMPUTE_TF32)):
        raise launch.KernelError(f"cublas: compute type {computeType} is not that of the factors")
    if computeType == COMPUTE_TF32 and Atype != 0:
        raise launch.KernelError("cublas: TF32 is for float32")
    scalar = ctypes.c_double if Atype == 1 else ctypes.c_float
    one, of_known = (scalar.from_address(address).value for address in (alpha, beta))
    wide = np.float64 if Atype == 1 else np.float32

    def operand(pointer, kind, leading, stride, transposed, rows, columns):
        dtype = np.dtype(TYPES[kind])
        if leading < (columns if transposed else rows):
            raise launch.KernelError("cublas: a leading dimension shorter than its columns")
        steps = (leading, 1) if transposed else (1, leading)
        strides = [dtype.itemsize * s for s in (stride, *steps)]
        return _at(pointer, dtype, (batchCount, rows, columns), strides)

    a = operand(A, Atype, lda, strideA, transa, m, k)
    b = operand(B, Btype, ldb, strideB, transb, k, n)
    size = np.dtype(TYPES[Ctype]).itemsize
    c = _at(C, TYPES[Ctype], (batchCount, m, n), [size * s for s in (strideC, 1, ldc)], write=True)

    def product():
        rounded = _to_tf32 if computeType == COMPUTE_TF32 else lambda x: x.astype(wide)
        found = one * np.matmul(rounded(a), rounded(b))
        c[...] = (found + of_known * c.astype(wide) if of_known else found).astype(c.dtype)

    done(product)
    return 0


CUBLAS = types.SimpleNamespace(  # the library itself, as ctypes shows it
    cublasSetStream_v2=lambda handle, stream: 0,
    cublasGemmStridedBatchedEx=cublasGemmStridedBatchedEx,
)


# ------------------------------------------------------------------------------------ the module


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    def __init__(self, id=0):
        if id:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        Count.sync("synchronize")


# --------------------------------------------------------------------------- streams and graphs


_streams: list = []  # those that `with stream:` made current, the innermost last


class Stream:
    """A stream: everything is done at once and in order. While it is captured, what is done is
    recorded, and undone at the end of it: on a GPU it would not have happened.
    """

    ptr = 0

    def __init__(self, null=False, non_blocking=False, ptds=False, *, priority=0):
        self.null, self.recorded, self.spoilt = null, None, False

    @classmethod
    def now(cls):
        return _streams[-1] if _streams else NULL_STREAM

    def __enter__(self):
        _streams.append(self)
        return self

    def __exit__(self, *error):
        _streams.pop()

    def synchronize(self):
        Count.sync("synchronize")

    def begin_capture(self, mode=None):
        if self.null:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream")
        if _allocator[-1] == POOL.malloc:
            raise CUDARuntimeError("a graph in the common pool: its arrays would be given away")
        self.recorded, self.spoilt = [], False
        held = [a for a in list(_owners.values()) if a._base is None]
        self.before = [(a, a._host.copy(), a._unwritten) for a in held]

    def end_capture(self):
        graph, self.recorded = Graph(self.recorded), None
        for result, _ in graph.steps:
            for a in _arrays_in(result):
                if a.flags.writeable and a.base is None:
                    a.reshape(-1, order="A").view(np.uint8)[...] = 0xFF
        for a, numbers, mask in self.before:
            a._host[...], a._unwritten = numbers, mask
        if self.spoilt:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        return graph

    def spoil(self, what):
        """What a stream that is being captured cannot do."""
        if self.recorded is not None:
            self.spoilt = True
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")

    def is_capturing(self):
        return self.recorded is not None


class Graph:
    """What was recorded; `launch` does it again, with the numbers that are there now."""

    def __init__(self, steps):
        self.steps = steps

    def launch(self, stream=None):
        Count.launches += 1
        for result, compute in self.steps:
            for old, new in zip(_arrays_in(result), _arrays_in(compute()), strict=True):
                if not np.may_share_memory(old, new):  # no view
                    old[...] = new


def _arrays_in(result):
    if isinstance(result, np.ndarray | np.generic):
        return [np.asarray(result)]
    return [a for r in result for a in _arrays_in(r)] if isinstance(result, tuple | list) else []


def done(compute):
    """compute(), and recorded if the current stream is being captured."""
    result, stream = compute(), Stream.now()
    result = np.asarray(result) if isinstance(result, np.generic) else result
    if stream.recorded is not None:
        stream.recorded.append((result, compute))
    return result


class Event:
    """A time; here, none passes."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        Count.sync("synchronize")


NULL_STREAM = Stream(null=True)


@contextlib.contextmanager
def using_allocator(allocator=None):
    _allocator.append(allocator)
    try:
        yield
    finally:
        _allocator.pop()


class MemoryPool:
    def malloc(self, size):
        """Given to using_allocator, which here notes the pool and takes memory from numpy."""
        raise AssertionError("only cupy's allocator calls this, and there is none")

    def used_bytes(self):
        return sum(a.nbytes for a in list(_owners.values()) if a._base is None)

    def total_bytes(self):
        return self.used_bytes()


POOL = MemoryPool()
_allocator = [POOL.malloc]


@contextlib.contextmanager
def allow_synchronize(allow):
    before, Count.allowed = Count.allowed, allow
    try:
        yield
    finally:
        Count.allowed = before


OWN = {"ndarray": ndarray, "empty": empty, "empty_like": empty_like, "array": array,
       "asarray": asarray, "ascontiguousarray": ascontiguousarray, "asnumpy": asnumpy,
       "matmul": matmul, "RawModule": RawModule}  # fmt: skip
DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool_",
    "complex64",
    "complex128",
    "floating",
    "integer",
    "inexact",
    "number",
    "generic",
    "dtype",
]


def _namespace(prefix):
    names = [n for n in SIGNATURES if n.startswith(prefix) and "." not in n[len(prefix) :]]
    space = np.linalg if prefix else np
    return {n[len(prefix) :]: function(n) for n in names if hasattr(space, n[len(prefix) :])}


@functools.cache
def module():
    """The stand-in as a module, with the submodules that the library imports."""
    cupy = types.ModuleType("cupy")
    vars(cupy).update(_namespace(""))
    vars(cupy).update({n: getattr(np, n) for n in DTYPES} | OWN)
    vars(cupy).update(
        newaxis=None, pi=np.pi, inf=np.inf, nan=np.nan, e=np.e, __version__="stand-in"
    )
    cupy.linalg = types.SimpleNamespace(**_namespace("linalg."), LinAlgError=np.linalg.LinAlgError)
    cupy.lib = types.SimpleNamespace(
        stride_tricks=types.SimpleNamespace(
            sliding_window_view=lambda x, *a, **k: wrap(
                np.lib.stride_tricks.sliding_window_view(host(x), *a, **k), x
            ),
            as_strided=lambda x, *a, **k: wrap(
                np.lib.stride_tricks.as_strided(host(x), *a, **k), x
            ),
        )
    )
    cupy.from_dlpack = lambda x: ndarray(x._host)
    cupy.get_default_memory_pool = lambda: POOL
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError)
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=Device,
        Stream=Stream,
        Event=Event,
        MemoryPool=MemoryPool,
        get_current_stream=Stream.now,
        get_elapsed_time=lambda start_event, end_event: 1.0,
        using_allocator=using_allocator,
        device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
    )
    return cupy


MODULES = ("cupy", "cupyx", "cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs",
           "cupy_backends.cuda.libs.cublas")  # fmt: skip


_real_cublas = backend.cublas_library


def remove():
    """Take back what install() changed beside the modules."""
    backend.cublas_library = _real_cublas


def install():
    """Put the stand-in where `import cupy`, `cupyx` and cublas are looked for."""
    cupy, cupyx = module(), types.ModuleType("cupyx")
    cupyx.allow_synchronize = allow_synchronize
    cupyx.DeviceSynchronized = DeviceSynchronized
    cublas = types.ModuleType("cupy_backends.cuda.libs.cublas")
    backend.cublas_library = lambda: CUBLAS
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = cublas
    packages = (types.ModuleType(name) for name in MODULES[2:4])
    modules = zip(MODULES, (cupy, cupyx, *packages, libs, cublas), strict=True)
    sys.modules.update(modules)
    return cupy
