"""float32, float16 and bfloat16 keep what they can hold: every function, value and gradient."""

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import op
from tinygrad_ml.testing import GradientError, check_precision, registry
from tinygrad_ml.testing.precision import LOW
from tinygrad_ml.testing.strategies import Domain, Draw

FEW, MANY = range(3), range(3, 100)


def held(name, dtype, seeds):
    """How many cases the dtype could hold; all of them were within their bound."""
    spec = registry.find(name)
    cases = ((seed, registry.sample(spec, Draw(seed))) for seed in seeds)
    found = [check_precision(spec, case, dtype, seed) for seed, case in cases]
    return sum(worst is not None for worst in found)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", sorted(registry.registry()))
def test_within_the_bound(name, dtype):
    held(name, dtype, FEW)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", sorted(registry.registry()))
def test_within_the_bound_on_many_cases(name, dtype):
    assert held(name, dtype, MANY) > 0


def declared(function):
    """A spec of ordinary numbers for a function of one row of 60."""
    inputs = lambda draw: (draw.array((1, 60), Domain(0.5, 3), layout="contiguous"),)
    return registry.OpSpec("planted", function, inputs)


@op(half="native")
def narrow_sum(xp, x):
    """A sum that rounds after every addition."""
    y = x[..., 0]
    for i in range(1, x.shape[-1]):
        y = y + x[..., i]
    return y


narrow_sum.vjp(x=lambda g, x_shape: tg.ops.broadcast_to(g[..., None], shape=x_shape))


@op
def careless_square(xp, x):
    """Right in value; in float32 its gradient goes through float16."""
    return x * x


def through_float16(g):
    return g.astype(np.dtype("float16")).astype(g.dtype) if g.dtype == "float32" else g


careless_square.vjp(x=lambda g, x: through_float16(2 * g * x))


@pytest.mark.parametrize(
    "function, dtype",
    [
        (narrow_sum, "bfloat16"),
        (careless_square, "float32"),
        (lambda x: (x + 1000) - 1000, "float32"),
        (lambda x: tg.log(1 + x * 1e-4), "float32"),
    ],
    ids=["bfloat16 sum", "gradient in float16", "cancellation", "log for log1p"],
)
def test_lost_digits_are_found(function, dtype):
    spec = declared(function)
    case = registry.sample(spec, Draw(0))
    with pytest.raises(GradientError, match=f"planted in {dtype}: the (value|gradient)"):
        check_precision(spec, case, dtype)


def test_what_the_dtype_cannot_hold_is_left_out():
    spec = registry.find("ops.mul")
    case = registry.Case((np.array([1e30]), np.array([2.0])), {})
    assert check_precision(spec, case, "float16") is None
    assert check_precision(spec, registry.Case((np.ones(2), np.ones(2)), {}), "float16") is not None
