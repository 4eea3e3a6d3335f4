"""The C library of the kernels: which one is loaded, its threads, and calls into it."""

import contextlib
import ctypes
import functools
import hashlib
import os
import sysconfig
import warnings
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
    """(level, library), chosen once: the best that was built, this CPU has and the ceiling allows.

    ValueError for a TINYGRAD_ML_KERNELS that is no level.
    """
    ceiling = os.environ.get("TINYGRAD_ML_KERNELS") or "amx"
    if ceiling not in CEILINGS:
        raise ValueError(
            f"TINYGRAD_ML_KERNELS: got {ceiling!r}, expected one of {', '.join(CEILINGS)}"
        )
    base = _open("base") if CEILINGS[ceiling] >= 0 else None
    if base is None:
        return "off", None
    best = min(CEILINGS[ceiling], base.best_level())
    for name in sorted(LEVELS, key=LEVELS.get, reverse=True):
        found = _open(name) if LEVELS[name] <= best else None
        if found is not None:
            found.set_threads(_threads)
            return name, found


def _open(name):
    """The library of one level, or None if it was not built, or not from these sources."""
    here = Path(__file__).parent
    path = here / f"_cpu_{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        return None
    try:
        with _short_spin():
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


@contextlib.contextmanager
def _short_spin():
    """While OpenMP's runtime loads, tell it that idle threads sleep at once.

    By default they spin for milliseconds after each kernel, on the cores that the next matrix
    product needs. What the user has set stands, and the environment is left as it was.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "0"  # a step of a small LLaMA: 90 ms at 10,000, 60 at 0
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


# ----------------------------------------------------------------------------------- threads


def _default_threads():
    """OMP_NUM_THREADS, or the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


_threads = _default_threads()
_forked = False


def set_num_threads(n):
    """The number of threads of the kernels, and of numpy's matrix products (OpenBLAS), from now on.

    Results do not depend on it. In a forked child the kernels keep to one thread, since OpenMP's
    threads do not survive a fork. ValueError unless n >= 1.
    """
    global _threads
    if int(n) != n or n < 1:
        raise ValueError(f"set_num_threads: got {n!r}, expected a whole number from 1 on")
    _threads = 1 if _forked else int(n)
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


def _after_fork():
    global _forked, _threads
    _forked, _threads = True, 1
    if loaded.cache_info().currsize and library() is not None:
        library().set_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ----------------------------------------------------------------------------------- calling


def runs(xp, *arrays):
    """Whether the C can run on these arrays: of numpy, not empty, all float32 or all float64."""
    if xp is not np or library() is None:
        return False
    if not all(isinstance(a, np.ndarray) for a in arrays):  # a numpy scalar has no address
        return False
    dtypes = {a.dtype for a in arrays}
    return len(dtypes) == 1 and dtypes <= {SINGLE, DOUBLE} and all(a.size for a in arrays)


def run(name, *args):
    """Call the C function `name` for the dtype of its first array.

    Arrays go by pointer (they must be contiguous), None as a null pointer, ints as int64 and
    floats as `real`.
    """
    dtype = args[0].dtype
    function = getattr(library(), f"{name}_{'float' if dtype == SINGLE else 'double'}")
    real = ctypes.c_float if dtype == SINGLE else ctypes.c_double
    function(*[_as_c(a, real) for a in args])


def _as_c(a, real):
    if isinstance(a, np.ndarray):
        return ctypes.c_void_p(a.ctypes.data)
    if isinstance(a, float):
        return real(a)
    return ctypes.c_void_p(None) if a is None else ctypes.c_int64(a)


def contiguous(*arrays):
    """Each array with its rows one after another in memory; a copy only where it is not so yet."""
    return [a if a.flags.c_contiguous else np.ascontiguousarray(a) for a in arrays]


def rows(a):
    """a with the entries of a row side by side; how the rows lie does not matter."""
    return a if a.strides[-1] == a.itemsize else np.ascontiguousarray(a)


def strides(a):
    """Entries from one batch, head and row of a (b, h, t, k) to the next."""
    return np.array(a.strides[:3]) // a.itemsize
