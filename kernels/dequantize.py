"""Quantised blocks as numbers:  w = d q + m, or as the format says        see tinygrad_ml/quant.py

Bytes: the blocks are read and the numbers written, once. The same bits as the definition for the
formats of 32 numbers, within 1 ulp for those of 256 (their scales are multiplied in another order).
"""

import numpy as np

from .native import call, runs_bytes

ORDER = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")  # as in blocks.h
LENGTHS = {"Q4_K": 256, "Q5_K": 256, "Q6_K": 256}  # numbers in a block, 32 otherwise
SIZES = dict(zip(ORDER, (18, 20, 22, 24, 34, 144, 176, 210), strict=True))  # its bytes


def supports(xp, blocks, *, format):
    return runs_bytes(xp, blocks) and format in ORDER


def forward(xp, blocks, *, format):
    """blocks: (count, bytes of one) uint8 -> (count, numbers of one) float32"""
    w = np.empty((len(blocks), LENGTHS.get(format, 32)), np.float32)
    call("dequantize", w.dtype, w, blocks, len(blocks), ORDER.index(format))
    return w
