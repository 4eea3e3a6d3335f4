"""Estimated and measured peaks of a training step.

    PYTHONPATH=.:tests python tests/benchmarks/memory.py

numpy reports its arrays to tracemalloc; full fine-tuning, float32, the C kernels on.
"""

from test_memory import measured_peak

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

print("  b    t     d  layers      v   estimate MB   measured MB   ratio")
for c, b, t in CASES:
    guess, peak = estimate_memory(c, batch=b, length=t).peak / 1e6, measured_peak(c, b, t) / 1e6
    sizes = f"{b:3}{t:5}{c.dim:6}{c.n_layers:8}{c.vocab_size:7}"
    print(f"{sizes}{guess:14.2f}{peak:14.2f}{guess / peak:8.3f}")
