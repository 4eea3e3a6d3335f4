"""Estimated and measured peaks of a training step, and of generation.

    PYTHONPATH=.:tests python tests/benchmarks/memory.py

numpy reports its arrays to tracemalloc; full fine-tuning, the C kernels on.
"""

from test_memory import generation_peak, measured_peak

from tinygrad_ml.llama import LlamaConfig
from tinygrad_ml.peft import estimate_memory

CASES = [
    (LlamaConfig(256, 64, 4, 4, 172), 8, 128),
    (LlamaConfig(512, 64, 5, 8, 172, n_kv_heads=4, tie_embeddings=True), 4, 256),
    (LlamaConfig(1000, 128, 2, 4, 352), 2, 64),
    (LlamaConfig(256, 128, 6, 4, 352), 4, 64),
    (LlamaConfig(4000, 64, 2, 4, 172), 2, 64),
    (LlamaConfig(256, 256, 4, 8, 688), 2, 16),
    (LlamaConfig(256, 128, 4, 4, 352), 8, 64),
]


def line(what, c, b, t, guess, peak):
    sizes = f"{what:22}{b:3}{t:5}{c.dim:6}{c.n_layers:8}{c.vocab_size:7}"
    print(f"{sizes}{guess / 1e6:14.2f}{peak / 1e6:14.2f}{guess / peak:8.3f}")


print(f"{'':22}  b    t     d  layers      v   estimate MB   measured MB   ratio")
for dtype in ("float32", "bfloat16"):
    for recompute in (False, True):
        settings = {"dtype": dtype, "recompute": recompute}
        for c, b, t in CASES:
            guess = estimate_memory(c, batch=b, length=t, **settings).peak
            what = dtype + " recompute" * recompute
            line(what, c, b, t, guess, measured_peak(c, b, t, **settings))
    for c, b, t in CASES:
        guess = estimate_memory(c, "generate", batch=b, length=t, dtype=dtype).peak
        line(f"{dtype} generate", c, b, t, guess, generation_peak(c, b, t, dtype))
