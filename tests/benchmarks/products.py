"""Matrix products of the training steps S, M and L: ours, numpy's BLAS and torch, in GFLOP/s.

    python tests/benchmarks/products.py [--repeats 7] [--json FILE]

For each linear map the three products of a step: x W^T, g W and g^T x, in float32 and bfloat16
(numpy has none of those). The best of interleaved repeats. Every library has all its threads: on a
busy machine say OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1, or they wait for one another.
"""

import argparse
import json
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from tinygrad_ml.kernels.product import product
from tqdm import tqdm

from tinygrad_ml import kernels

try:
    import torch
except ImportError:
    torch = None

# rows, outputs, inputs
SHAPES = {
    "S": [(1024, 128, 128), (1024, 352, 128), (1024, 128, 352), (1024, 256, 128)],
    "M": [(2048, 288, 288), (2048, 768, 288), (2048, 288, 768), (2048, 4096, 288)],
    "L": [(1024, 768, 768), (1024, 256, 768), (1024, 2048, 768), (1024, 768, 2048)],
}


def operands(rows, outputs, inputs):
    """{name: (a, b)} of the forward product and the two gradients."""
    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(shape, np.float32)
               for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))  # fmt: skip
    return {"x W^T": (x, w.T), "g W": (g, w), "g^T x": (g.T, x)}


def as_bfloat16(a):
    """In a's own layout."""
    return a.astype(ml_dtypes.bfloat16, order="K")


def competitors(a, b):
    """{name: a call that multiplies}"""
    a16, b16, out = as_bfloat16(a), as_bfloat16(b), np.empty((a.shape[0], b.shape[1]), np.float32)
    found = {
        "ours": lambda: product(a, b, out),
        "numpy": lambda: np.matmul(a, b, out=out),
        "ours bf16": lambda: product(a16, b16, out),
    }
    if torch:
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        ha, hb = ta.bfloat16(), tb.bfloat16()
        found["torch"] = lambda: ta @ tb
        found["torch bf16"] = lambda: ha @ hb
    return found


def least(runs, repeats):
    """Seconds of each at its best, one after another in every round."""
    taken = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
    return {name: min(times[1:]) for name, times in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    names = ["ours", "numpy", "torch", "ours bf16", "torch bf16"]
    by = "AMX" if kernels.amx() else "vectors"
    print(f"level {kernels.level()}, bf16 by {by}, {kernels.get_num_threads()} threads\n")
    print(f"{'GFLOP/s':30}" + "".join(f"{name:>12}" for name in names))
    found = {}
    for size, shape in tqdm([(s, shape) for s in SHAPES for shape in SHAPES[s]], leave=False):
        for which, (a, b) in operands(*shape).items():
            label = f"{size} {' x '.join(map(str, shape)):18} {which}"
            operations = 2e-9 * np.prod(shape)
            speeds = {n: operations / s for n, s in least(competitors(a, b), given.repeats).items()}
            found[label] = speeds
            cells = "".join(f"{speeds.get(name, float('nan')):12.0f}" for name in names)
            tqdm.write(f"{label:30}{cells}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
