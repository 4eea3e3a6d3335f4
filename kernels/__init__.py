"""Fused kernels: one pass over the bytes where numpy takes many.

A kernel is a stem: `rms_norm.py` binds and states the formula, `rms_norm.c` computes on the CPU.
The meaning of a kernel is the definition that it stands for, in tinygrad_ml.functional; wherever
no library was built, or `supports` says no, the definition runs.

The C is compiled once per instruction level, and the best one that this CPU executes is loaded
when the first kernel is asked for:

    base   any CPU
    v3     AVX2 and FMA
    v4     AVX-512 (F, VL, BW, DQ); within it, asked for at run time, avx512_bf16 and AMX

TINYGRAD_ML_KERNELS=off|base|v3|v4|amx is a ceiling (amx: no ceiling). `amx()` says whether AMX is
in use.
"""

from . import (
    adamw,
    add,
    add_rms_norm,
    affine,
    attention,
    best_matching_units,
    dequantize,
    dropout,
    embedding,
    gather,
    gelu,
    half,
    half_product,
    into_cache,
    linear_cross_entropy,
    linear_maps,
    logistic,
    product,
    quantized_maps,
    quantized_matmul,
    rms_norm,
    rope,
    scaled,
    softmax,
    squares,
    swiglu,
    unit_sums,
)
from .native import Calls, get_num_threads, level, noting, set_num_threads
from .product import amx
