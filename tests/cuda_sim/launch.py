"""Launches on the simulator, called as cupy's: RawModule, get_function, kernel(grid, block, args).

Stricter than cupy, where cupy would read rubbish: an argument must have the type that the kernel
declares, an array must be contiguous. With several `orders` of threads a launch is repeated from
the same arrays, and the results must be the same bits (or within `rtol` for kernels that are
stated to add in any order).
"""

import contextlib
import ctypes
import re
import subprocess
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import build

SHARED_LIMIT = 48 * 1024  # bytes; more only on request
SHARED_MOST = 227 * 1024
_orders = ContextVar("orders", default=((0,), 0.0))


class KernelError(RuntimeError):
    """A launch that CUDA leaves undefined, or would refuse."""


@contextlib.contextmanager
def orders(*which, rtol=0.0):
    """Every launch in these orders of threads: 0 upwards, 1 downwards, others are seeds."""
    token = _orders.set((which, rtol))
    try:
        yield
    finally:
        _orders.reset(token)


class Allocation(ctypes.Structure):
    _fields_ = [("first", ctypes.c_void_p), ("bytes", ctypes.c_long), ("grain", ctypes.c_int),
                ("constant", ctypes.c_int), ("written", ctypes.c_void_p),
                ("name", ctypes.c_char_p)]  # fmt: skip


class Launch(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
                ("shared_bytes", ctypes.c_long), ("order", ctypes.c_int), ("count", ctypes.c_int),
                ("allocations", ctypes.POINTER(Allocation)),
                ("arguments", ctypes.POINTER(ctypes.c_void_p)), ("run", ctypes.c_void_p),
                ("static_first", ctypes.c_void_p), ("static_last", ctypes.c_void_p)]  # fmt: skip


class Failure(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char * 700), ("file", ctypes.c_char * 300),
                ("line", ctypes.c_int), ("address", ctypes.c_void_p)]  # fmt: skip


class Window(NamedTuple):
    """A kernel is given `array`, and may touch `root`, on whose memory that lies."""

    array: np.ndarray
    root: np.ndarray
    strided: bool = False  # handed over as a pointer, its strides beside it


class RawModule:
    """cupy.RawModule(code=, options=, name_expressions=)."""

    def __init__(self, *, code, options=(), name_expressions=None):
        plain = re.findall(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?'
                           r"(\w+)", code)  # fmt: skip
        self.kernels = [*plain, *(name_expressions or ())]
        self.code, self.options, self._library = code, tuple(options), None

    def get_function(self, name):
        if name not in self.kernels:
            raise KernelError(f"no kernel {name!r} in a module of {', '.join(self.kernels)}")
        if self._library is None:
            path = build.library(self.code, self.options, self.kernels)
            self._library = ctypes.CDLL(str(path))
            self._library.path = path
        return RawKernel(name, self._library, self.kernels.index(name))


class RawKernel:
    def __init__(self, name, library, place):
        self.name, self._library = name, library
        signature = library[f"sim_signature_{place}"]
        signature.restype = ctypes.c_char_p
        self.signature = [s for s in signature().decode().split(",") if s]
        self._run = ctypes.cast(library[f"sim_run_{place}"], ctypes.c_void_p)
        self.max_dynamic_shared_size_bytes = SHARED_LIMIT

    def __call__(self, grid, block, args, *, shared_mem=0, written=(), reachable=()):
        """written: {id of an array: bools, a byte each}; reachable: arrays behind pointers."""
        grid, block = _three(grid), _three(block)
        self._check_sizes(grid, block, shared_mem)
        if len(args) != len(self.signature):
            raise KernelError(f"{self.name} takes {len(self.signature)} arguments, got {len(args)}")
        windows = [Window(a, a) if _is_memory(a) else a for a in args]
        values = [self._value(i, a) for i, a in enumerate(windows)]
        behind = [(a, False, "an array behind a pointer") for a in reachable]
        arrays = [*self._arrays(windows), *behind]
        self._in_each_order(grid, block, shared_mem, values, arrays, dict(written))

    def _check_sizes(self, grid, block, shared):
        if not all(n >= 1 for n in (*grid, *block)) or max(grid[1:]) > 65535:
            raise KernelError(
                f"{self.name}: a grid of {grid} and blocks of {block} cannot be launched"
            )
        if int(np.prod(block)) > 1024 or block[2] > 64:
            raise KernelError(f"{self.name}: a block of {block} has more than 1024 threads")
        most = min(self.max_dynamic_shared_size_bytes, SHARED_MOST)
        first, last = self._statics()
        if shared > most or (shared + last - first > SHARED_LIMIT and most == SHARED_LIMIT):
            raise KernelError(
                f"{self.name}: {shared} bytes of dynamic shared memory, {most} allowed"
            )

    def _value(self, i, a):
        """The argument as C takes it; KernelError if its type is not the kernel's."""
        wanted = self.signature[i]
        if ":" in wanted:
            if a is None:
                return ctypes.c_void_p(None)
            if not isinstance(a, Window):
                raise KernelError(f"{self.name}, argument {i}: an array is wanted, got {a!r}")
            a, _, strided = a
            if _letters(a.dtype) != wanted[2:]:
                raise KernelError(
                    f"{self.name}, argument {i}: the kernel takes {wanted[2:]}, got {a.dtype}"
                )
            if not (a.flags.c_contiguous or strided):
                raise KernelError(f"{self.name}, argument {i}: the array is not contiguous")
            return ctypes.c_void_p(a.ctypes.data)
        # as cupy hands them over: a Python float is a double, an int 64 bits
        scalar = a if isinstance(a, np.generic | np.ndarray) else np.asarray(a)[()]
        letters = f"V{a.nbytes}" if isinstance(a, np.ndarray) else _letters(scalar.dtype)
        if letters != wanted:
            raise KernelError(f"{self.name}, argument {i}: the kernel takes {wanted}, got "
                              f"{type(a).__name__} (pass np.float32, np.int32, ...)")  # fmt: skip
        return ctypes.create_string_buffer(scalar.tobytes(), max(16, scalar.nbytes))

    def _arrays(self, args):
        """(array, whether it is const, what to call it) for each pointer."""
        given = [(i, a, kind) for i, (a, kind) in enumerate(zip(args, self.signature, strict=True))
                 if isinstance(a, Window)]  # fmt: skip
        for i, (_, root, _), kind in given:
            if ":" in kind:
                changed = any(k.startswith("w:") and b.root is root for _, b, k in given)
                yield root, kind.startswith("r:") and not changed, f"argument {i}"

    def _in_each_order(self, grid, block, shared, values, arrays, written):
        which, rtol = _orders.get()
        before = [a.copy() for a, _, _ in arrays] if len(which) > 1 else []
        unwritten = {key: mask.copy() for key, mask in written.items()}
        first = None
        for order in which:
            for (a, constant, _), was in zip(arrays, before, strict=False):
                if not constant:
                    a[...] = was
            for key, mask in written.items():
                mask[...] = unwritten[key]
            self._once(order, grid, block, shared, values, arrays, written)
            found = [a.copy() for a, _, _ in arrays] if before else []
            first = found if first is None else first
            for (_, _, name), a, b in zip(arrays, first, found, strict=False):
                if not _same(a, b, rtol):
                    raise KernelError(f"{self.name}: {name} depends on the order of threads "
                                      f"(order {which[0]} against {order})")  # fmt: skip

    def _once(self, order, grid, block, shared, values, arrays, written):
        spans = _spans(arrays, written)
        allocations = (Allocation * max(len(spans), 1))(*spans)
        pointers = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        launch = Launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared, order,
                        len(spans), allocations, pointers, self._run, *self._statics())  # fmt: skip
        failure = Failure()
        simulator = ctypes.CDLL(str(build.runtime()))
        if simulator.sim_launch(ctypes.byref(launch), ctypes.byref(failure)):
            raise KernelError(self._explained(failure))

    def _statics(self):
        first, last = ctypes.c_void_p(), ctypes.c_void_p()
        self._library.sim_shared_range(ctypes.byref(first), ctypes.byref(last))
        return first.value, last.value

    def _explained(self, failure):
        """Kernel, thread, what happened and the line of the source."""
        text = failure.text.decode()
        if failure.address:
            site = self._line(failure.address)
        else:
            site = f"{failure.file.decode().rpartition('/')[2]}:{failure.line}"
        text = text.replace("{(nil)}", "")
        text = re.sub(r"\{(0x[0-9a-f]+)\}", lambda m: f"at {self._line(int(m[1], 16))}", text)
        return f"{self.name}, {site}: {text.strip()}"

    def _line(self, address):
        """file:line of a return address in the library, by its debugging information."""
        base = next(
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(self._library.path) in line
        )
        command = ["addr2line", "-e", str(self._library.path), "-i", hex(address - base - 1)]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        names = [re.sub(r" \(discriminator \d+\)", "", x.rpartition("/")[2]) for x in lines if x]
        return next((x for x in names if ".cu" in x), names[0] if names else "?")


def _spans(arrays, written):
    """One Allocation for each piece of memory: views of the same bytes are joined."""
    spans = {}
    for a, constant, name in arrays:
        if a.nbytes:
            mask = written.get(id(a))
            pointer = None if mask is None else mask.ctypes.data
            old = spans.get(a.ctypes.data)
            if old is not None and old.bytes >= a.nbytes:
                continue
            grain = min(a.itemsize, 4)
            spans[a.ctypes.data] = Allocation(
                a.ctypes.data, a.nbytes, grain, constant, pointer, name.encode()
            )
    return list(spans.values())


def _is_memory(a):
    """Whether it goes by pointer; a structured array is handed over by value."""
    return isinstance(a, np.ndarray) and a.dtype.names is None


def _three(shape):
    return (*map(int, shape), 1, 1)[:3]


def _letters(dtype):
    return "bf16" if dtype.name == "bfloat16" else f"{dtype.kind}{dtype.itemsize}"


def _same(a, b, rtol):
    if a.dtype.kind not in "fV" and a.dtype.name != "bfloat16":
        return np.array_equal(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    if rtol == 0:
        return np.array_equal(a, b, equal_nan=True)
    scale = np.nanmax(np.abs(a), initial=0.0)
    return np.allclose(a, b, rtol=rtol, atol=rtol * scale, equal_nan=True)
