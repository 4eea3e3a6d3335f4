"""The table of subgradients, from the registry: `python -m tinygrad_ml.testing.subgradients`."""

import numpy as np

from . import registry

HEAD = """# Subgradients

What is answered where a function has no derivative. The table is made from the registry
(`python -m tinygrad_ml.testing.subgradients > docs/subgradients.md`), and each row is tested.
The gradient is that of the sum of the results, one array for each argument.

Beside it stands what torch 2.13, JAX 0.10 and HIPS autograd 1.9 answer, as measured by
`tests/oracles/test_subgradients_elsewhere.py`, where it is something else.

| function | where | at | gradient | in words | torch | JAX | HIPS autograd |
|---|---|---|---|---|---|---|---|"""

# (function, where): what torch, JAX and HIPS autograd answer; - where they have no such function
ELSEWHERE: dict[tuple[str, str], tuple[str, str, str]] = {
    ("ops.div", "1 / 0"): ("[inf], [-inf]", "[inf], [-inf]", "[inf], [-inf]"),
    ("ops.div", "0 / 0"): ("[inf], [nan]", "[inf], [nan]", "[inf], [nan]"),
    ("ops.pow", "0^0 to a"): ("[0], [0]", "[nan], [0]", "[0], [0]"),
    ("ops.pow", "0^b, b > 1"): ("[0], [0]", "[0], [0]", "[0], [0]"),
    ("ops.pow", "0^1"): ("[1], [0]", "[1], [0]", "[1], [0]"),
    ("ops.maximum", "max(a, b) at a = b"): ("[0.5], [0.5]", "[0.5], [0.5]", "[0.5], [0.5]"),
    ("ops.minimum", "min(a, b) at a = b"): ("[0.5], [0.5]", "[0.5], [0.5]", "[0.5], [0.5]"),
    ("ops.abs", "|x| at 0"): ("[0, 0]", "[1, 1]", "[0, 0]"),
    ("ops.sqrt", "sqrt at 0"): ("[inf]", "[inf]", "[inf]"),
    ("ops.hypot", "hypot at (0, 0)"): ("[nan], [nan]", "[0.5], [0.5]", "-"),
    ("ops.relu", "relu at 0"): ("[0, 0]", "[0, 0]", "[0.5, 0.5]"),
    ("ops.where", "where(c, a, b): the branch not taken"): ("[0, 0], [1, 0], [0, 1]", "[0, 0], [1, 0], [0, 1]", "[0, 0], [1, 0], [0, 1]"),
    ("ops.clip", "clip at its bounds"): ("[1, 1]", "[0.5, 0.5]", "[0, 0]"),
    ("ops.max", "max of equal entries"): ("[0, 0.5, 0.5]", "[0, 0.5, 0.5]", "[0, 0.5, 0.5]"),
    ("ops.min", "min of equal entries"): ("[0.5, 0.5, 0]", "[0.5, 0.5, 0]", "[0.5, 0.5, 0]"),
    ("arrays.std", "std of equal entries"): ("[0, 0]", "[nan, nan]", "[nan, nan]"),
    ("arrays.sort", "sort of equal entries"): ("[1, 1, 1]", "[1, 1, 1]", "[1, 1, 1]"),
    ("functional.leaky_relu", "leaky_relu at 0"): ("[0.01]", "[1]", "-"),
    ("functional.selu", "selu at 0"): ("[1.7581]", "[1.7581]", "-"),
    ("functional.hardtanh", "hardtanh at its bounds"): ("[0, 0]", "[1, 1]", "-"),
    ("functional.max_pool2d", "max_pool of equal entries"): ("[[[[1, 0], [0, 0]]]]", "[[[[1, 0], [0, 0]]]]", "-"),
    ("linalg.det", "det of a singular matrix"): ("[[0, 0], [0, 0]]", "[[0, 0], [0, 1]]", "an error"),
    ("linalg.euclidean_norm", "norm of 0"): ("[0, 0]", "[nan, nan]", "[nan, nan]"),
}  # fmt: skip


def table():
    """The table as Markdown."""
    rows = [HEAD]
    for name, spec in sorted(registry.registry().items()):
        for s in spec.subgradients:
            gradient = shown(s.expected)
            others = (same(gradient, answer) for answer in ELSEWHERE.get((name, s.where), "???"))
            cells = (f"`{name}`", s.where, shown(s.args), gradient, s.says, *others)
            rows.append(f"| {' | '.join(cells)} |".replace("|x|", "abs x"))
    return "\n".join(rows) + "\n"


def shown(arrays):
    """Arrays as short text, [1, 0.5], [0]: what a cell of the table says."""
    return ", ".join(_text(np.asarray(a, float).tolist()) for a in arrays)


def _text(value):
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.6g}"


def same(gradient, answer):
    """The answer of another library, where it is another one."""
    return "same" if answer.replace("-0", "0") == gradient.replace("-0", "0") else answer


if __name__ == "__main__":
    print(table(), end="")
