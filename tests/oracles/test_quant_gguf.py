"""Block formats against the gguf package's own numpy code."""

import numpy as np
import pytest

from tinygrad_ml.quant import FORMATS, dequantize, quantize_q8_0

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "NF4"])  # ggml has none
def test_every_format_decodes_to_the_same_numbers(name):
    form = FORMATS[name]
    kind = gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[kind] == (form.length, form.size)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5, 4 * form.size), dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # random bytes make NaN scales too
        expected = gguf.quants.dequantize(blocks, kind)
        np.testing.assert_array_equal(dequantize(blocks, name), expected)


def test_q8_0_rounds_as_the_reference_does():
    x = np.random.default_rng(0).normal(size=(7, 96)).astype("float32")
    x[0, :32] = 0
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(quantize_q8_0(x), expected)
