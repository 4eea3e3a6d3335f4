"""What one small operation costs: ours beside PyTorch's and bare numpy's, in one run.

    python tests/benchmarks/overhead.py [--repeats 60] [--json FILE]

Arrays are 4 x 4, so the arithmetic is nothing and the time is the engine's. Each figure is the
lower quartile of repeats that alternate between the two sides. Ratios below 1 are in our favour.
"""

import argparse
import json
import timeit

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml import autograd

try:
    import torch

    torch.set_num_threads(1)
except ImportError:
    torch = None


def lower_quartiles(functions, repeats, number):
    """Microseconds per call of each function, measured in turns."""
    times = [[] for _ in functions]
    for _ in range(repeats):
        for found, f in zip(times, functions, strict=True):
            found.append(timeit.timeit(f, number=number) / number * 1e6)
    return [sorted(found)[len(found) // 4] for found in times]


FORWARD = {
    "a * b": (lambda a, b: a * b, lambda a, b: a * b),
    "a + 2.0": (lambda a, b: a + 2.0, lambda a, b: a + 2.0),
    "a @ b": (lambda a, b: a @ b, lambda a, b: a @ b),
    "exp": (lambda a, b: a.exp(), lambda a, b: np.exp(a)),
    "sum": (lambda a, b: a.sum(), lambda a, b: a.sum()),
    "a[1]": (lambda a, b: a[1], lambda a, b: a[1]),
    "reshape": (lambda a, b: a.reshape(-1), lambda a, b: a.reshape(-1)),
    "transpose": (lambda a, b: a.T, lambda a, b: a.T),
}


def chain(a, b):
    y = a
    for _ in range(50):
        y = y * b
    y.sum().backward()


BACKWARD = {
    "(a * b).sum()": lambda a, b: (a * b).sum().backward(),
    "small network": lambda a, b: ((a @ b + b).tanh() @ b + a).sum().backward(),
    "chain of 50": chain,
}


GUARDS = {
    "is anything recording? (ContextVar)": lambda a: autograd._recording.get(),
    "is anyone looking on?": lambda a: autograd._onlookers and 1,
    "is it a half type?": lambda a: a.data.itemsize == 2,
    "is it on the tape?": lambda a: isinstance(a, autograd.Value) and a.birth,
    "stale value: note the version": lambda a: a.version[0] if a.version is not None else None,
    "stale value: compare the version": lambda a: a.version is not None and a.version[0] != 0,
    "cotangent's shape and dtype": lambda a: a.data.shape != (4, 4) or a.data.dtype != "f",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    x, y = np.random.default_rng(0).normal(size=(2, 4, 4)).astype("float32")
    a, b = tg.tensor(x), tg.tensor(y)
    p, q = (torch.tensor(x), torch.tensor(y)) if torch else (a, b)
    rows = []

    print(f"{'no_grad, us':24}{'numpy':>8}{'ours':>8}{'torch':>8}{'ours/torch':>12}")
    with tg.no_grad(), torch.no_grad() if torch else tg.no_grad():
        for name, (f, plain) in FORWARD.items():
            sides = [lambda p=plain: p(x, y), lambda f=f: f(a, b), lambda f=f: f(p, q)]
            rows.append((name, *lower_quartiles(sides, options.repeats, 2000)))
            _print_row(rows[-1])
    for v in (a, b, p, q):
        v.requires_grad = True
    print(f"\n{'forward + backward, us':24}{'':>8}{'ours':>8}{'torch':>8}{'ours/torch':>12}")
    for name, f in BACKWARD.items():
        sides = [lambda f=f: f(a, b), lambda f=f: f(p, q)]
        rows.append((name, None, *lower_quartiles(sides, options.repeats, 100)))
        _print_row(rows[-1])
    ratios = [ours / theirs for _, _, ours, theirs in rows]
    n = len(FORWARD)
    print(f"\ngeometric mean of the ratios: no_grad {np.exp(np.mean(np.log(ratios[:n]))):.2f}, "
          f"forward + backward {np.exp(np.mean(np.log(ratios[n:]))):.2f}")  # fmt: skip

    print(f"\n{'what each guard costs, ns':40}")
    empty, *costs = lower_quartiles(
        [lambda g=g: g(a) for g in (lambda a: None, *GUARDS.values())],
        options.repeats, 2000,
    )  # fmt: skip
    for name, cost in zip(GUARDS, costs, strict=True):
        print(f"  {name:40}{max(cost - empty, 0) * 1e3:6.0f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([dict(zip(("name", "numpy", "ours", "torch"), r, strict=True)) for r in rows],
                      file, indent=1)  # fmt: skip


def _print_row(row):
    name, plain, ours, theirs = row
    numpy_time = f"{plain:8.2f}" if plain is not None else " " * 8
    if torch is None:
        print(f"{name:24}{numpy_time}{ours:8.2f}{'-':>8}{'-':>12}")
    else:
        print(f"{name:24}{numpy_time}{ours:8.2f}{theirs:8.2f}{ours / theirs:12.2f}")


if __name__ == "__main__":
    main()
