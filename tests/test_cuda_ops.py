"""Every registered function on the device "cuda": value, gradient and its gradient as on the CPU.

Over the stand-in for cupy, where anything of numpy's that slips in is an error, and with
`pytest -m gpu` on a GPU.
"""

import os
import zlib

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import backend
from tinygrad_ml.tensor import Tensor
from tinygrad_ml.testing import registry
from tinygrad_ml.testing.strategies import Draw

EXAMPLES = 8 if os.environ.get("TINYGRAD_ML_PROFILE") == "thorough" else 1
ELSEWHERE = {"ops.to_device": "its spec moves to the CPU; see test_cuda_backend.py"}


def moved(x, device):
    """Arrays as they are on another device, anywhere in arguments and options."""
    if isinstance(x, np.ndarray | np.generic):
        return backend.to_device(np.asarray(x), device)
    if isinstance(x, list | tuple) and any(isinstance(i, np.ndarray) for i in x):
        return type(x)([moved(i, device) for i in x])
    return x


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def differentiated(spec, case, device):
    """[values, gradients, gradients of the gradients] for seeded cotangents."""
    leaves = [
        Tensor.leaf(moved(a, device), requires_grad=True) if is_float(a) else moved(a, device)
        for a in case.args
    ]
    xs = [x for x in leaves if isinstance(x, Tensor)]
    rng, found = np.random.default_rng(0), []
    with np.errstate(all="ignore"):
        y = spec.function(*leaves, **{k: moved(v, device) for k, v in case.options.items()})
        for _ in range(1 + spec.order):
            ys = y if isinstance(y, tuple | list) else (y,)
            found += ys
            recorded = [part for part in ys if part.requires_grad]
            if not recorded or not xs:
                break
            us = [Tensor.leaf(moved(rng.standard_normal(part.shape), device)) for part in recorded]
            total = sum((part * u).sum() for part, u in zip(recorded, us, strict=True))
            y = tuple(tg.grad(total, xs, create_graph=True))
    return [a.numpy() for a in found]


@pytest.mark.parametrize("name", sorted(registry.registry().keys() - ELSEWHERE))
def test_a_function_on_cuda(cuda, name):
    spec, start = registry.find(name), zlib.crc32(name.encode()) % 10**6
    for seed in range(start, start + EXAMPLES):
        case = registry.sample(spec, Draw(seed))
        found = differentiated(spec, case, "cuda")
        wanted = differentiated(spec, case, "cpu")
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            # sums may be in another order, and a GPU's functions are right to a few ulp
            scale = np.abs(b[np.isfinite(b)]).max(initial=0)
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10 * scale)
