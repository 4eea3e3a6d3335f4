"""Checks at the door of every estimator: what is wrong, where, and what was expected.

Arrays stay where they are: numpy in, numpy on; cupy in, cupy on.
"""

import sys
import warnings
from numbers import Integral, Real

import numpy as np

from ..backend import device_of, is_array, namespace, to_host


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked for results before `fit`."""


class ConvergenceWarning(UserWarning):
    """A solver stopped before it reached its tolerance."""


class DataConversionWarning(UserWarning):
    """The input was read in another shape or type than it had."""


def native(kind):
    """The exception or warning `kind`, which is also scikit-learn's of that name if it is loaded.

    Whoever catches or filters scikit-learn's class has imported it, and so catches ours.
    """
    exceptions = sys.modules.get("sklearn.exceptions")
    theirs = getattr(exceptions, kind.__name__, None)
    if theirs is None:
        return kind
    return type(kind.__name__, (kind, theirs), {"__doc__": kind.__doc__, "__module__": __name__})


# ---------------------------------------------------------------------------------- matrices


def is_sparse(X):
    """True for a scipy.sparse matrix or array; scipy is not imported for it."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(X)


def check_matrix(X, name="X", *, missing=False, sparse=False, copy=False, columns=None):
    """X as a matrix of floats (n samples, d features); float32 and float64 are kept.

    missing  NaN is allowed (inf never is)
    sparse   a scipy.sparse matrix is allowed, and comes back as CSR
    columns  names of the features, for the messages

    ValueError names the argument and the place; TypeError for what is not numbers.
    """
    if is_sparse(X):
        return _check_sparse(X, name, sparse, columns)
    X = _as_array(X, name)
    if X.ndim != 2:
        hint = f"{name}.reshape(-1, 1) if it is one feature, {name}.reshape(1, -1) if one sample"
        raise ValueError(
            f"{name}: expected a 2D array (samples, features), got a {X.ndim}D array of shape "
            f"{X.shape}. Reshape your data: {hint}"
        )
    _check_not_empty(X, name)
    X = _as_floats(X, name, copy)
    _check_finite(X, name, missing, columns)
    return X


def _as_array(X, name):
    if not is_array(X):
        try:
            X = np.asarray(X)
        except ValueError as error:  # rows of unequal length
            raise ValueError(f"{name}: not a rectangular array ({error})") from error
    if X.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {X.dtype}")
    return X


def _as_floats(X, name, copy=False):
    """float32 and float64 as they are, half types as float32, everything else as float64."""
    dtype = X.dtype
    if dtype not in (np.float32, np.float64):
        dtype = np.float32 if dtype.itemsize == 2 and dtype.kind in "fV" else np.float64
    try:
        return X.astype(dtype, copy=copy)
    except TypeError as error:
        raise TypeError(
            f"{name}: every argument must be a string or a real number to become a float ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read as numbers ({error})") from error


def _check_not_empty(X, name):
    samples, features = X.shape
    if samples == 0:
        raise ValueError(f"{name}: 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
    if features == 0:
        raise ValueError(
            f"{name}: 0 feature(s) (shape={X.shape}) while a minimum of 1 is required."
        )


def _check_finite(X, name, missing, columns):
    """ValueError that names the first NaN or inf."""
    xp = namespace([X])
    with np.errstate(over="ignore", invalid="ignore"):
        if bool(xp.isfinite(X.sum())):  # one NaN or inf makes the sum one: no mask is needed
            return
    bad = xp.isinf(X) if missing else ~xp.isfinite(X)
    if not bool(bad.any()):
        return
    row, column = (int(i) for i in divmod(int(to_host(bad.argmax())), X.shape[1]))
    value = "NaN" if np.isnan(float(X[row, column])) else "inf (infinity)"
    raise ValueError(
        f"{name}: contains {value}, first in row {row}, column {column_name(column, columns)}; "
        "drop such rows or fill them in"
    )


def column_name(j, columns=None):
    """How messages call the j-th feature: by its name if it has one."""
    return str(j) if columns is None else f"{j} ({str(columns[j])!r})"


def _check_sparse(X, name, allowed, columns):
    if not allowed:
        raise TypeError(f"{name}: sparse input is not supported here; pass {name}.toarray()")
    if X.ndim != 2:
        raise ValueError(f"{name}: expected a 2D sparse matrix, got shape {X.shape}")
    if X.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {X.dtype}")
    _check_not_empty(X, name)
    X = X.tocsr()
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float64)
    if not np.isfinite(X.data).all():
        column = int(X.indices[~np.isfinite(X.data)][0])
        raise ValueError(
            f"{name}: contains NaN or inf (infinity), in column {column_name(column, columns)}"
        )
    return X


def feature_names(X):
    """The column names of a data frame, or None (also for columns that are plain numbers)."""
    columns = getattr(X, "columns", None)
    if columns is None:
        return None
    names = list(columns)
    strings = [isinstance(c, str) for c in names]
    if not any(strings):
        return None
    if not all(strings):
        kinds = sorted({type(c).__name__ for c in names})
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {kinds} as feature name / column name types. If you want feature names to "
            "be stored and validated, you must convert them all to strings, by using "
            "X.columns = X.columns.astype(str) for example."
        )
    return np.asarray(names, dtype=object)


# ------------------------------------------------------------------- targets, weights, random


def check_vector(y, name="y", *, length=None, like=None):
    """y as one axis, of `length`; a column (n, 1) is taken with a warning.

    like  an array whose device y must share (numbers only)
    """
    if y is None:
        raise ValueError(
            f"{name}: this estimator requires {name} to be passed, but the target {name} is None"
        )
    if is_sparse(y):
        raise TypeError(f"{name}: sparse targets are not supported; pass {name}.toarray().ravel()")
    y = _as_array(y, name)
    if y.ndim == 2 and y.shape[1] == 1:
        warnings.warn(
            f"A column-vector {name} was passed when a 1d array was expected: pass {name}.ravel()",
            native(DataConversionWarning),
            stacklevel=4,
        )
        y = y.reshape(-1)
    if y.ndim != 1:
        raise ValueError(f"{name}: y should be a 1d array, got an array of shape {y.shape} instead")
    if length is not None and len(y) != length:
        raise ValueError(
            f"{name}: got {len(y)} values for {length} samples; inconsistent numbers of samples"
        )
    if y.dtype.kind == "f" and not bool(namespace([y]).isfinite(y).all()):
        raise ValueError(f"{name}: Input {name} contains NaN or inf (infinity)")
    if y.dtype.kind == "O":
        _check_object_labels(y, name)
    if like is not None and y.dtype.kind in "biuf" and device_of(y) != device_of(like):
        y = namespace([like]).asarray(to_host(y))
    return y


def _check_object_labels(y, name):
    for i, v in enumerate(y):
        if v is None or (isinstance(v, Real) and v != v):
            raise ValueError(f"{name}: Input {name} contains NaN (a missing label, in row {i})")


def check_weights(sample_weight, X, name="sample_weight"):
    """One weight >= 0 for each row of X, in float64 beside X; None gives ones."""
    n = X.shape[0]
    xp = np if is_sparse(X) else namespace([X])
    if sample_weight is None:
        return xp.ones(n)
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n, float(sample_weight))
    weight = _as_array(sample_weight, name)
    if weight.ndim != 1:
        raise ValueError(f"{name}: Sample weights must be 1D array or scalar, got {weight.ndim}D")
    if len(weight) != n:
        raise ValueError(f"{name}: got shape {weight.shape}, expected ({n},), one for each sample")
    weight = xp.asarray(_as_floats(weight, name)).astype(np.float64, copy=False)
    if not bool(xp.isfinite(weight).all()):
        raise ValueError(f"{name}: contains NaN or inf (infinity)")
    if bool((weight < 0).any()):
        raise ValueError(f"{name}: Negative values in data: weights must be >= 0")
    if not bool((weight > 0).any()):
        raise ValueError(f"{name}: every weight is zero, so there is no sample")
    return weight


def check_random_state(random_state, name="random_state"):
    """A numpy Generator: a fresh one for None, a seeded one for an int, a Generator as it is."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if random_state is None or isinstance(random_state, Integral):
        if random_state is not None and random_state < 0:
            raise ValueError(f"{name}: got {random_state}, expected an int >= 0")
        return np.random.default_rng(random_state)
    raise TypeError(
        f"{name}: got {type(random_state).__name__}, expected None, an int or a numpy Generator "
        "(np.random.default_rng(seed))"
    )


def check_number(value, name, *, low=None, high=None, open_low=False, integer=False):
    """value as a number within its bounds, or an error that names it.

    TypeError for what is no number, ValueError outside the bounds.
    """
    kind = Integral if integer else Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        wanted = "an int" if integer else "a number"
        raise TypeError(f"{name}: got {value!r}, expected {wanted}")
    below = low is not None and (value <= low if open_low else value < low)
    if below or (high is not None and value > high) or value != value:
        lower = "" if low is None else f" {'>' if open_low else '>='} {low}"
        upper = "" if high is None else f" <= {high}"
        raise ValueError(f"{name}: got {value!r}, expected a number{lower}{upper}")
    return value


def check_choice(value, name, choices):
    """value, if it is one of the choices."""
    if value not in choices:
        names = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name}: got {value!r}, expected one of {names}")
    return value


def check_fitted(estimator, attribute):
    """NotFittedError unless `fit` has set the attribute."""
    if not hasattr(estimator, attribute):
        name = type(estimator).__name__
        raise native(NotFittedError)(f"This {name} instance is not fitted yet; call fit first")
