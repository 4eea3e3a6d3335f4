"""Seconds per epoch of batch training, beside the product that it cannot do without.

    python tests/benchmarks/som.py

floor    X W^T alone in blocks that fit the cache, in the same run; the ratio to it travels
         between machines, the seconds do not
XPySom   one epoch of its batch training (numpy)   where installed
MiniSom  as many sequential steps as there are rows, timed on a part of them   where installed
"""

import time

import numpy as np

from tinygrad_ml.estimators import SOM

CASES = [((40, 40), 10_000, 64, 0.02), ((100, 100), 100_000, 50, 1.0)]


def floor(X, k, block=1 << 20):
    """The product of best-matching: every row with every prototype."""
    table = np.ones((X.shape[1] + 1, k), X.dtype)
    rows = max(1, block // k)
    left, out = np.ones((rows, X.shape[1] + 1), X.dtype), np.empty((rows, k), X.dtype)

    def product():
        for _ in range(0, len(X), rows):
            np.matmul(left, table, out=out)

    return product


def tinygrad_ml(X, shape, **options):
    """One epoch, somewhere in the middle of a training."""
    som = SOM(shape, max_iter=10, **options).fit(X[:1000])
    return lambda: som._epoch(X, None, som.codebook_, 5, None)


def xpysom(X, shape):
    from xpysom import XPySom

    som = XPySom(*shape, X.shape[1], sigma=max(shape) / 2, sigmaN=0.5, n_parallel=2000, xp=np)
    return lambda: som.train(X, 1)


def minisom(X, shape, rows=500):
    from minisom import MiniSom

    som = MiniSom(*shape, X.shape[1], sigma=max(shape) / 4, random_seed=0)
    return lambda: som.train(X[:rows], rows)


def best(contestants, rounds):
    """The best time of each, in turns, so that a busy moment meets all."""
    times = dict.fromkeys(contestants, np.inf)
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def main():
    rng = np.random.default_rng(0)
    for shape, n, d, aim in CASES:
        X = rng.standard_normal((n, d), dtype=np.float32)
        k = shape[0] * shape[1]
        contestants = {
            "floor": floor(X, k),
            "tinygrad_ml": tinygrad_ml(X, shape),
            "tinygrad_ml, hexagonal": tinygrad_ml(X, shape, grid="hexagonal"),
            "tinygrad_ml, bubble": tinygrad_ml(X, shape, neighborhood="bubble"),
        }
        times = best(contestants, rounds=7 if n < 50_000 else 3)
        for name, make in (("XPySom", xpysom), ("MiniSom", minisom)):
            try:
                times |= best({name: make(X, shape)}, rounds=1)
            except ImportError:
                continue
        if "MiniSom" in times:
            times["MiniSom"] *= n / 500
        print(f"{shape[0]}x{shape[1]} units, {n} rows x {d}, float32; aim {aim} s")
        for name, seconds in times.items():
            print(f"  {name:24} {seconds:9.4f} s  {seconds / times['floor']:8.2f} floors  "
                  f"{seconds / times['tinygrad_ml']:8.2f} times ours")  # fmt: skip


if __name__ == "__main__":
    main()
