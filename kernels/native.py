"""The C library of the kernels: which one is loaded, its threads, and calls into it."""

import contextlib
import ctypes
import functools
import hashlib
import os
import sysconfig
import warnings
from contextvars import ContextVar
from pathlib import Path

import numpy as np

LEVELS = {"base": 0, "v3": 3, "v4": 4}
CEILINGS = {"off": -1, **LEVELS, "amx": 5}
SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


# ----------------------------------------------------------------------------------- loading


def level():
    """The instruction level in use: "v4", "v3" or "base"; "off" if no library is loaded."""
    return loaded()[0]


def library():
    """The compiled kernels, a ctypes library; None if there are none for this machine."""
    return loaded()[1]


@functools.cache
def loaded():
    """(level, library), chosen once: the best that was built, the CPU has, the ceiling allows."""
    base = _open("base") if _ceiling() >= 0 else None
    if base is None:
        return "off", None
    best = min(_ceiling(), base.best_level())
    for name in sorted(LEVELS, key=LEVELS.get, reverse=True):
        found = _open(name) if LEVELS[name] <= best else None
        if found is not None:
            found.set_threads(_threads)
            return name, found


@functools.cache
def tiles_allowed():
    """Whether this process may use AMX: level v4, no ceiling, and the system agrees."""
    return level() == "v4" and _ceiling() == CEILINGS["amx"] and bool(library().tiles_allowed())


@functools.cache
def _ceiling():
    """ValueError for a TINYGRAD_ML_KERNELS that is no level."""
    ceiling = os.environ.get("TINYGRAD_ML_KERNELS") or "amx"
    if ceiling not in CEILINGS:
        raise ValueError(
            f"TINYGRAD_ML_KERNELS: got {ceiling!r}, expected one of {', '.join(CEILINGS)}"
        )
    return CEILINGS[ceiling]


def _open(name):
    """The library of one level, or None if it was not built, or not from these sources."""
    here = Path(__file__).parent
    path = here / f"_cpu_{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"the C kernels cannot be loaded: {error}; numpy runs instead", stacklevel=2)
        return None
    found.built_from.restype = ctypes.c_char_p
    if found.built_from() != _digest(here):
        warnings.warn(
            f"{path.name} was built from other sources than those beside it; numpy runs instead. "
            "To build it again: pip install -e .",
            stacklevel=2,
        )
        return None
    return found


def _digest(folder):
    """Of the C sources, as setup.py hands it to the compiler."""
    sources = sorted(folder.glob("*.c")) + sorted(folder.glob("*.h"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest().encode()


# ----------------------------------------------------------------------------------- threads


def _default_threads():
    """OMP_NUM_THREADS, or the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


_threads = _default_threads()


def set_num_threads(n):
    """The number of threads of the kernels, and of numpy's matrix products (OpenBLAS), from now on.

    The kernels' results do not depend on it. ValueError unless n >= 1.
    """
    global _threads
    if int(n) != n or n < 1:
        raise ValueError(f"set_num_threads: got {n!r}, expected a whole number from 1 on")
    _threads = int(n)
    if loaded.cache_info().currsize and library() is not None:
        library().set_threads(_threads)
    for set_blas in _blas_setters():
        set_blas(int(n))


def get_num_threads():
    """The number of threads of the kernels."""
    return _threads


@functools.cache
def _blas_setters():
    """The set_num_threads functions of the OpenBLAS that numpy carries (none with another BLAS)."""
    found = []
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("*openblas*")):
        blas = ctypes.CDLL(str(path))
        for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads"):
            with contextlib.suppress(AttributeError):
                found.append(getattr(blas, name))
                break
    return found


# ----------------------------------------------------------------------------------- calling


def runs(xp, *arrays):
    """Whether the C can run on these arrays: of numpy, not empty, all float32 or all float64."""
    if xp is not np or library() is None:
        return False
    dtype = None
    for a in arrays:  # a loop: this is asked for every kernel, several hundred times a token
        if not isinstance(a, np.ndarray) or not a.size:  # a numpy scalar has no address
            return False
        if dtype is None:
            dtype = a.dtype
        elif a.dtype != dtype:
            return False
    return dtype in (SINGLE, DOUBLE)


def runs_bytes(xp, a):
    """Whether the C can read this array of bytes as it lies."""
    return (
        xp is np
        and library() is not None
        and type(a) in (np.ndarray, np.memmap)
        and a.dtype == np.uint8
        and a.size > 0
        and a.flags.c_contiguous
    )


def run(name, *args):
    """Call the C function `name` for the dtype of its first array.

    Arrays go by pointer (they must be contiguous, or their strides go too), None as a null
    pointer, ints as int64 and floats as `real`.
    """
    call(name, args[0].dtype, *args)


def call(name, dtype, *args):
    """`run` for a dtype that is named; arrays of C pass as they are."""
    function = _function(name, dtype, tuple(map(type, args)))
    function(*[address(a) if isinstance(a, np.ndarray) else a for a in args])
    noted = _noted.get()
    if noted is not None:
        noted.append((function, args))


_noted: ContextVar[list | None] = ContextVar("noted", default=None)


class Calls:
    """Calls of C that are noted while they run, to be made again without what Python did for them.

        calls = Calls()
        with calls.noted():
            f()
        calls.again()     # the same arrays, whose numbers may be others by now

    What numpy computes in between is not done again: whoever calls again must know that there is
    nothing of the kind. An array that C was given lives as long as its calls do.
    """

    def __init__(self):
        self._kept, self._ready = [], []

    @contextlib.contextmanager
    def noted(self):
        token = _noted.set(self._kept)
        try:
            yield
        finally:
            _noted.reset(token)
        self._ready = [(function, _converted(function, args)) for function, args in self._kept]

    def made(self, y):
        """Whether y lies in an array that the last call was given."""
        known = self._kept[-1][1] if self._kept else ()
        return any(owner(a) is owner(y) for a in known if isinstance(a, np.ndarray))

    def again(self):
        """Make the calls again, in their order."""
        for function, args in self._ready:
            function(*args)


def owner(a):
    """The array whose memory this is."""
    return a if a.base is None else a.base


def noting():
    """Whether calls are being noted: then what numpy would do sooner is better done in C too."""
    return _noted.get() is not None


def _converted(function, args):
    """Arguments as C has them, so that ctypes has nothing left to do."""

    def one(a, kind):
        if isinstance(a, ctypes.Array):
            return kind(ctypes.addressof(a))
        return kind(address(a) if isinstance(a, np.ndarray) else a)

    return tuple(map(one, args, function.argtypes))


@functools.cache
def _function(name, dtype, kinds):
    """The compiled function, told what the kinds of arguments are in C."""
    real = {SINGLE: ctypes.c_float, DOUBLE: ctypes.c_double}[dtype]
    found = library()[f"{name}_{'float' if dtype == SINGLE else 'double'}"]  # one of its own
    in_c = {int: ctypes.c_int64, float: real}
    found.argtypes = [in_c.get(kind, ctypes.c_void_p) for kind in kinds]
    found.restype = None
    return found


def address(a, pointer=ctypes.c_void_p.from_address, header=object.__basicsize__):
    """Where the numbers of a numpy array begin.

    The pointer is the first thing behind the object's header, by numpy's binary interface;
    a.ctypes.data says the same, eight times as slowly.
    """
    return pointer(id(a) + header).value


if address(_probe := np.zeros(2)[1:]) != _probe.ctypes.data:  # another Python, or numpy

    def address(a):  # type: ignore[misc]
        return a.ctypes.data


def contiguous(*arrays):
    """Each array with its rows one after another in memory; a copy only where it is not so yet."""
    return [a if a.flags.c_contiguous else np.ascontiguousarray(a) for a in arrays]


def rows(a):
    """a with the entries of a row side by side; how the rows lie does not matter."""
    return a if a.strides[-1] == a.itemsize else np.ascontiguousarray(a)


def empty_rows(a):
    """An empty array that lies as a does: heads split without a copy merge without one.

    numpy lays out one like a broadcast array with its rows spread; then it is a plain one.
    """
    y = np.empty_like(a)
    return y if y.strides[-1] == y.itemsize else np.empty(a.shape, a.dtype)


def strides(a):
    """Entries from one batch, head and row of a (b, h, t, k) to the next, as a C array."""
    return _steps(a.strides[:3], a.itemsize)


@functools.cache
def _steps(strides, size):
    return _Three(*[s // size for s in strides])


_Three = ctypes.c_int64 * 3
