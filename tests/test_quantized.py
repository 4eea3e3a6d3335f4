"""Weights in blocks: the kernels against the definition, and layers that hold such weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import kernels, nn, quant
from tinygrad_ml.quant import FORMATS, Blocks, dequantize, quantized_matmul

compiled = pytest.mark.skipif(kernels.level() == "off", reason="the C kernels were not built")
formats = pytest.mark.parametrize("format", FORMATS)


def random_blocks(rng, format, m, n):
    """A weight (m, n) of random bytes, whose scales and offsets are ordinary halves."""
    _, length, size = FORMATS[format]
    blocks = rng.integers(0, 256, (m, n // length, size), dtype=np.uint8)
    scales = rng.uniform(-1, 1, (m, n // length, 2)).astype("float16").view(np.uint8)
    if format == "Q6_K":
        blocks[..., 208:] = scales[..., :2]
    else:
        wide = 4 if format in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 2
        blocks[..., :wide] = scales[..., :wide]
    return blocks.reshape(m, -1)


@compiled
@formats
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
