"""What every estimator has: parameters, a printed form, scikit-learn's tags, and a file.

`__init__` stores its arguments under their names and nothing else; what `fit` learns ends in "_".
"""

import inspect
import json
import secrets
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import io
from ..backend import is_array, to_host
from .validation import check_fitted, check_matrix, feature_names

FORMAT = 1  # of the files that `save` writes


class Estimator:
    """get_params, set_params, save and load, from the signature of `__init__` alone."""

    @classmethod
    def _parameters(cls):
        """{name: default} of the arguments of __init__."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.name != "self"}

    def get_params(self, deep=True):
        """{name: value} of the arguments of __init__; deep: those of estimators within as well."""
        found = {}
        for name in self._parameters():
            value = found[name] = getattr(self, name)
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                inner = value.get_params()
                found.update({f"{name}__{key}": v for key, v in inner.items()})
        return found

    def set_params(self, **params):
        """Change arguments of __init__; `outer__inner` reaches an estimator within. Returns self.

        ValueError for a name that does not exist, before anything is changed.
        """
        known = self._parameters()
        unknown = [name for name in params if name.partition("__")[0] not in known]
        if unknown:
            raise ValueError(
                f"Invalid parameter {unknown[0]!r} for estimator {self}. "
                f"Valid parameters are: {sorted(known)}"
            )
        nested = {}
        for name, value in params.items():
            outer, _, inner = name.partition("__")
            if inner:
                nested.setdefault(outer, {})[inner] = value
            else:
                setattr(self, name, value)
        for outer, inner in nested.items():
            getattr(self, outer).set_params(**inner)
        return self

    def __repr__(self, N_CHAR_MAX=700):  # scikit-learn's pipelines pass their own length
        defaults = self._parameters()
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if not _same(getattr(self, name, default), default)
        ]
        text = f"{type(self).__name__}({', '.join(changed)})"
        return text if len(text) <= N_CHAR_MAX else text[: N_CHAR_MAX - 4] + "...)"

    # --- input, at fit and after it

    def _fit_matrix(self, X, **options):
        """X checked, its width and column names remembered; options as in check_matrix."""
        names = feature_names(X)
        X = check_matrix(X, columns=names, **options)
        self.n_features_in_ = X.shape[1]
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return X

    def _fitted_matrix(self, X, attribute, **options):
        """X checked against what `fit` saw; NotFittedError before `fit` set the attribute."""
        check_fitted(self, attribute)
        names, fitted = feature_names(X), getattr(self, "feature_names_in_", None)
        self._check_names(names, fitted)
        X = check_matrix(X, columns=names, **options)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        return X

    def _check_names(self, names, fitted):
        """The column names must be those of fit, in order; names on one side only are warned of."""
        kind = type(self).__name__
        if names is None and fitted is None:
            return
        if fitted is None:
            warnings.warn(
                f"X has feature names, but {kind} was fitted without feature names", stacklevel=5
            )
        elif names is None:
            warnings.warn(
                f"X does not have valid feature names, but {kind} was fitted with feature names",
                stacklevel=5,
            )
        elif len(names) != len(fitted) or (names != fitted).any():
            raise ValueError(_names_differ(list(names), list(fitted)))

    # --- scikit-learn

    def __sklearn_tags__(self):
        """What scikit-learn asks of an estimator; imported only when it asks."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), input_tags=InputTags()
        )

    # --- files

    def save(self, path):
        """Write parameters and fitted attributes to `path`: .safetensors, or .npz. No pickle.

        TypeError if a parameter is not plain data (a function, a Generator): set it after loading.
        """
        attributes = {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_")
        }
        arrays = {k: to_host(v) for k, v in attributes.items() if _is_numeric(v)}
        rest = {k: v for k, v in attributes.items() if k not in arrays}
        header = {
            "format": FORMAT,
            "estimator": type(self).__name__,
            "parameters": {k: _plain(v, k) for k, v in self.get_params(deep=False).items()},
            "attributes": {k: _plain(v, k) for k, v in rest.items()},
        }
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        write_arrays(path, {"estimator": text, **arrays})

    @classmethod
    def load(cls, path):
        """The estimator that `save` wrote. ValueError if the file holds another one."""
        arrays = read_arrays(path)
        header = _read_header(arrays, path)
        if header["estimator"] != cls.__name__:
            raise ValueError(f"load: {path} holds a {header['estimator']}, not a {cls.__name__}")
        known = cls._parameters()
        unknown = sorted(set(header["parameters"]) - set(known))
        if unknown:
            raise ValueError(f"load: {path} has unknown parameters {unknown} for {cls.__name__}")
        self = cls(**{k: _unplain(v) for k, v in header["parameters"].items()})
        for name, value in header["attributes"].items():
            _set_learned(self, name, _unplain(value), path)
        for name, value in arrays.items():
            _set_learned(self, name, value[()] if value.ndim == 0 else value, path)
        return self


def _set_learned(estimator, name, value, path):
    if not name.isidentifier() or not name.endswith("_") or name.startswith("_"):
        raise ValueError(f"load: {path} holds {name!r}, which is no fitted attribute")
    setattr(estimator, name, value)


def _same(a, b):
    """Whether a parameter is still its default, whatever it is."""
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except ValueError:  # arrays
        return False


def _names_differ(names, fitted):
    """scikit-learn's message for columns that are not those of fit."""
    message = "The feature names should match those that were passed during fit.\n"
    unexpected, absent = sorted(set(names) - set(fitted)), sorted(set(fitted) - set(names))
    if unexpected:
        message += "Feature names unseen at fit time:\n" + _listed(unexpected)
    if absent:
        message += "Feature names seen at fit time, yet now missing:\n" + _listed(absent)
    if not (unexpected or absent):
        message += "Feature names must be in the same order as they were in fit.\n"
    return message


def _listed(names, most=5):
    return "".join(f"- {n}\n" for n in names[:most]) + ("- ...\n" if len(names) > most else "")


# ------------------------------------------------------------------------------------- files


def _is_numeric(value):
    return is_array(value) and value.dtype.kind in "biuf"


def _plain(value, name):
    """value as something that JSON holds; arrays of strings and tuples are marked as such."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_array(value):
        value = to_host(value)
        kind = "object" if value.dtype.kind == "O" else value.dtype.str
        return {"array": _plain(value.tolist(), name), "dtype": kind}
    if isinstance(value, tuple):
        return {"tuple": [_plain(v, name) for v in value]}
    if isinstance(value, list):
        return [_plain(v, name) for v in value]
    if isinstance(value, dict):
        return {"dict": [[_plain(k, name), _plain(v, name)] for k, v in value.items()]}
    raise TypeError(
        f"save: {name} is a {type(value).__name__}, which is not plain data; "
        f"set {name} to None or to a name before saving, and again after loading"
    )


def _unplain(value):
    if isinstance(value, list):
        return [_unplain(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(_unplain(value["array"]), dtype=value["dtype"])
    if "tuple" in value:
        return tuple(_unplain(v) for v in value["tuple"])
    return {_unplain(k): _unplain(v) for k, v in value["dict"]}


def _read_header(arrays, path):
    try:
        header = json.loads(bytes(arrays.pop("estimator")).decode())
        version = header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"load: {path} was not written by an estimator's save") from error
    if version != FORMAT:
        raise ValueError(f"load: {path} has format {version}, this version reads {FORMAT}")
    return header


def _kind(path):
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: got {str(path)!r}, expected a name ending in .npz or .safetensors")
    return suffix


def write_arrays(path, arrays):
    """Arrays by name to a .npz or .safetensors file: a temporary name first, then renamed."""
    if _kind(path) == ".safetensors":
        io.save(path, arrays)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.npz")
    try:
        np.savez(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path):
    """{name: array} of a .npz or .safetensors file; nothing in it is ever unpickled."""
    if _kind(path) == ".safetensors":
        return {name: np.array(a) for name, a in io.load(path).items()}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"load: {path} is damaged or no .npz file ({error})") from error


# ---------------------------------------------------------------------------------- progress


@contextmanager
def progress(total, description, verbose, unit="it"):
    """A tqdm bar if verbose, else something silent; `bar.update(1)`, `bar.set_postfix(...)`."""
    if not verbose:
        yield _Silent()
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, unit=unit) as bar:
        yield bar


class _Silent:
    def update(self, n=1):
        pass

    def set_postfix(self, *args, **values):
        pass
