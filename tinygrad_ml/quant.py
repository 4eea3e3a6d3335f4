"""Block formats of quantised weights, as GGUF files hold them, and the product with such a weight.

A row of a weight is cut into blocks of 32 to 256 numbers; a block holds small integers q and one
scale d (a half), or a scale and an offset m, so that a number is

    Q8_0  Q4_0  Q5_0     d (q - zero)
    Q4_1  Q5_1           d q + m
    Q4_K  Q5_K           d s q - m t         8 sub-blocks of 32 with 6-bit s and t
    Q6_K                 d s (q - 32)        16 sub-blocks of 16 with 8-bit s
    NF4                  d c_q               64 numbers, d in float32, c the quantiles of a normal

Blocks lie within a row, so rows can be picked and permuted without touching a block. The layouts
are those of ggml's reference (ggml-quants.c); NF4 is QLoRA's (Dettmers et al. 2023, appendix E).
"""

from typing import NamedTuple

import numpy as np

from . import kernels
from .autograd import op
from .backend import namespace
from .fused import accelerated
from .ops import matmul


class Format(NamedTuple):
    """A block format: `length` numbers in `size` bytes."""

    name: str
    length: int
    size: int


FORMATS = {
    f.name: f
    for f in (
        Format("Q4_0", 32, 18), Format("Q4_1", 32, 20), Format("Q5_0", 32, 22),
        Format("Q5_1", 32, 24), Format("Q8_0", 32, 34), Format("Q4_K", 256, 144),
        Format("Q5_K", 256, 176), Format("Q6_K", 256, 210),
        Format("NF4", 64, 36),
    )
}  # fmt: skip


class Blocks:
    """A quantised array: `data` (..., bytes of a row) uint8, and the name of its format."""

    def __init__(self, data, format):
        form = _format(format)
        if data.dtype != np.uint8 or data.ndim < 1 or data.shape[-1] % form.size:
            raise ValueError(
                f"data: got {data.dtype} of shape {data.shape}, expected uint8 with rows of a "
                f"multiple of {form.size} bytes for {form.name}"
            )
        self.data, self.format = data, format
        self.shape = (*data.shape[:-1], data.shape[-1] // form.size * form.length)

    def dense(self, dtype="float32"):
        """The numbers themselves      -> array of self.shape"""
        return dequantize(self.data, self.format, dtype)

    def __repr__(self):
        return f"Blocks({self.shape}, {self.format})"


def dequantize(blocks, format, dtype="float32"):
    """The numbers that blocks stand for      blocks: (..., bytes of a row) uint8 -> (..., n)

    ValueError for an unknown format, or rows that are no whole number of blocks.
    """
    form = _format(format)
    xp = namespace([blocks])
    if blocks.dtype != np.uint8 or blocks.ndim < 1 or blocks.shape[-1] % form.size:
        raise ValueError(
            f"blocks: got {blocks.dtype} of shape {blocks.shape}, expected uint8 with rows of a "
            f"multiple of {form.size} bytes for {form.name}"
        )
    rows = blocks.shape[:-1]
    numbers = _numbers(xp.ascontiguousarray(blocks).reshape(-1, form.size), format=form.name)
    return numbers.reshape(*rows, blocks.shape[-1] // form.size * form.length).astype(
        dtype, copy=False
    )


def quantize_q8_0(x):
    """The nearest Q8_0 blocks: d = max |x| / 127 over 32 numbers      (..., n) -> (..., bytes)"""
    xp = namespace([x])
    if x.ndim < 1 or x.shape[-1] % 32:
        raise ValueError(f"x: got shape {x.shape}, expected rows of a multiple of 32 numbers")
    groups = x.astype("float32").reshape(*x.shape[:-1], -1, 32)
    scale = xp.abs(groups).max(axis=-1, keepdims=True) / 127
    q = xp.rint(groups / xp.where(scale == 0, 1, scale)).astype("int8")
    parts = [scale.astype("float16").view("uint8"), q.view("uint8")]
    return xp.concatenate(parts, axis=-1).reshape(*x.shape[:-1], -1)


def quantize_nf4(x):
    """The nearest NF4 blocks: d = max |x| over 64 numbers      (..., n) -> (..., bytes)"""
    xp = namespace([x])
    if x.ndim < 1 or x.shape[-1] % 64:
        raise ValueError(f"x: got shape {x.shape}, expected rows of a multiple of 64 numbers")
    groups = x.astype("float32").reshape(*x.shape[:-1], -1, 64)
    scale = xp.abs(groups).max(axis=-1, keepdims=True)
    c = xp.asarray(NF4)
    q = xp.searchsorted((c[1:] + c[:-1]) / 2, groups / xp.where(scale == 0, 1, scale))
    q = q.astype("uint8").reshape(*groups.shape[:-1], 32, 2)
    packed = q[..., 0] << 4 | q[..., 1]  # the first number is the high half, as in bitsandbytes
    return xp.concatenate([scale.view("uint8"), packed], axis=-1).reshape(*x.shape[:-1], -1)


QUANTIZE = {"Q8_0": quantize_q8_0, "NF4": quantize_nf4}

# equally likely parts of a normal number, scaled to [-1, 1], with 0 among them
NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0],
    "float32",
)  # fmt: skip


@op
def quantized_matmul(xp, x, *, blocks, format):
    """x W^T with W in blocks      x: (..., n)  W: (m, n)  ->  (..., m)

    The blocks are an option, not an argument: there is no gradient to them.
    """
    return _times_blocks(x, blocks, format=format)


@accelerated(kernels.quantized_matmul)
def _times_blocks(x, blocks, *, format):
    return matmul.forward(namespace([x]), x, dequantize(blocks, format, x.dtype).T)


quantized_matmul.vjp(x=lambda g, blocks, format: matmul(g, dequantize(blocks, format, g.dtype)))


@op
def quantized_maps(xp, x, *, blocks, format):
    """(x W_1^T, x W_2^T, ...), each W in blocks of one format      blocks: a tuple of arrays"""
    return tuple(_times_each(x, blocks, format=format))


@accelerated(kernels.quantized_maps)
def _times_each(x, several, *, format):
    return [_times_blocks(x, blocks, format=format) for blocks in several]


def _quantized_maps_vjp(g, blocks, format):
    first, *others = (
        matmul(part, dequantize(b, format, part.dtype)) for part, b in zip(g, blocks, strict=True)
    )
    return sum(others, first)


quantized_maps.vjp(x=_quantized_maps_vjp)


def _format(name):
    if name not in FORMATS:
        raise ValueError(f"format: got {name!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


# ----------------------------------------------------------- blocks (count, size) -> numbers


@accelerated(kernels.dequantize)
def _numbers(blocks, *, format):
    return _DECODE[format](namespace([blocks]), blocks)


def _half(b):
    """The two bytes of each block as one number      (count, 2) -> (count, 1) float32"""
    return b.copy().view("float16").astype("float32")


def _nibbles(xp, b):
    """The low halves of all bytes, then the high halves      (count, k) -> (count, 2 k)"""
    return xp.concatenate([b & 15, b >> 4], axis=-1)


def _fifth_bits(xp, b):
    """Bit i of four bytes, as the 16 of number i      (count, 4) -> (count, 32)"""
    word = b.copy().view("<u4")  # (count, 1)
    return ((word >> xp.arange(32, dtype="uint32")) & 1).astype("uint8") << 4


def _q4_0(xp, b):
    return _half(b[:, :2]) * (_nibbles(xp, b[:, 2:]).astype("float32") - 8)


def _q4_1(xp, b):
    return _half(b[:, :2]) * _nibbles(xp, b[:, 4:]) + _half(b[:, 2:4])


def _q5_0(xp, b):
    q = _nibbles(xp, b[:, 6:]) | _fifth_bits(xp, b[:, 2:6])
    return _half(b[:, :2]) * (q.astype("float32") - 16)


def _q5_1(xp, b):
    q = _nibbles(xp, b[:, 8:]) | _fifth_bits(xp, b[:, 4:8])
    return _half(b[:, :2]) * q + _half(b[:, 2:4])


def _q8_0(xp, b):
    return _half(b[:, :2]) * b[:, 2:].view("int8")


def _six_bit_scales(xp, b):
    """The 8 scales and 8 offsets of a super-block, 6 bits each      (count, 12) -> 2 x (count, 8)

    Bytes 0 to 3 hold s_0..3 and bytes 4 to 7 hold t_0..3 in their low six bits; the others' low
    four bits are in bytes 8 to 11, and their high two bits on top of the first eight bytes.
    """
    first, second, rest = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = xp.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=-1)
    offsets = xp.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=-1)
    return scales.astype("float32"), offsets.astype("float32")


def _with_sub_blocks(xp, b, q):
    """d s q - m t, from a super-block's head      b: (count, 16)  q: (count, 8, 32)"""
    scales, offsets = _six_bit_scales(xp, b[:, 4:16])
    scales, offsets = scales * _half(b[:, :2]), offsets * _half(b[:, 2:4])
    return scales[:, :, None] * q - offsets[:, :, None]


def _q4_k(xp, b):
    q = _nibbles(xp, b[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _with_sub_blocks(xp, b, q)


def _q5_k(xp, b):
    low = _nibbles(xp, b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    bits = (b[:, None, 16:48] >> xp.arange(8, dtype="uint8")[:, None]) & 1  # (count, 8, 32)
    return _with_sub_blocks(xp, b, low | bits << 4)


def _q6_k(xp, b):
    low = _nibbles(xp, b[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> xp.array([0, 2, 4, 6], "uint8")[:, None] & 3
    q = (low | high << 4).astype("float32") - 32  # (count, 2, 4, 32)
    scales = b[:, 192:208].view("int8").reshape(-1, 16, 1) * _half(b[:, 208:])[:, :, None]
    return q.reshape(-1, 16, 16) * scales


def _nf4(xp, b):
    q = xp.stack([b[:, 4:] >> 4, b[:, 4:] & 15], axis=-1).reshape(-1, 64)
    return b[:, :4].copy().view("float32") * xp.asarray(NF4)[q]


_DECODE = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "NF4": _nf4,
}  # fmt: skip
