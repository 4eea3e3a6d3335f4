"""The device "cuda" over the stand-in for cupy: moving, mixing, errors, and no hidden waiting."""

import sys
import types

import numpy as np
import pytest
from test_cuda_kernels import numbers

import tinygrad_ml as tg
from tinygrad_ml import backend, optim
from tinygrad_ml import functional as F
from tinygrad_ml.train import Settings, Trainer

device = pytest.mark.parametrize("cuda", ["simulated"], indirect=True)


def missing(error_text):
    """A cupy whose runtime fails like this."""

    class CUDARuntimeError(RuntimeError):
        pass

    def count():
        raise CUDARuntimeError(error_text)

    runtime = types.SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), ndarray=tuple)


@pytest.mark.parametrize("text, said", [
    ("cudaErrorNoDevice: no CUDA-capable device is detected", "no GPU was found"),
    ("cudaErrorInsufficientDriver: CUDA driver version is too old", "no NVIDIA driver answers"),
])  # fmt: skip
def test_an_error_says_what_is_missing(monkeypatch, text, said):
    monkeypatch.setitem(sys.modules, "cupy", missing(text))
    with pytest.raises(tg.DeviceError, match=said):
        tg.tensor([1.0], device="cuda")


def test_without_cupy_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(tg.DeviceError, match=r"pip install 'tinygrad_ml\[cuda13\]'"):
        tg.tensor([1.0], device="cuda")


@device
def test_moving_keeps_the_bits(cuda):
    for dtype in ("float32", "float64", "float16", "int64", "bool"):
        x = (numbers(3, 4) * 3).astype(dtype)
        there = tg.tensor(x, device="cuda")
        assert there.device == "cuda:0" and there.dtype == x.dtype
        np.testing.assert_array_equal(there.to("cpu").numpy(), x)


@device
def test_gradients_travel_between_devices(cuda):
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    (x.to("cuda") * 3).sum().backward()
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), [3, 3])


@device
def test_two_devices_in_one_operation_are_both_named(cuda):
    with pytest.raises(tg.DeviceError, match=r"cuda:0 and cpu; move one with \.to"):
        tg.tensor([1.0], device="cuda") + tg.tensor([1.0])


@device
def test_there_is_one_gpu(cuda):
    with pytest.raises(tg.DeviceError, match="this machine has 1 GPU"):
        tg.tensor([1.0], device="cuda:1")


@device
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("a, b", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 5)),
                                  ((4,), (4, 5)), ((2, 3, 4), (4,)), ((3, 0), (0, 2))])  # fmt: skip
def test_products_of_halves_of_all_ranks(cuda, a, b, dtype):
    x, y = (tg.tensor(numbers(*s), device="cuda").astype(dtype) for s in (a, b))
    found = x @ y
    wide = x.astype("float64").numpy() @ y.astype("float64").numpy()
    assert found.dtype == x.dtype and found.shape == wide.shape
    eps = 2.0**-8 if dtype == "bfloat16" else 2.0**-11  # one rounding
    np.testing.assert_allclose(found.astype("float64").numpy(), wide, rtol=1.01 * eps, atol=1e-6)


@device
def test_sums_in_a_product_of_halves_are_float32(cuda):
    x = tg.ones((1, 4096), dtype="float16", device="cuda") * 0.1
    found = (x @ tg.ones((4096, 1), dtype="float16", device="cuda")).astype("float32").item()
    assert abs(found - 4096 * float(np.float16(0.1))) < 0.2  # half of float16's step at 409


@device
def test_large_products_of_halves_are_not_widened(cuda):
    """Tensor cores take them as they are: no product in float32 by way of copies."""
    from cuda_sim.standin import Count

    x = tg.tensor(numbers(200, 64), dtype="bfloat16", device="cuda")
    before = Count.products
    y = x @ x.mT
    assert y.dtype == x.dtype and Count.products == before + 1


@device
def test_tf32_is_used_where_it_is_allowed_and_nowhere_else(cuda):
    """Factors rounded to 10 bits: an error up to 2^-11 of each, and by default none of the kind."""
    a, b = numbers(64, 96).astype("f4"), numbers(96, 80).astype("f4")
    x, y = (tg.tensor(m, device="cuda", requires_grad=True) for m in (a, b))
    exact, scale = a.astype("f8") @ b, np.abs(a).astype("f8") @ np.abs(b)
    with tg.allow_tf32():
        rough, wide = x @ y, x.astype("float64") @ y.astype("float64")
        (rough_slope,) = tg.grad(rough.sum(), [x])
        on_the_cpu = (tg.tensor(a) @ tg.tensor(b)).numpy()
    np.testing.assert_array_equal(on_the_cpu, (tg.tensor(a) @ tg.tensor(b)).numpy())
    error = np.abs(rough.numpy() - exact) / scale
    assert 2.0**-16 < error.max() < 2 * 2.0**-11
    np.testing.assert_allclose(rough_slope.numpy(), np.tile(b.sum(1), (64, 1)), rtol=0.1)
    np.testing.assert_allclose(wide.numpy(), exact, rtol=1e-12)
    assert np.abs((x @ y).numpy() - exact).max() < 1e-6 * scale.max()


@device
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("k", [96, 97])
def test_products_in_parts_miss_no_more_than_they_say(cuda, k, turned):
    a, b = numbers(64, k).astype("f4"), numbers(k, 83).astype("f4")
    x, y = (tg.tensor(m.T, device="cuda").mT if name in turned else tg.tensor(m, device="cuda")
            for name, m in (("a", a), ("b", b)))  # fmt: skip
    with tg.matmul_precision("high"):
        found = (x @ y).numpy()
        wide = (x.astype("float64") @ y.astype("float64")).numpy()
    exact, scale = a.astype("f8") @ b, np.abs(a).astype("f8") @ np.abs(b)
    error = np.abs(found - exact) / scale
    assert 2.0**-21 < error.max() < 3 * 2.0**-16 + 1e-6  # the parts, and sums in float32
    np.testing.assert_allclose(wide, exact, rtol=1e-12)
    assert np.abs((x @ y).numpy() - exact).max() < 1e-6 * scale.max()


@device
def test_the_inner_one_of_two_precisions_is_in_force(cuda):
    a, b = numbers(64, 96).astype("f4"), numbers(96, 80).astype("f4")
    x, y = tg.tensor(a, device="cuda", requires_grad=True), tg.tensor(b, device="cuda")
    exact, scale = a.astype("f8") @ b, np.abs(a).astype("f8") @ np.abs(b)

    def error():
        return (np.abs((x @ y).numpy() - exact) / scale).max()

    with tg.matmul_precision("high"):
        high = error()
        with tg.allow_tf32():
            tf32 = error()
        assert error() == high
    with tg.allow_tf32():
        with tg.matmul_precision("high"):
            assert error() == high
        with tg.matmul_precision("highest"):
            highest = error()
        assert error() == tf32
        product = x @ y
    assert error() == highest
    assert highest < 2.0**-21 < high < 2.0**-14 < tf32
    cotangent, true = np.ones((64, 80), "f4"), np.tile(b.sum(1, dtype="f8"), (64, 1))
    with tg.matmul_precision("high"):
        (slope,) = tg.grad(product, [x], tg.tensor(cotangent, device="cuda"))
    assert 0 < np.abs(slope.numpy() - true).max() < 2.0**-14 * np.abs(b).sum(1).max()


@device
def test_a_training_step_waits_for_nothing(cuda):
    from cuda_sim.standin import Count, allow_synchronize

    table, gain, head = (
        tg.tensor(numbers(*s).astype("f4"), device="cuda", requires_grad=True)
        for s in ((11, 16), (16,), (11, 16))
    )
    tokens = tg.tensor(np.arange(10).reshape(2, 5) % 11, device="cuda")
    optimizer = optim.AdamW([table, gain, head])
    before, Count.syncs = Count.syncs, 0
    with allow_synchronize(False):
        x = F.rms_norm(F.embedding(table, tokens), gain)
        q = x.reshape(2, 5, 2, 8).swapaxes(1, 2)
        x = x + F.attention(q, q, q, causal=True).swapaxes(1, 2).reshape(2, 5, 16)
        loss = F.linear_cross_entropy(F.swiglu(x, x), head, tokens)
        loss.backward()
        optimizer.step()
    assert Count.syncs == 0
    Count.syncs += before
    assert np.isfinite(loss.item())


@device
def test_memory_is_reported(cuda):
    before = backend.memory("cuda")
    x = tg.zeros((1000, 1000), device="cuda")
    assert backend.memory("cuda").used - before.used == x.data.nbytes
    assert backend.memory("cuda").held >= backend.memory("cuda").used


@device
@pytest.mark.parametrize("changes", [
    {"ema": 0.9, "accumulate": 2},
    {"documents": True, "recompute": True, "save_every": 2},
])  # fmt: skip
def test_training_on_the_device_is_training(cuda, tmp_path, changes):
    (tmp_path / "text").write_text("the cat sat on the mat. " * 30)
    given = {"data": str(tmp_path / "text"), "dim": 16, "layers": 1, "heads": 2, "context": 8,
             "batch_size": 4, "steps": 3, "sample_tokens": 2}  # fmt: skip
    there = Trainer(Settings(**given, **changes, device="cuda"), tmp_path / "cuda")
    here = Trainer(Settings(**given, **changes), tmp_path / "cpu")
    assert {p.device for p in there.model.parameters()} == {"cuda:0"}
    # three steps in float32, whose sums are in another order: some roundings of 0.06
    assert there.train() == pytest.approx(here.train(), rel=1e-6)
    for name, p in there.named.items():
        np.testing.assert_allclose(p.to("cpu").numpy(), here.named[name].numpy(), atol=1e-6)
    again = Trainer(there.settings, tmp_path / "cuda", resume=True)
    assert again.step == 3
    for name, p in there.named.items():
        np.testing.assert_array_equal(again.named[name].to("cpu").numpy(), p.to("cpu").numpy())
