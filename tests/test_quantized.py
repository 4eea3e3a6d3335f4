"""Weights in blocks: the kernels against the definition, and layers that hold such weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import kernels, nn, peft, quant
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.quant import FORMATS, Blocks, dequantize, quantized_maps, quantized_matmul
from tinygrad_ml.quantized import quantize

compiled = pytest.mark.skipif(kernels.level() == "off", reason="the C kernels were not built")
formats = pytest.mark.parametrize("format", FORMATS)


def random_blocks(rng, format, m, n):
    """A weight (m, n) of random bytes, whose scales and offsets are ordinary halves."""
    _, length, size = FORMATS[format]
    blocks = rng.integers(0, 256, (m, n // length, size), dtype=np.uint8)
    scales = rng.uniform(-1, 1, (m, n // length, 2)).astype("float16").view(np.uint8)
    if format == "NF4":
        blocks[..., :4] = rng.uniform(0, 1, (m, n // length, 1)).astype("float32").view(np.uint8)
    elif format == "Q6_K":
        blocks[..., 208:] = scales[..., :2]
    else:
        wide = 4 if format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 2
        blocks[..., :wide] = scales[..., :wide]
    return blocks.reshape(m, -1)


@compiled
@pytest.mark.parametrize("format", kernels.dequantize.ORDER)  # those that have a kernel
@given(m=st.integers(1, 40), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_decoding_is_the_definition(format, m, count, seed):
    blocks = random_blocks(np.random.default_rng(seed), format, m, count * FORMATS[format].length)
    fast = dequantize(blocks, format)
    with tg.use_kernels(False):
        plain = dequantize(blocks, format)
    np.testing.assert_array_equal(fast, plain)


@compiled
@formats
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    m=st.integers(1, 40),
    count=st.integers(1, 9),
    rows=st.sampled_from([(), (1,), (3,), (2, 1), (2, 4), (9,), (3, 7)]),
    seed=st.integers(0, 99),
)
def test_products_are_exact_to_rounding(format, dtype, m, count, rows, seed):
    rng = np.random.default_rng(seed)
    n = count * FORMATS[format].length
    blocks, x = random_blocks(rng, format, m, n), rng.normal(size=(*rows, n)).astype(dtype)
    w = dequantize(blocks, format, "float64")
    terms = np.abs(x) @ np.abs(w).T
    y = quantized_matmul(x, blocks=blocks, format=format)
    assert y.dtype == dtype and y.shape == (*rows, m)
    # each of n terms is rounded, and each of the n / 16 additions in a row
    bound = (2 + n / 16) * np.finfo(dtype).eps * terms
    assert (np.abs(y - x.astype("float64") @ w.T) <= bound).all()


@compiled
def test_the_same_bits_with_any_number_of_threads_and_any_layout():
    rng = np.random.default_rng(0)
    blocks, x = random_blocks(rng, "Q4_K", 300, 512), rng.normal(size=(3, 512)).astype("float32")
    before, found = kernels.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            kernels.set_num_threads(n)
            found.append(quantized_matmul(x, blocks=blocks, format="Q4_K"))
    finally:
        kernels.set_num_threads(before)
    found.append(quantized_matmul(x[:, ::-1].copy()[:, ::-1], blocks=blocks, format="Q4_K"))
    found.append(quantized_matmul(np.asfortranarray(x), blocks=blocks, format="Q4_K"))
    assert all((y == found[0]).all() for y in found)


@formats
@pytest.mark.parametrize("rows", [(), (2, 1), (9,)])
@pytest.mark.parametrize("sizes", [(5,), (40, 3), (1, 70, 16), (4, 3, 2, 1)])
def test_maps_of_one_x_are_the_products_one_by_one(format, rows, sizes):
    rng = np.random.default_rng(3)
    n = 2 * FORMATS[format].length
    weights = tuple(random_blocks(rng, format, m, n) for m in sizes)
    x = rng.normal(size=(*rows, n)).astype("float32")
    for y, blocks in zip(quantized_maps(x, blocks=weights, format=format), weights, strict=True):
        np.testing.assert_array_equal(y, quantized_matmul(x, blocks=blocks, format=format))


@compiled
@pytest.mark.parametrize("format", kernels.dequantize.ORDER)
def test_a_row_alone_has_the_bits_that_it_has_among_others(format):
    rng = np.random.default_rng(4)
    n = 3 * FORMATS[format].length
    blocks, x = random_blocks(rng, format, 21, n), rng.normal(size=(5, n)).astype("float32")
    together = quantized_matmul(x, blocks=blocks, format=format)
    for i in range(5):
        np.testing.assert_array_equal(
            together[i], quantized_matmul(x[i], blocks=blocks, format=format)
        )


@compiled
def test_blocks_are_read_where_they_lie(tmp_path):
    blocks = random_blocks(np.random.default_rng(1), "Q8_0", 5, 64)
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    mapped = np.memmap(tmp_path / "blocks", np.uint8, "r", shape=blocks.shape)
    x = np.ones((1, 64), "float32")
    y = quantized_matmul(x, blocks=mapped, format="Q8_0")
    assert "_times_blocks" in tg.kernels_used()
    np.testing.assert_array_equal(y, quantized_matmul(x, blocks=blocks, format="Q8_0"))
    apart = np.concatenate([blocks, blocks], axis=1)[:, : blocks.shape[1]]  # not contiguous
    np.testing.assert_allclose(quantized_matmul(x, blocks=apart, format="Q8_0"), y, rtol=1e-5)


def test_layers_by_the_contract_s_names():
    rng = np.random.default_rng(2)
    w = rng.normal(size=(6, 32)).astype("float32")
    blocks = Blocks(quant.quantize_q8_0(w), "Q8_0")
    linear, embedding = nn.QuantizedLinear(blocks), nn.QuantizedEmbedding(blocks)
    x = tg.tensor(rng.normal(size=(4, 32)), dtype="float32", requires_grad=True)
    y = linear(x)
    np.testing.assert_allclose(y.data, x.data @ linear.dense().T, rtol=1e-4, atol=1e-5)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, np.tile(linear.dense().sum(0), (4, 1)), rtol=1e-5)
    np.testing.assert_array_equal(embedding(np.array([5, 0])).data, linear.dense()[[5, 0]])
    assert list(linear.parameters()) == [] and linear.shape == (6, 32)
    with pytest.raises(ValueError, match=r"linear: x is \(2, 31\)"):
        linear(tg.ones((2, 31)))
    with pytest.raises(TypeError, match="blocks: got"):
        nn.QuantizedLinear(w)


def test_nf4_s_numbers_are_quantiles_of_a_normal():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))  # 0.9677..., Dettmers et al. 2023, appendix E
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort([*above, 0.0, *below]) / above.max()
    np.testing.assert_allclose(quant.NF4, expected, rtol=0, atol=2e-7)


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-20, 1.0, 1e20]))
def test_nf4_takes_the_nearest_of_its_numbers(seed, scale):
    x = np.random.default_rng(seed).normal(size=(3, 128)) * scale
    x[0, :64] = 0
    found = Blocks(quant.quantize_nf4(x), "NF4").dense("float64")
    d = np.abs(x.astype("float32")).reshape(3, 2, 64, 1).max(axis=2, keepdims=True)
    every = (d * quant.NF4).astype("float64")  # (3, 2, 1, 16)
    least = np.abs(every - x.reshape(3, 2, 64, 1)).min(axis=-1).reshape(3, 128)
    assert (np.abs(found - x) <= least * (1 + 1e-5)).all()
    assert (found[0, :64] == 0).all()
    again = Blocks(quant.quantize_nf4(found), "NF4").dense("float64")
    np.testing.assert_array_equal(again, found)


def test_a_model_is_put_into_blocks_and_an_adapter_learns_on_it():
    config = LlamaConfig(vocab_size=30, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    model, ids = Llama(config, rng=np.random.default_rng(0)), np.arange(12).reshape(2, 6)
    before = model(ids).numpy()
    quantize(model, "NF4")
    linears = [x for _, x in model.named_modules() if type(x) is nn.QuantizedLinear]
    assert len(linears) == 14
    off = np.linalg.norm(model(ids).numpy() - before) / np.linalg.norm(before)
    assert 0.001 < off < 0.2  # 4 bits are 4 bits
    adapted = peft.attach(model, peft.LoRA(targets="all-linear"), rng=np.random.default_rng(1))
    optimizer = tg.optim.AdamW(adapted.trained(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = adapted.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match=r"multiple of 64"):
        quantize(Llama(LlamaConfig(30, 32, 1, 4, 64), rng=np.random.default_rng(0)))
