"""The library's own tests with everything on the device "cuda", which is the stand-in for cupy.

    TINYGRAD_ML_TEST_DEVICE=cuda pytest -n0 tests/test_functional.py

What is made without naming a device is made there. The line is drawn between the library and its
callers: a test may hand numpy's arrays to a function that takes Tensors, and may read an array of
the device as if it were numpy's; in the library itself either is an error, as with cupy.

TINYGRAD_ML_TEST_SAMPLE=n   every n-th test, the same ones on every run
TINYGRAD_ML_TEST_SIMULATE=1 the kernels too, on the simulator, which is slow: they have tests of
                            their own, and without it their definitions run
"""

import functools
import importlib
import os
import pkgutil
import re
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest

from . import standin

ROOT = Path(__file__).parents[2]
LIBRARY = (str(ROOT / "tinygrad_ml"), str(ROOT / "kernels"))
CHECKER = "the checker differentiates numerically, on the host"
MEMORY = "about numpy's memory: views, read-only arrays, sharing"
EXCLUDED = {  # what a test's name begins with: why it cannot run on a GPU
    r"test_functional.py::test_questions_of_two_are_plain": "the plain arrays are cupy's",
    r"test_tensor.py::test_arrays_meet_tensors": "the plain arrays are cupy's",
    r"test_tensor.py::test_repr_tells": "it tells another device",
    r"test_tensor.py::test_dlpack_shares_memory": "numpy cannot look at a GPU's memory",
    r"test_nn.py::test_a_state_dict_is_a_copy_or_on_demand": MEMORY,
    r"test_nn.py::test_nothing_happens_where_nothing": "it moves to the CPU, where nothing lies",
    r"test_autograd.py::test_detect_anomaly_names": "the door to the library is one more line",
    r"test_autograd.py::test_a_kernel_computes": "its kernel is written for numpy's arrays",
    r"test_autograd.py::test_a_stale_value_stops_a_fused": "its kernel is for numpy's arrays",
    r"test_functional.py::test_value.swiglu": "to the bit of the other device's kernel",
    r"test_optim.py::test_read_only_memory": MEMORY,
    r"test_optim.py::test_half_gradients_are_widened_a_few": "tracemalloc sees the host's memory",
    r"test_gradients.py::test_shaped.to_device": "it moves to the CPU",
    r"test_llama.py::test_every_gradient_of_the_model": CHECKER,
    r"test_peft.py::test_gradients_to_the_second_order": CHECKER,
    r"test_som.py::test_gradients_of_the_soft_map": CHECKER,
    r"test_som.py::test_samples_start_with": "it hashes the entries of an array",
    r"test_formats.py::test_llama2c_version_2": "a file's bytes are made on the host",
    r"test_nn.py::test_linear": "to the bit of numpy's product",
    r"test_logistic.py::test_sparse_input_equals_dense": "scipy's matrices lie on the host",
    r"test_logistic.py::test_inverse_of_a_badly": "it is told that it works on numpy's arrays",
    r"test_logistic.py::test_objective_equals_the_der": "it reads what an objective has inside",
    r"test_logistic.py::test_firth_gradient_is_that": "it reads what an objective has inside",
}


def begin():
    """Put the stand-in in, and make it the default device of the library."""
    import tinygrad_ml as tg

    for found in pkgutil.walk_packages([LIBRARY[0]], "tinygrad_ml."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    assert tg.tensor([1.0]).device == "cpu"
    standin.install()
    standin.admit(lambda frame: not is_library(frame))
    if not os.environ.get("TINYGRAD_ML_TEST_SIMULATE"):
        _only_products()
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "tinygrad_ml"]
    for module in modules:
        for f in _functions(module):
            _default_to_cuda(f)
    for module in modules:
        _open_to_numpy(module)
    assert tg.tensor([1.0]).device == "cuda:0"


def is_library(frame):
    return frame.f_code.co_filename.startswith(LIBRARY)


def _only_products():
    """No kernel of ours has anything to do, but cublas has."""
    from tinygrad_ml.kernels import cuda

    runs = cuda.runs
    halves = ("float16", "bfloat16")
    cuda.runs = lambda xp, *a, dtypes=(): dtypes[:2] == halves and runs(xp, *a, dtypes=dtypes)


# ---------------------------------------------------------------------------- the default device


def _functions(module):
    """The functions of a module, and the methods of its classes."""
    for value in list(vars(module).values()):
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            members = (getattr(m, "__func__", m) for m in vars(value).values())
            yield from (m for m in members if isinstance(m, types.FunctionType))


def _default_to_cuda(function):
    """device=None (or "cpu") in its signature becomes device="cuda"."""
    if function.__module__.endswith((".cli", ".backend")):
        return
    if (function.__kwdefaults__ or {}).get("device", 0) in (None, "cpu"):
        function.__kwdefaults__["device"] = "cuda"
    defaults = list(function.__defaults__ or ())
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    for i, name in enumerate(reversed(names[len(names) - len(defaults) :]), start=1):
        if name == "device" and defaults[-i] in (None, "cpu"):
            defaults[-i] = "cuda"
    function.__defaults__ = tuple(defaults) or None


# ------------------------------------------------------------------ numpy's arrays at the door


def _open_to_numpy(module):
    """Functions and methods of this module take numpy's arrays along, if a test calls them."""
    from tinygrad_ml.autograd import Op
    from tinygrad_ml.estimators.base import Estimator
    from tinygrad_ml.tensor import Tensor

    always = ".estimators" in module.__name__
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("__"):
            setattr(module, name, _door(value, always))
    for kind in [v for v in vars(module).values() if isinstance(v, type)]:
        if kind in (Op, Tensor) or issubclass(kind, Estimator):
            _open_methods(kind, issubclass(kind, Estimator))


def _open_methods(kind, always):
    skipped = {"__init__", "__new__", "__reduce__", "__getattribute__", "get_params", "set_params"}
    for name, value in list(vars(kind).items()):
        if isinstance(value, types.FunctionType) and name not in skipped:
            setattr(kind, name, _door(value, always))


@functools.cache
def _door(function, always):
    """function, with numpy's arrays moved to the device when a test gives them beside a Tensor."""
    if getattr(function, "opened", False):
        return function

    @functools.wraps(function)
    def call(*args, **options):
        if not is_library(sys._getframe(1)):
            given = (*args, *options.values())
            if any(map(_is_there, given)) or (always and not any(map(_is_value, given))):
                args = [_taken(a) for a in args]
                options = {name: _taken(o) for name, o in options.items()}
        return function(*args, **options)

    call.opened = True
    return call


def _is_value(x):
    return hasattr(x, "birth")


def _is_there(x):
    if isinstance(x, list | tuple):
        return any(map(_is_there, x))
    return isinstance(x.data if _is_value(x) else x, standin.ndarray)


def _taken(x):
    if isinstance(x, np.ndarray) and x.dtype.kind in "biufV" and x.dtype.names is None:
        return standin.array(x)
    if isinstance(x, list | tuple) and any(isinstance(i, np.ndarray) for i in x):
        return type(x)(map(_taken, x))
    return x


# --------------------------------------------------------------------------------- which tests run


def select(items):
    """Marks of what is excluded, with its reason, and of what a sample leaves out."""
    every = int(os.environ.get("TINYGRAD_ML_TEST_SAMPLE", 1))
    for item in items:
        name = item.nodeid.partition("/")[2] if "/" in item.nodeid else item.nodeid
        reason = next((why for start, why in EXCLUDED.items() if re.match(start, name)), None)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"on cuda: {reason}"))
        elif zlib.crc32(name.encode()) % every:
            item.add_marker(pytest.mark.skip(reason="on cuda: not in the sample"))
