"""The table of subgradients, from the registry: `python -m tinygrad_ml.testing.subgradients`."""

import numpy as np

from . import registry

HEAD = """# Subgradients

What is answered where a function has no derivative. The table is made from the registry
(`python -m tinygrad_ml.testing.subgradients > docs/subgradients.md`), and each row is tested.
The gradient is that of the sum of the results.

| function | where | at | gradient | in words |
|---|---|---|---|---|"""


def table():
    """The table as Markdown."""
    rows = [HEAD]
    for name, spec in sorted(registry.registry().items()):
        for s in spec.subgradients:
            at, gradient = (", ".join(str(np.asarray(a).tolist()) for a in arrays)
                            for arrays in (s.args, s.expected))  # fmt: skip
            rows.append(
                f"| `{name}` | {s.where} | {at} | {gradient} | {s.says} |".replace("|x|", "abs x")
            )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
