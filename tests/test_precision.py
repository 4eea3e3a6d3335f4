"""float32, float16 and bfloat16 keep what they can hold: every function, value and gradient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import functional as F
from tinygrad_ml import kernels, op
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


def spoilt(forward, vjp, spoil):
    """An op whose gradient is spoilt in float32, and right in the truth that it is held to."""
    wrong = op(forward)
    wrong.vjp(x=lambda g, x: spoil(vjp(g, x), x) if g.dtype == "float32" else vjp(g, x))
    return wrong


def test_a_fault_is_found_at_0_as_well():
    """There |y| / |x| is no measure of the slope: exp's is 1."""
    exp = lambda xp, x: xp.exp(x)
    wrong = spoilt(exp, lambda g, x: g * np.exp(x), lambda r, x: np.where(x == 0, 1.001 * r, r))
    case = registry.Case((np.array([[0.0, 0.5, -2.0]]),), {})
    with pytest.raises(GradientError, match="the gradient, number 0"):
        check_precision(registry.OpSpec("planted", wrong, None), case, "float32")


def test_rows_of_different_sizes_are_held_each_to_its_own():
    """A norm's gradient is right to a rounding of the slopes of a small row; 200 are too many."""
    norm = F.rms_normalized
    vjp = lambda g, x: norm.vjps["x"][0](g, x, 1e-6)
    forward = lambda xp, x: norm.forward(xp, x, eps=1e-6)
    x = np.array([[1e3, 0.1, -0.2, 0.3], [1.0, 1e-4, 2e-4, -1e-4]])
    case = registry.Case((x,), {})
    by = lambda spoil: registry.OpSpec("planted", spoilt(forward, vjp, spoil), None)
    assert check_precision(by(lambda r, x: r), case, "float32") < 1
    shift = np.float32(200)
    with pytest.raises(GradientError, match="planted in float32: the gradient"):
        check_precision(by(lambda r, x: r + shift - shift), case, "float32")


def test_what_the_dtype_cannot_hold_is_left_out():
    spec = registry.find("ops.mul")
    case = registry.Case((np.array([1e30]), np.array([2.0])), {})
    assert check_precision(spec, case, "float16") is None
    assert check_precision(spec, registry.Case((np.ones(2), np.ones(2)), {}), "float16") is not None


# ---------------------------------------------------------------- products of float32 in parts


in_parts = pytest.mark.skipif(
    kernels.level() not in ("v3", "v4"), reason="float32 products are numpy's here"
)


def spread(rng, *shape):
    """Numbers of all sizes from 2^-10 to 2^10, with all bits of a float32 in use."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-10, 10, shape)).astype("float32")


def error_of(y, a, b):
    """The greatest error, relative to |a| |b|."""
    size = abs(a).astype("float64") @ abs(b).astype("float64")
    return (abs(y - a.astype("float64") @ b.astype("float64")) / size).max()


@in_parts
@given(
    st.sampled_from([(64, 64, 64), (9, 500, 33), (70, 900, 110), (129, 97, 65)]),
    st.sampled_from(["CC", "CF", "FC", "FF"]),
    st.integers(0, 2**32 - 1),
)
def test_products_in_parts_miss_at_most_three_of_2_to_the_minus_16(shape, layouts, seed):
    (m, k, n), rng = shape, np.random.default_rng(seed)
    a, b = (np.asarray(spread(rng, *s), order=order)
            for s, order in zip(((m, k), (k, n)), layouts, strict=True))  # fmt: skip
    with tg.matmul_precision("high"):
        found = (tg.tensor(a) @ tg.tensor(b)).numpy()
    assert found.dtype == "float32"
    sums = 2.0**-24 * (4 + (3 * k) ** 0.5)  # roundings of float32, as if at random
    assert error_of(found, a, b) <= 3 * 2.0**-16 + sums


@in_parts
def test_the_parts_of_a_number_add_up_to_it():
    """To 2^-16 of it, ties of bfloat16's rounding and what lies beside them included."""
    x = np.arange(2**23, 2**23 + 2**17, dtype=np.float32) * np.float32(2.0**-23)
    x = np.concatenate([x, -3 * x, x * np.float32(1e-30)]).reshape(3, -1)
    low, high, again = np.split(kernels.product.parts(x, 1, 0).astype("float64"), 3, axis=1)
    assert (high == again).all()
    assert (abs(low) <= 2.0**-8 * abs(x)).all()
    assert (abs(high + low - x) <= 2.0**-16 * abs(x)).all()


@in_parts
def test_float32_is_the_default_and_each_pass_goes_by_what_is_in_force():
    rng = np.random.default_rng(0)
    a, b, g = spread(rng, 64, 65), spread(rng, 65, 66), spread(rng, 64, 66)
    x = tg.tensor(a, requires_grad=True)

    def both_ways(forward, backward):
        with tg.matmul_precision(forward):
            y = x @ tg.tensor(b)
        with tg.matmul_precision(backward):
            (slope,) = tg.grad(y, [x], g)
        return y.numpy().tobytes(), slope.numpy().tobytes()

    exact, rough = both_ways("highest", "highest"), both_ways("high", "high")
    assert exact[0] != rough[0] and exact[1] != rough[1]
    assert both_ways("high", "highest") == (rough[0], exact[1])
    assert both_ways("highest", "high") == (exact[0], rough[1])
    y = x @ tg.tensor(b)
    assert (y.numpy().tobytes(), tg.grad(y, [x], g)[0].numpy().tobytes()) == exact


@in_parts
def test_linear_maps_and_the_loss_go_by_the_precision_too():
    rng = np.random.default_rng(0)
    x, w, targets = spread(rng, 64, 65), spread(rng, 66, 65), rng.integers(66, size=64)
    maps, loss = tg.functional.linear_maps, tg.linear_cross_entropy
    for f in (lambda: maps(x, w)[0], lambda: loss(x, w, targets)):
        exact = np.asarray(f())
        with tg.matmul_precision("high"):
            assert (np.asarray(f()) != exact).any()


@in_parts
def test_precision_ends_with_its_block_and_changes_nothing_else():
    rng = np.random.default_rng(0)
    wide, batches = rng.standard_normal((64, 64)), spread(rng, 3, 64, 64)
    few = spread(rng, 4, 64), spread(rng, 64, 1000)

    def products():
        pairs = (wide, wide), (batches, batches), few
        return [(tg.tensor(a) @ tg.tensor(b)).numpy().tobytes() for a, b in pairs]

    expected = products()
    with tg.matmul_precision("high"):
        assert products() == expected
    one = (tg.tensor(batches[0]) @ tg.tensor(batches[1])).numpy()
    with pytest.raises(KeyError), tg.matmul_precision("high"):
        raise KeyError
    np.testing.assert_array_equal((tg.tensor(batches[0]) @ tg.tensor(batches[1])).numpy(), one)


@in_parts
def test_products_in_parts_are_the_same_bits_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    a, b = tg.tensor(spread(rng, 300, 257)), tg.tensor(spread(rng, 257, 400))
    before, found = kernels.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        kernels.set_num_threads(threads)
        with tg.matmul_precision("high"):
            found.append((a @ b).numpy().tobytes())
    kernels.set_num_threads(before)
    assert len(set(found)) == 1


def test_a_precision_that_there_is_not():
    with pytest.raises(ValueError, match="matmul_precision: got 'medium', expected 'highest'"):
        tg.matmul_precision("medium")
