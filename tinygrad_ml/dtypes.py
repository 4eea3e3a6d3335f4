"""The dtypes there are, and which one a result gets."""

import numpy as np

try:
    import ml_dtypes
except ImportError:  # the engine itself needs numpy alone
    ml_dtypes = None  # type: ignore[assignment]

bool_ = np.dtype("bool")
int8, int16, int32, int64 = (np.dtype(n) for n in ("int8", "int16", "int32", "int64"))
uint8, uint16, uint32, uint64 = (np.dtype(n) for n in ("uint8", "uint16", "uint32", "uint64"))
float16, float32, float64 = (np.dtype(n) for n in ("float16", "float32", "float64"))
bfloat16 = np.dtype(ml_dtypes.bfloat16) if ml_dtypes else None

HALF = frozenset(d for d in (float16, bfloat16) if d is not None)
FLOAT = HALF | {float32, float64}
INTEGER = frozenset({int8, int16, int32, int64, uint8, uint16, uint32, uint64})
SUPPORTED = FLOAT | INTEGER | {bool_}


def as_dtype(dtype):
    """The numpy dtype of a name, a scalar type or a dtype; TypeError if it is none of ours."""
    if dtype == "bfloat16":
        if bfloat16 is None:
            raise TypeError("dtype bfloat16 needs ml_dtypes: pip install ml_dtypes")
        return bfloat16
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in SUPPORTED:
        names = ", ".join(sorted(d.name for d in SUPPORTED))
        raise TypeError(f"dtype: got {dtype!r}, expected one of {names}")
    return found


def is_float(dtype):
    """True for the dtypes that can carry a gradient."""
    return dtype in FLOAT


def promote(*dtypes):
    """The dtype of a result of arrays of these dtypes: NumPy's rules, and bfloat16 beside them.

    bfloat16 stands where float16 stands (with a small integer it stays itself, with int64 it
    becomes float64); bfloat16 with float16 is float32, the smallest dtype that holds both.
    Python scalars are weak and are not listed: half times 2.0 stays half.
    """
    if bfloat16 not in dtypes or bfloat16 is None:
        return np.result_type(*dtypes)
    if float16 in dtypes:
        return np.result_type(float32, *(d for d in dtypes if d not in HALF))
    result = np.result_type(*(float16 if d == bfloat16 else d for d in dtypes))
    return bfloat16 if result == float16 else result


def finfo(dtype):
    """Machine limits of a floating dtype (eps, tiny, max), as np.finfo; bfloat16 too."""
    dtype = as_dtype(dtype)
    return ml_dtypes.finfo(dtype) if dtype == bfloat16 else np.finfo(dtype)
