"""Each CUDA kernel through the functions that use it, against the definition in float64.

On the simulator of CUDA, in several orders of threads; with `pytest -m gpu`, the same on a GPU.
"""

import contextlib
import sys

import cuda_sim
import ml_dtypes
import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import functional as F
from tinygrad_ml import optim, quant

ORDERS = (0, 1, 5)  # threads upwards, downwards and shuffled: the same bits
# of the largest entry: a rounding at the end for halves, some 8 in sums of 40 for the others
TOLERANCE = {"float32": 1e-6, "float64": 2e-15, "float16": 1e-3, "bfloat16": 8e-3}
DTYPES = ["float32", "bfloat16", *(pytest.param(d, marks=pytest.mark.thorough)
                                   for d in ("float16", "float64"))]  # fmt: skip


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request):
    """The device "cuda": the stand-in over the simulator, or what is there."""
    if request.param == "real":
        yield contextlib.nullcontext
        return
    if cuda_sim.available() is not None:
        pytest.skip(cuda_sim.available())
    from cuda_sim import standin

    before = {name: sys.modules.get(name) for name in standin.MODULES}
    standin.install()
    standin.Count.reset()
    yield lambda: cuda_sim.orders(*ORDERS)
    for name, module in before.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    assert standin.Count.launches > 0, "no kernel ran"


def numbers(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def indices(n, *shape):
    return np.random.default_rng(shape).integers(0, n, shape)


def targets(v, *shape):
    found = indices(v, *shape)
    return np.where(numbers(*shape) > 1, -100, found)


CASES = {
    "rms_norm": (F.rms_norm, numbers(5, 72), numbers(72)),
    "rms_norm, odd width": (F.rms_norm, numbers(2, 3, 33), numbers(33)),
    "rms_norm, many rows": (F.rms_norm, numbers(140, 8), numbers(8)),
    "add_rms_norm": (F.add_rms_norm, numbers(5, 40), numbers(5, 40, seed=1), numbers(40)),
    "rope": (F.rope, numbers(2, 3, 5, 8), numbers(5, 4), numbers(5, 4, seed=1)),
    "swiglu": (F.swiglu, numbers(3, 50), numbers(3, 50, seed=1)),
    "swiglu, wide": (F.swiglu, numbers(40, 64) * 30, numbers(40, 64, seed=1)),
    "dropout": (lambda x: F.dropout(x, 0.3, np.random.default_rng(3)), numbers(3, 401)),
    "dropout of all": (lambda x: F.dropout(x, 1.0, np.random.default_rng(3)), numbers(3, 40)),
    "embedding": (F.embedding, numbers(7, 12), indices(7, 3, 9)),
    "linear_cross_entropy": (F.linear_cross_entropy, numbers(3, 5, 16), numbers(300, 16),
                             targets(300, 3, 5)),
    "linear_cross_entropy, each": (lambda *a: F.linear_cross_entropy(*a, reduction="none"),
                                   numbers(7, 8), numbers(40, 8), targets(40, 7)),
    "linear_cross_entropy of none": (F.linear_cross_entropy, numbers(3, 8), numbers(9, 8),
                                     np.full(3, -100)),
    "product of batches": (lambda a, b: F.rms_norm(a @ b, b[0, 0]), numbers(2, 3, 5, 8),
                           numbers(3, 8, 4)),
    "product with a transpose": (lambda a, b: F.swiglu(a @ b.swapaxes(-1, -2), a @ b.mT),
                                 numbers(2, 5, 8), numbers(2, 4, 8)),
}  # fmt: skip


def evaluated(f, arrays, device):
    """Values and gradients of f at these arrays, as float64 on the host, for cotangents of ours."""
    xs = [tg.tensor(a, device=device, requires_grad=a.dtype.kind not in "iu") for a in arrays]
    y = f(*xs)
    ys = y if isinstance(y, tuple) else (y,)
    gs = [tg.tensor(numbers(*part.shape, seed=9).astype(arrays[0].dtype), device=device)
          for part in ys]  # fmt: skip
    wanted = [x for x in xs if x.requires_grad]
    total = sum(
        (part.astype("float64") * g.astype("float64")).sum() for part, g in zip(ys, gs, strict=True)
    )
    found = [*ys, *tg.grad(total, wanted)]
    return [a.numpy().astype(np.float64) for a in found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(cuda, case, dtype):
    f, *arrays = CASES[case]
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    given = [a if a.dtype.kind == "i" else a.astype(dtype) for a in arrays]
    with cuda():
        found = evaluated(f, given, "cuda")
    with tg.use_kernels(False):
        wanted = evaluated(f, [a.astype("f8") if a.dtype.kind != "i" else a for a in given], "cpu")
    for a, b in zip(found, wanted, strict=True):
        bound = TOLERANCE[dtype.name] * max(np.abs(b).max(), 1e-30)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def test_dropout_has_the_bits_of_the_cpu(cuda):
    x = numbers(1000).astype("f4")
    rngs = [np.random.default_rng(5) for _ in range(2)]
    with cuda():
        y = F.dropout(tg.tensor(x, device="cuda"), 0.25, rngs[0])
    np.testing.assert_array_equal(y.numpy(), F.dropout(tg.tensor(x), 0.25, rngs[1]).numpy())


def test_heads_are_turned_as_they_lie(cuda):
    """A transposed x needs no copy, and the result merges without one."""
    x, table = numbers(2, 5, 3, 8).astype("f4"), numbers(5, 4).astype("f4")
    on_device = [tg.tensor(a, device="cuda") for a in (x, table)]
    y = F.rope(on_device[0].swapaxes(1, 2), on_device[1], on_device[1])
    wanted = F.rope(tg.tensor(x).swapaxes(1, 2), tg.tensor(table), tg.tensor(table))
    np.testing.assert_allclose(y.numpy(), wanted.numpy(), rtol=0, atol=1e-6)
    assert y.swapaxes(1, 2).data.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adamw_steps_as_on_the_cpu(cuda, dtype):
    """60 parameters: more than one launch takes; one of more than a block, one of one entry."""
    shapes = [(5000,), (1,), (3, 7), *[(2, n) for n in range(1, 58)]]

    def trained(device, dtype):
        weights = [tg.tensor(numbers(*s).astype(dtype), device=device, requires_grad=True)
                   for s in shapes]  # fmt: skip
        optimizer = optim.AdamW(weights, lr=0.1, weight_decay=0.1)
        for step in range(2):
            for w, s in zip(weights, shapes, strict=True):
                w.grad = tg.tensor(numbers(*s, seed=step + 1).astype(dtype), device=device)
            optimizer.step()
        return [w.numpy() for w in weights]

    with cuda():
        found = trained("cuda", dtype)
    with tg.use_kernels(False):
        wanted = trained("cpu", "float64")
    for a, b in zip(found, wanted, strict=True):  # 4 ulp of weights up to 4 and steps of 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("format, size", [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20)])
def test_products_with_quantised_weights(cuda, format, size):
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (11, 3, size), np.uint8)
    scales = 2 if format == "Q4_1" else 1
    blocks[..., : 2 * scales] = (
        rng.standard_normal((11, 3, scales)).astype("f2").view(np.uint8).reshape(11, 3, -1)
    )
    blocks, x = blocks.reshape(11, -1), numbers(2, 96).astype("f4")
    with cuda():
        y = quant.quantized_matmul(
            tg.tensor(x, device="cuda"), blocks=tg.tensor(blocks, device="cuda").data, format=format
        )
    w = quant.dequantize(blocks, format).astype("f8")
    bound = 1e-6 * (np.abs(x) @ np.abs(w).T)  # 96 terms in float32
    assert (np.abs(y.numpy() - x @ w.T) <= bound).all()
