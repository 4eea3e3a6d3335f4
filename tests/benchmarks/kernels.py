"""Each C kernel against its numpy definition and torch: forward and backward, interleaved.

    python tests/benchmarks/kernels.py [--json FILE] [--repeats N]

Milliseconds through the tape for us and for torch. The floor is the kernel's bytes at the speed
at which this machine copied a large array in the same run; products are not counted in it. Medians,
or with --least the best of the repeats, which on a busy machine says more.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tinygrad_ml as tg
from tinygrad_ml import kernels

try:
    import torch
    from torch.nn import functional as torch_functional
except ImportError:
    torch = None


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def angles(t, half):
    turns = normal(t, half)
    return np.cos(turns), np.sin(turns)


def torch_rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def torch_attention(q, k, v, causal):
    return torch_functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


# name: arrays, options, torch's function, bytes moved by the kernel as a multiple of those of x
CASES = {
    "rms_norm": ([normal(1024, 768), normal(768)], {},
                 lambda x, w: torch_functional.rms_norm(x, (768,), w, 1e-6), 5),
    "swiglu": ([normal(2048, 768), normal(2048, 768)], {},
               lambda a, b: torch_functional.silu(a) * b, 8),
    "add_rms_norm": ([normal(1024, 768), normal(1024, 768), normal(768)], {},
                     lambda x, r, w: (x + r, torch_functional.rms_norm(x + r, (768,), w, 1e-6)), 8),
    "gelu": ([normal(2048, 768)], {}, lambda x: torch_functional.gelu(x), 5),
    "softmax": ([normal(2048, 768)], {}, lambda x: torch.softmax(x, -1), 5),
    "affine": ([normal(1024, 128), normal(352, 128), normal(352)], {},
               lambda x, w, b: torch_functional.linear(x, w, b), 13),
    "dropped": ([normal(2048, 768)], {"p": 0.1, "key": 7},
                lambda x, p, key: torch_functional.dropout(x, p), 4),
    "embedding": ([normal(4096, 288), np.arange(2048) * 7 % 4096], {},
                  lambda w, i: torch_functional.embedding(i, w), 2.5),
    "rope": ([normal(8, 6, 256, 48), *angles(256, 24)], {}, torch_rope, 4),
    "attention": ([normal(8, 6, 256, 48)] * 3, {"causal": True}, torch_attention, 12),
    "linear_cross_entropy": (
        [normal(2048, 288), normal(4096, 288), np.arange(2048) % 4096], {},
        lambda x, w, t: torch_functional.cross_entropy(x @ w.T, t), 43),
}  # fmt: skip


def ours(f, arrays, options):
    """A call that runs f forward and backward on the tape."""
    xs = [tg.tensor(a, requires_grad=True) if a.dtype.kind == "f" else a for a in arrays]
    wanted = xs[:1] if f.__name__ == "rope" else [x for x in xs if isinstance(x, tg.Tensor)]
    g = np.ones(last(f(*xs, **options)).shape, np.float32)
    return lambda: tg.grad(last(f(*xs, **options)), wanted, g)


def last(y):
    """Of several outputs the last."""
    return y[-1] if isinstance(y, tuple) else y


def by_definition(run):
    def call():
        with tg.use_kernels(False):
            run()

    return call


def theirs(f, arrays, options, name):
    xs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    wanted = xs[:1] if name == "rope" else [x for x in xs if x.requires_grad]
    g = torch.ones_like(last(f(*xs, **options)))
    return lambda: torch.autograd.grad(last(f(*xs, **options)), wanted, g)


def timed(runs, repeats, summary=np.median):
    """Milliseconds of each run, one after another in every round."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(summary(t)) for name, t in times.items()}


def bandwidth():
    """Bytes per second of a large copy (read and written)."""
    a = np.ones(32_000_000, np.float32)
    b = np.empty_like(a)
    seconds = timed({"copy": lambda: np.copyto(b, a)}, 7, min)["copy"] / 1e3
    return 2 * a.nbytes / seconds


def adamw_runs(n):
    state = [normal(n) for _ in range(4)]
    state[3] = np.abs(state[3])
    p = tg.tensor(state[0], requires_grad=True)
    optimizer = tg.optim.AdamW([p])
    p.grad = tg.tensor(state[1])
    found = {"kernel": optimizer.step, "numpy": by_definition(optimizer.step)}
    if torch:
        q = torch.tensor(state[0], requires_grad=True)
        q.grad = torch.tensor(state[1])
        found["torch"] = torch.optim.AdamW([q], fused=True).step
    return found, 28 * n


def table(repeats, summary, names=()):
    speed = bandwidth()
    print(f"level {kernels.level()}, {kernels.get_num_threads()} threads, "
          f"copies at {speed / 1e9:.1f} GB/s\n")  # fmt: skip
    print(f"{'ms':22}{'kernel':>9}{'numpy':>9}{'torch':>9}{'floor':>9}   bytes/s of the copy's")
    rows = {}
    for name in tqdm(names or [*CASES, "adamw"], leave=False):
        if name == "adamw":
            runs, moved = adamw_runs(15_000_000)
        else:
            arrays, options, peer, factor = CASES[name]
            run = ours(getattr(tg.functional, name, None) or getattr(tg, name), arrays, options)
            runs = {"kernel": run, "numpy": by_definition(run)}
            if torch:
                runs["torch"] = theirs(peer, arrays, options, name)
            moved = factor * arrays[0].nbytes
        row = timed(runs, repeats, summary)
        row["floor"] = 1e3 * moved / speed
        rows[name] = row
        cells = "".join(f"{row.get(k, float('nan')):9.2f}" for k in runs | {"floor": 0})
        tqdm.write(f"{name:22}{cells}   {row['floor'] / row['kernel']:.0%}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the medians here too")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="names of kernels; all unless given")
    parser.add_argument("--least", action="store_true", help="the best instead of the median")
    given = parser.parse_args()
    found = table(given.repeats, min if given.least else np.median, given.only)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
