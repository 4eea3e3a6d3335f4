"""What torch, JAX and HIPS autograd answer where there is no derivative, beside our table.

docs/subgradients.md shows it. After a change: python tests/oracles/test_subgradients_elsewhere.py
prints the lines of `ELSEWHERE` in tinygrad_ml/testing/subgradients.py.
"""

import numpy as np
import pytest

from tinygrad_ml.testing import registry, subgradients

ROWS = {(name, s.where): s for name, spec in registry.registry().items() for s in spec.subgradients}


def in_torch():
    import torch
    from torch.nn import functional as nn

    functions = {
        "arrays.sort": lambda x: torch.sort(x).values,
        "arrays.std": lambda x: torch.std(x, correction=0),
        "functional.hardtanh": nn.hardtanh,
        "functional.leaky_relu": nn.leaky_relu,
        "functional.max_pool2d": lambda x, size: nn.max_pool2d(x, size),
        "functional.selu": nn.selu,
        "linalg.det": torch.linalg.det,
        "linalg.euclidean_norm": torch.linalg.norm,
        "ops.abs": torch.abs,
        "ops.clip": torch.clamp,
        "ops.div": torch.div,
        "ops.hypot": torch.hypot,
        "ops.max": torch.max,
        "ops.maximum": torch.maximum,
        "ops.min": torch.min,
        "ops.minimum": torch.minimum,
        "ops.pow": torch.pow,
        "ops.relu": torch.relu,
        "ops.sqrt": torch.sqrt,
        "ops.where": lambda c, a, b: torch.where(c != 0, a, b),
    }

    def gradient(f, arrays):
        xs = [torch.tensor(a, requires_grad=True) for a in arrays]
        found = torch.autograd.grad(f(*xs).sum(), xs, allow_unused=True)
        return [x.detach() * 0 if g is None else g for g, x in zip(found, xs, strict=True)]

    return functions, gradient


def in_jax():
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def max_pool2d(x, size):
        window = (1, 1, size, size)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    functions = {
        "arrays.sort": jnp.sort,
        "arrays.std": jnp.std,
        "functional.hardtanh": jax.nn.hard_tanh,
        "functional.leaky_relu": jax.nn.leaky_relu,
        "functional.max_pool2d": max_pool2d,
        "functional.selu": jax.nn.selu,
        "linalg.det": jnp.linalg.det,
        "linalg.euclidean_norm": jnp.linalg.norm,
        "ops.abs": jnp.abs,
        "ops.clip": jnp.clip,
        "ops.div": jnp.divide,
        "ops.hypot": jnp.hypot,
        "ops.max": jnp.max,
        "ops.maximum": jnp.maximum,
        "ops.min": jnp.min,
        "ops.minimum": jnp.minimum,
        "ops.pow": jnp.power,
        "ops.relu": jax.nn.relu,
        "ops.sqrt": jnp.sqrt,
        "ops.where": lambda c, a, b: jnp.where(c != 0, a, b),
    }

    def gradient(f, arrays):
        total = lambda *xs: f(*xs).sum()
        return jax.grad(total, tuple(range(len(arrays))))(*map(jnp.asarray, arrays))

    return functions, gradient


def in_autograd():
    import autograd
    import autograd.numpy as anp

    functions = {
        "arrays.sort": anp.sort,
        "arrays.std": anp.std,
        "linalg.det": anp.linalg.det,
        "linalg.euclidean_norm": anp.linalg.norm,
        "ops.abs": anp.abs,
        "ops.clip": lambda x, min, max: anp.clip(x, min, max),
        "ops.div": anp.divide,
        "ops.max": anp.max,
        "ops.maximum": anp.maximum,
        "ops.min": anp.min,
        "ops.minimum": anp.minimum,
        "ops.pow": anp.power,
        "ops.relu": lambda x: anp.maximum(x, 0),  # it has no relu of its own
        "ops.sqrt": anp.sqrt,
        "ops.where": lambda c, a, b: anp.where(c != 0, a, b),
    }

    def gradient(f, arrays):
        total = lambda *xs: anp.sum(f(*xs))
        return [autograd.grad(total, k)(*arrays) for k in range(len(arrays))]

    return functions, gradient


LIBRARIES = {"torch": in_torch, "jax": in_jax, "autograd": in_autograd}  # in the table's order


def answers(package):
    """{(function, where): what the library says, as the table writes it}; - if it has none."""
    functions, gradient = LIBRARIES[package]()
    found = {}
    for (name, where), case in ROWS.items():
        arrays = [np.array(a, float) for a in case.args]
        f = functions.get(name)
        if f is None:
            found[name, where] = "-"
            continue
        try:
            with np.errstate(all="ignore"):
                g = gradient(lambda *xs, f=f, case=case: f(*xs, **case.options), arrays)
        except np.linalg.LinAlgError:
            found[name, where] = "an error"
        else:
            found[name, where] = subgradients.shown(map(np.asarray, g))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", LIBRARIES)
def test_the_table_says_what_the_library_answers(package):
    pytest.importorskip(package)
    column = list(LIBRARIES).index(package)
    written = {row: cells[column] for row, cells in subgradients.ELSEWHERE.items()}
    assert written == answers(package)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    columns = [answers(package) for package in LIBRARIES]
    for row in ROWS:
        print(f"    {row!r}:\n        {tuple(column[row] for column in columns)!r},")
