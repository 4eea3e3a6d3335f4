"""Each CUDA kernel through the functions that use it, against the definition in float64.

On the simulator of CUDA, in several orders of threads; with `pytest -m gpu`, the same on a GPU.
"""

import cuda_sim
import ml_dtypes
import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import backend, kernels, optim, quant
from tinygrad_ml import functional as F
from tinygrad_ml.estimators import SOM
from tinygrad_ml.estimators.som_training import best_matching_units, unit_sums

# of the largest entry: a rounding at the end for halves, some 8 in sums of 40 for the others
TOLERANCE = {"float32": 1e-6, "float64": 2e-15, "float16": 1e-3, "bfloat16": 8e-3}
DTYPES = ["float32", "bfloat16", *(pytest.param(d, marks=pytest.mark.thorough)
                                   for d in ("float16", "float64"))]  # fmt: skip


simulated = pytest.mark.skipif(cuda_sim.available() is not None, reason=str(cuda_sim.available()))


def numbers(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def indices(n, *shape):
    return np.random.default_rng(shape).integers(0, n, shape)


def targets(v, *shape):
    found = indices(v, *shape)
    return np.where(numbers(*shape) > 1, -100, found)


def lengths_mask(b, s):
    """(b, 1, 1, s): row i sees all keys but the last 9 i; the last row sees none."""
    seen = np.arange(s) < s - 9 * np.arange(b)[:, None]
    seen[-1] = False
    return seen[:, None, None]


def on(x, mask):
    return tg.tensor(mask, device=x.device)


CASES = {
    "rms_norm": (F.rms_norm, numbers(5, 72), numbers(72)),
    "rms_norm, odd width": (F.rms_norm, numbers(2, 3, 33), numbers(33)),
    "rms_norm, many rows": (F.rms_norm, numbers(140, 8), numbers(8)),
    "add_rms_norm": (F.add_rms_norm, numbers(5, 40), numbers(5, 40, seed=1), numbers(40)),
    "rope": (F.rope, numbers(2, 3, 5, 8), numbers(5, 4), numbers(5, 4, seed=1)),
    "rope, odd width": (F.rope, numbers(2, 3, 5, 10), numbers(5, 5), numbers(5, 5, seed=1)),
    "rope, wide": (F.rope, numbers(2, 33, 2, 144), numbers(2, 72), numbers(2, 72, seed=1)),
    "swiglu": (F.swiglu, numbers(3, 50), numbers(3, 50, seed=1)),
    "swiglu, wide": (F.swiglu, numbers(40, 64) * 30, numbers(40, 64, seed=1)),
    "dropout": (lambda x: F.dropout(x, 0.3, np.random.default_rng(3)), numbers(9, 308)),
    "dropout, odd": (lambda x: F.dropout(x, 0.3, np.random.default_rng(3)), numbers(3, 401)),
    "dropout of all": (lambda x: F.dropout(x, 1.0, np.random.default_rng(3)), numbers(3, 40)),
    "embedding": (F.embedding, numbers(7, 12), indices(7, 3, 9)),
    "embedding of few tokens": (F.embedding, numbers(3, 40), np.repeat([2, 0, 1], [50, 14, 1100])),
    "embedding of one token": (F.embedding, numbers(2, 5), np.ones(64, int)),
    "linear_cross_entropy": (F.linear_cross_entropy, numbers(3, 5, 16), numbers(300, 16),
                             targets(300, 3, 5)),
    "linear_cross_entropy, each": (lambda *a: F.linear_cross_entropy(*a, reduction="none"),
                                   numbers(7, 8), numbers(40, 8), targets(40, 7)),
    "linear_cross_entropy of none": (F.linear_cross_entropy, numbers(3, 8), numbers(9, 8),
                                     np.full(3, -100)),
    "linear maps of a row": (F.linear_maps, numbers(1, 1, 72), numbers(5, 72), numbers(3, 72),
                             numbers(9, 72, seed=1)),
    "linear maps of a few rows": (F.linear_maps, numbers(3, 2, 33), numbers(7, 33)),
    "linear maps of long rows": (F.linear_maps, numbers(3, 2600), numbers(4, 2600),
                                 numbers(5, 2600)),
    "attention": (F.attention, numbers(2, 2, 9, 8), numbers(2, 2, 13, 8),
                  numbers(2, 2, 13, 8, seed=1)),
    "causal attention": (lambda *a: F.attention(*a, causal=True), numbers(1, 2, 70, 32),
                         numbers(1, 2, 70, 32, seed=1), numbers(1, 2, 70, 32, seed=2)),
    "attention with a past and grouped heads": (
        lambda *a: F.attention(*a, causal=True, scale=0.3), numbers(2, 4, 5, 20),
        numbers(2, 2, 40, 20), numbers(2, 2, 40, 20, seed=1)),
    "attention of one query": (lambda *a: F.attention(*a, causal=True), numbers(1, 2, 1, 8),
                               numbers(1, 2, 35, 8), numbers(1, 2, 35, 8, seed=1)),
    "attention where keys are padded": (
        lambda *a: F.attention(*a, mask=on(a[0], lengths_mask(3, 35)), causal=True),
        numbers(3, 2, 34, 24), numbers(3, 1, 35, 24), numbers(3, 1, 35, 24, seed=1)),
    "attention by a mask": (
        lambda *a: F.attention(*a, mask=on(a[0], numbers(2, 1, 7, 11) > 0.5)),
        numbers(2, 2, 7, 16), numbers(2, 2, 11, 16), numbers(2, 2, 11, 16, seed=1)),
    "attention of wide heads": (F.attention, numbers(1, 1, 40, 128), numbers(1, 1, 33, 128),
                                numbers(1, 1, 33, 128, seed=1)),
    "attention in many tiles": (
        lambda *a: F.attention(*a, causal=True), numbers(1, 2, 150, 24),
        numbers(1, 1, 200, 24), numbers(1, 1, 200, 24, seed=1)),
    "attention of one query to a cache": (F.attention, numbers(2, 2, 1, 32), numbers(2, 2, 150, 32),
                                          numbers(2, 2, 150, 32, seed=1)),
    "attention of one query by six heads": (
        lambda *a: F.attention(*a, causal=True, scale=0.3), numbers(1, 12, 1, 64),
        numbers(1, 2, 70, 64), numbers(1, 2, 70, 64, seed=1)),
    "attention of one query where keys are padded": (
        lambda *a: F.attention(*a, mask=on(a[0], lengths_mask(3, 200)[..., ::-1].copy())),
        numbers(3, 4, 1, 128), numbers(3, 1, 200, 128), numbers(3, 1, 200, 128, seed=1)),
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
    if dtype == "float64" and ("attention" in case or "linear maps" in case):
        pytest.skip("in float64 the definition runs")
    f, *arrays = CASES[case]
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    given = [a if a.dtype.kind == "i" else a.astype(dtype) for a in arrays]
    with cuda():
        found = evaluated(f, given, "cuda")
    with tg.use_kernels(False):
        wanted = evaluated(f, [a.astype("f8") if a.dtype.kind != "i" else a for a in given], "cpu")
    for a, b in zip(found, wanted, strict=True):
        bound = TOLERANCE[dtype.name] * max(np.abs(b).max(), 1e-30)
        if dtype.itemsize == 2 and "attention" in case:
            bound *= 3  # tensor cores take weights and their slopes rounded to halves, too
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def test_cross_entropy_in_chunks_of_logits(cuda, monkeypatch):
    """Then the gradient is written over the logits that it is made from."""
    monkeypatch.setattr(kernels.linear_cross_entropy, "CUDA_CHUNK", 1500)  # 5 rows of 300
    test_values_and_gradients(cuda, "linear_cross_entropy", "float32")


def test_an_index_beyond_the_table_counts_from_its_other_end(cuda):
    """As with cupy's take; nobody waits to refuse it."""
    table = tg.tensor(numbers(7, 5), dtype="float32", device="cuda", requires_grad=True)
    places = np.array([[-1, 8, 3], [7, 0, -8]])
    with cuda():
        y = F.embedding(table, tg.tensor(places, device="cuda"))
        slope = tg.grad(y, table, cotangent=y)
    counts = np.bincount(places.ravel() % 7, minlength=7)[:, None]
    np.testing.assert_array_equal(y.numpy(), table.numpy()[places % 7])
    np.testing.assert_allclose(slope.numpy(), table.numpy() * counts, rtol=1e-6)


@pytest.mark.parametrize("n", [72, 7])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_added_to_the_bits_of_the_cpu(cuda, dtype, n):
    """Values, and the cotangents of what is used twice: in float32, and rounded once."""

    def sums(device):
        a, b, g = (tg.tensor(numbers(3, n, seed=i), dtype=dtype, device=device, requires_grad=True)
                   for i in range(3))  # fmt: skip
        y = a * b + a * 2
        return [y + a, y.T + a.T, *tg.grad(y, [a, b], cotangent=g)]

    with cuda():
        found = sums("cuda")
    for x, wanted in zip(found, sums("cpu"), strict=True):
        np.testing.assert_array_equal(x.numpy(), wanted.numpy())
    y, a = (x.astype("f8").numpy() for x in (found[0], tg.tensor(numbers(3, n), dtype=dtype)))
    b = tg.tensor(numbers(3, n, seed=1), dtype=dtype).astype("f8").numpy()
    bound = 2 * float(ml_dtypes.finfo(found[0].dtype).eps)  # three roundings of half of eps
    np.testing.assert_allclose(y, a * b + 3 * a, rtol=0, atol=bound * np.abs(y).max())


@pytest.mark.parametrize("n", [1001, 1016])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dropout_has_the_bits_of_the_cpu(cuda, dtype, n):
    """A number at a time and, where that is even, 16 bytes; both ways."""

    def dropped(device):
        x = tg.tensor(numbers(n), dtype=dtype, device=device, requires_grad=True)
        y = F.dropout(x, 0.3, np.random.default_rng(5))
        return y.numpy(), tg.grad(y, x, cotangent=x).numpy()

    with cuda():
        found = dropped("cuda")
    np.testing.assert_array_equal(found, dropped("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_is_turned_and_put_into_a_cache(cuda, rows, dtype):
    """What rope and copies do, and nothing beside the place."""
    shapes = [(2, 4, 1, 6), (2, 2, 1, 6), (2, 2, 1, 6), *[(rows, 1, 1, 3)] * 2, *[(2, 2, 9, 6)] * 2]
    given = [tg.tensor(numbers(*shape, seed=i), dtype=dtype, device="cuda")
             for i, shape in enumerate(shapes)]  # fmt: skip
    q, k, v, cos, sin, keys, values = (x.astype("f8").numpy().copy() for x in given)
    arrays = [x.data for x in (*given, tg.tensor([5], device="cuda"))]
    kernel, xp = kernels.into_cache.on_cuda, backend.namespace(arrays)
    assert kernel.supports(xp, *arrays)
    with cuda():
        turned = tg.Tensor.wrap(kernel.forward(xp, *arrays))
    keys[:, :, 5:6], values[:, :, 5:6] = F.rope.definition(k, cos, sin), v
    wanted = [F.rope.definition(q, cos, sin), keys, values]
    for found, exact in zip([turned, *given[5:]], wanted, strict=True):
        bound = TOLERANCE[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(found.astype("f8").numpy(), exact, rtol=0, atol=bound)


def test_a_row_of_a_product_has_the_bits_that_it_has_alone(cuda):
    x, w = (tg.tensor(numbers(n, 256), dtype="bfloat16", device="cuda") for n in (6, 600))
    with cuda():
        together, alone = F.linear(x, w), F.linear(x[2:3], w)
    np.testing.assert_array_equal(together.numpy()[2:3], alone.numpy())
    wanted = x.astype("f8").numpy() @ w.astype("f8").numpy().T
    np.testing.assert_allclose(together.astype("f8").numpy(), wanted, rtol=2**-8, atol=1e-4)


def test_heads_are_turned_as_they_lie(cuda):
    """A transposed x needs no copy, and the result merges without one."""
    x, table = numbers(2, 5, 3, 8).astype("f4"), numbers(5, 4).astype("f4")
    on_device = [tg.tensor(a, device="cuda") for a in (x, table)]
    y = F.rope(on_device[0].swapaxes(1, 2), on_device[1], on_device[1])
    wanted = F.rope(tg.tensor(x).swapaxes(1, 2), tg.tensor(table), tg.tensor(table))
    np.testing.assert_allclose(y.numpy(), wanted.numpy(), rtol=0, atol=1e-6)
    assert y.swapaxes(1, 2).data.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_leaves_heads_that_merge_without_a_copy(cuda, dtype):
    """Its gradients as itself, from heads that were split without one."""
    q, k, v = (tg.tensor(numbers(2, 9, h, 32), dtype=dtype, device="cuda").swapaxes(1, 2).data
               for h in (4, 2, 2))  # fmt: skip
    kernel, xp = kernels.attention.on_cuda, backend.namespace([q])
    with cuda():
        y, kept = kernel.forward(xp, q, k, v, causal=True)
        slopes = kernel.backward(xp, (True,) * 3, y, kept, q, k, v, causal=True)
    assert all(x.swapaxes(1, 2).flags.c_contiguous for x in (y, *slopes))


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_attention_of_a_scale_that_is_not_positive(cuda, scale):
    """There the definition runs: the kernel takes the greatest product for the greatest score."""
    arrays = [numbers(1, 2, 7, 8, seed=i).astype("float32") for i in range(3)]
    f = lambda q, k, v: F.attention(q, k, v, causal=True, scale=scale)
    found = evaluated(f, arrays, "cuda")
    for a, b in zip(found, evaluated(f, [a.astype("float64") for a in arrays], "cpu"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_adamw_steps_as_on_the_cpu(cuda, dtype):
    """60 parameters: more than one launch takes; one of more than a block, one of one entry."""
    shapes = [(5000,), (1,), (3, 7), *[(2, n) for n in range(1, 58)]]
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    start = [[numbers(*s, seed=i).astype(kind) for s in shapes] for i in range(3)]

    def trained(device, dtype):
        weights, *gradients = ([a.astype(dtype) for a in given] for given in start)
        weights = [tg.tensor(w, device=device, requires_grad=True) for w in weights]
        optimizer = optim.AdamW(weights, lr=0.1, weight_decay=0.1)
        for given in gradients:
            for w, g in zip(weights, given, strict=True):
                w.grad = tg.tensor(g, device=device)
            optimizer.step()
        return [w.numpy().astype("f8") for w in weights]

    with cuda():
        found = trained("cuda", kind)
    with tg.use_kernels(False):
        wanted = trained("cpu", "float64")
    for a, b in zip(found, wanted, strict=True):
        if kind.itemsize == 2:  # float32 masters, rounded once: half an ulp of weights up to 4
            np.testing.assert_allclose(a, b, rtol=2.0**-8, atol=1e-6)
        else:  # 4 ulp of weights up to 4 and steps of 0.1
            np.testing.assert_allclose(a, b, rtol=0, atol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adamw_of_halves_is_that_of_their_masters(cuda, dtype):
    """The very bits of float32 weights that get the same gradients, and these rounded once."""
    shapes = [(4999,), (1,), (3, 7), *[(2, n) for n in range(1, 46)]]

    def stepped(weights, kind):
        optimizer = optim.AdamW(weights, lr=0.1, weight_decay=0.1)
        for step in range(2):
            for w in weights:
                n = numbers(w.size + w.ndim % 2, seed=step)  # those of vectors lie anywhere
                g = tg.tensor(n, dtype=dtype, device="cuda").astype(kind)
                w.grad = g[w.ndim % 2 :].reshape(w.shape)
            optimizer.step()
        return optimizer.state_dict()

    weights = [tg.tensor(numbers(*s), dtype=dtype, device="cuda", requires_grad=True)
               for s in shapes]  # fmt: skip
    exact = [tg.tensor(w.astype("f4").data, requires_grad=True) for w in weights]
    tape = weights[0] * weights[0]
    with cuda():
        state = stepped(weights, dtype)
        stepped(exact, "float32")
    for i, (w, e) in enumerate(zip(weights, exact, strict=True)):
        np.testing.assert_array_equal(state[f"{i}.master"], e.numpy())
        np.testing.assert_array_equal(w.numpy(), e.astype(dtype).numpy())
    with pytest.raises(tg.GraphError, match="optimiser step"):
        tape.sum().backward()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_gradients_are_scaled_as_on_the_cpu(cuda, dtype):
    """130 of them: more than a launch takes; one of more than a block, one that is not aligned."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = [numbers(n).astype(kind) for n in (9000, 1, 8, *range(20, 147))]

    def scaled(device):
        weights = [tg.zeros(a.shape, dtype, requires_grad=True) for a in arrays]
        for w, a in zip(weights, arrays, strict=True):
            w.grad = tg.tensor(a, device=device)[1:] if a.size > 1 else tg.tensor(a, device=device)
        return [optim.scale_gradients(weights, 2.0), *(w.grad.data for w in weights)]

    with cuda():
        found = [backend.to_host(a) for a in scaled("cuda")]
    for a, b in zip(found, scaled("cpu"), strict=True):
        rounding = 1e-6 if dtype == "float32" else 2 * float(ml_dtypes.finfo(kind).eps)
        np.testing.assert_allclose(a.astype("f8"), b.astype("f8"), rtol=rounding)
    weights = [tg.zeros(2, requires_grad=True)]
    weights[0].grad = tg.tensor([np.inf, 1], dtype="float32", device="cuda")
    assert np.isinf(float(optim.scale_gradients(weights, 1.0)))
    assert (weights[0].grad.numpy() == 0).all()


@pytest.mark.parametrize("few, m, n", [(1, 11, 96), (2, 1, 1120), (8, 6, 576)])
@pytest.mark.parametrize("format, size", [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20)])
def test_products_with_quantised_weights(cuda, format, size, few, m, n):
    """Of fewer blocks than a warp reads at once, of more and a rest, and of an even number."""
    rng, count, scales = np.random.default_rng(1), n // 32, 2 if format == "Q4_1" else 1
    blocks = rng.integers(0, 256, (m, count, size), np.uint8)
    blocks[..., : 2 * scales] = (
        rng.standard_normal((m, count, scales)).astype("f2").view(np.uint8).reshape(m, count, -1)
    )
    blocks, x = blocks.reshape(m, -1), numbers(few, n).astype("f4")
    with cuda():
        y = quant.quantized_matmul(
            tg.tensor(x, device="cuda"), blocks=tg.tensor(blocks, device="cuda").data, format=format
        )
    w = quant.dequantize(blocks, format).astype("f8")
    bound = 1e-6 * (np.abs(x) @ np.abs(w).T)  # some n / 64 terms in a row in float32
    assert (np.abs(y.numpy() - x @ w.T) <= bound).all()


def test_a_quantised_product_of_arrays_that_begin_anywhere(cuda):
    blocks = quant.quantize_q8_0(numbers(4, 64))
    x, wanted = numbers(65).astype("f4"), quant.dequantize(blocks, "Q8_0") @ numbers(65)[1:]
    with cuda():
        there = tg.tensor(np.append(np.uint8(0), blocks), device="cuda")[1:].data.reshape(4, -1)
        y = quant.quantized_matmul(tg.tensor(x, device="cuda")[1:], blocks=there, format="Q8_0")
    np.testing.assert_allclose(y.numpy(), wanted, rtol=0, atol=1e-5)  # 64 terms of up to 6


# ------------------------------------------------------------------- self-organising maps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n, k, d", [(150, 140, 5), (130, 3, 20), (3, 1, 40), (1, 33, 33)])
def test_best_matching_units(cuda, n, k, d, dtype):
    far = 0 if k > 100 else 1000  # where |x|^2 - 2 x w + |w|^2 would lose its digits
    x, w = (numbers(*shape).astype(dtype) + far for shape in ((n, d), (k, d)))
    w[1:3], w[0], w[-1] = x[-1], x[0], x[0]  # of equals the first
    with cuda():
        found = best_matching_units(*(backend.to_device(a, "cuda") for a in (x, w)))
    units, distances = (backend.to_host(a)[:, 0] for a in found)
    squares = ((x[:, None].astype("f8") - w) ** 2).sum(-1)
    np.testing.assert_array_equal(units, squares.argmin(1))
    bound = 8 * np.finfo(dtype).eps * d**0.5  # d sums of exact differences
    np.testing.assert_allclose(distances, squares.min(1) ** 0.5, rtol=bound)
    assert distances[0] == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_the_units(cuda, weighted):
    n, k, d = 40, 6, 70
    x, weight, units = numbers(n, d).astype("f4"), numbers(n).astype("f4"), indices(k - 1, n)
    weight = weight if weighted else None
    with cuda():
        there = [None if a is None else backend.to_device(a, "cuda") for a in (x, weight, units)]
        sums = backend.to_host(unit_sums(*there, k=k))
    onehot = (units[:, None] == np.arange(k)) * (1.0 if weight is None else weight[:, None])
    wanted = onehot.T.astype("f8") @ x
    np.testing.assert_allclose(sums, wanted, rtol=0, atol=1e-14)  # sums of 10, in double


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_map_learns_by_the_kernels_what_it_learns_by_the_definition(cuda, dtype, weighted):
    X, weight = numbers(70, 5).astype(dtype), np.abs(numbers(70)) if weighted else None

    def learned(device):
        given = [None if a is None else backend.to_device(a, device) for a in (X, weight)]
        return SOM((4, 3), max_iter=3, random_state=0).fit(given[0], sample_weight=given[1])

    with cuda():
        there = learned("cuda")
    here = learned("cpu")
    assert backend.device_of(there.codebook_) == "cuda:0"
    bound = 1e-5 if dtype == "float32" else 1e-12  # three epochs of a product and its rounding
    np.testing.assert_allclose(backend.to_host(there.codebook_), here.codebook_, atol=bound)
    np.testing.assert_allclose(there.quantization_errors_, here.quantization_errors_, rtol=bound)
