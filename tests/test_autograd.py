"""The tape: what is kept, in which order it is read, and what it refuses."""

import asyncio
import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml.autograd import Output


def leaf(*numbers, dtype="float64"):
    return tg.tensor(np.array(numbers, dtype=dtype), requires_grad=True)


# --- first and higher derivatives


def test_gradient_accumulates_in_leaves():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad.tolist() == [5.0, 7.0]
    assert not x.grad.requires_grad


def test_a_value_used_many_times_gets_the_sum():
    x = leaf(2.0)
    y = x * x + x * x * x + x
    assert tg.grad(y.sum(), x).item() == 2 * 2 + 3 * 4 + 1


def test_derivatives_of_every_order():
    x = leaf(1.5)
    y = (x**5).sum()
    for expected in (5 * 1.5**4, 20 * 1.5**3, 60 * 1.5**2, 120 * 1.5, 120, 0):
        y = tg.grad(y, x, create_graph=True).sum()
        assert y.item() == pytest.approx(expected, rel=1e-14)


def test_gradient_of_an_interior_value():
    x = leaf(1.0, 2.0)
    h = x * 3
    y = (h * h).sum()
    gh, gx = tg.grad(y, [h, x])
    assert gh.tolist() == [6.0, 12.0] and gx.tolist() == [18.0, 36.0]
    assert tg.grad(y, h).tolist() == [6.0, 12.0]
    ghh = tg.grad(tg.grad(y, h, create_graph=True).sum(), h)
    assert ghh.tolist() == [2.0, 2.0]


def test_unconnected_gets_zeros_and_the_same_twice_gets_two_arrays():
    x, z = leaf(1.0, 2.0), leaf(1.0)
    a, b, c = tg.grad((x * x).sum(), [x, z, x])
    assert b.tolist() == [0.0]
    assert a.tolist() == c.tolist() == [2.0, 4.0] and a.data is not c.data


def test_grad_prunes_what_is_older_than_asked_for():
    opened = []
    x = leaf(1.0)
    old = x * 2
    old.register_hook(lambda g: opened.append(g))
    young = old * 3
    tg.grad((young * young).sum(), young)
    assert not opened


def test_grad_of_a_constant_is_zero():
    x = leaf(1.0, 2.0)
    assert tg.grad(tg.floor(x).sum(), x).tolist() == [0.0, 0.0]


# --- several outputs


@tg.op
def halves(xp, x):
    n = len(x) // 2
    return x[:n] * x[:n], x[n:] * 3


halves.vjp(x=lambda g, x: tg.ops.concatenate(g[0] * 2 * x[: x.shape[0] // 2], g[1] * 3))


def test_an_op_may_return_a_tuple():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    a, b = halves(x)
    assert tg.grad((a * b).sum(), x).tolist() == [18.0, 48.0, 3.0, 12.0]
    assert tg.grad(b.sum(), x).tolist() == [0.0, 0.0, 3.0, 3.0]
    assert tg.grad((a * b).sum(), [a, b])[0].tolist() == [9.0, 12.0]
    second = tg.grad(tg.grad((a * b).sum(), x, create_graph=True).sum(), x)
    # d/dx_i of 2 x_i b_i + 3 a_i: 2 b_i + 6 x_i, and 6 x_i for the other half
    assert second.tolist() == [2 * 9 + 6, 2 * 12 + 12, 6.0, 12.0]


def test_outputs_of_one_node_are_equal_however_often_they_join_the_tape():
    a, _ = halves(leaf(1.0, 2.0))
    assert Output(a.node.of, 0) == a.node != Output(a.node.of, 1)


# --- what is kept


def test_only_what_a_vjp_names_is_kept():
    frozen = tg.tensor(np.ones((4, 4)))
    x = tg.tensor(np.ones((4, 4)), requires_grad=True)
    node = (x @ frozen).node
    kept = [v for v, _ in node.saved if isinstance(v, tg.Tensor)]
    assert kept == [frozen] or all(v is frozen for v in kept)  # x is not kept: nobody asks for it


def test_misspelt_name_in_a_vjp_is_an_error_at_once():
    @tg.op
    def twice(xp, x):
        return 2 * x

    with pytest.raises(TypeError, match=r"unknown name \['gee'\]"):
        twice.vjp(x=lambda g, gee: g)
    with pytest.raises(TypeError, match=r"unknown name \['z'\]"):
        twice.vjp(z=lambda g: g)


def test_op_needs_xp_first():
    with pytest.raises(TypeError, match="first parameter must be xp"):
        tg.op(lambda x: x)


def test_backward_releases_and_says_so():
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(tg.GraphError, match="retain_graph=True"):
        y.backward()
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 6.0


def test_grad_never_releases():
    x = leaf(3.0)
    y = (x * x).sum()
    assert tg.grad(y, x).item() == tg.grad(y, x).item() == 6.0


def test_graphs_are_freed_by_reference_counting():
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        for f in (lambda: (x * x).sum(), lambda: halves(x)[0].sum(),
                  lambda: tg.checkpoint(tg.exp, x).sum()):  # fmt: skip
            y = f()
            y.backward(retain_graph=True)
            tg.grad(y, x, create_graph=True)
            alive = weakref.ref(y)
            del y
            assert alive() is None
    finally:
        gc.enable()


def test_a_deep_chain_does_not_recurse():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.item() == 1.0
    del y  # nor does freeing it


# --- stale values


def test_backward_over_a_changed_value_is_refused():
    w, x = leaf(2.0), leaf(3.0)
    y = (w * x).sum()
    w.assign_([5.0])
    with pytest.raises(tg.GraphError, match="mul.*assign_"):
        y.backward()


@pytest.mark.parametrize("view", [lambda w: w.T, lambda w: w[0], lambda w: w.detach(),
                                  lambda w: w.reshape(4)])  # fmt: skip
def test_views_and_detach_share_the_version(view):
    w = tg.tensor(np.ones((2, 2)), requires_grad=True)
    x = tg.tensor(np.ones(view(w).shape), requires_grad=True)
    y = (view(w) * x).sum()
    w.assign_(np.zeros((2, 2)))
    with pytest.raises(tg.GraphError, match="assign_"):
        tg.grad(y, x)


def test_a_copy_does_not_share_the_version():
    w = tg.tensor(np.ones(3), requires_grad=True)
    x = tg.tensor(np.ones(2), requires_grad=True)
    y = (w[np.array([0, 1])] * x).sum()
    w.assign_(np.zeros(3))
    assert tg.grad(y, x).tolist() == [1.0, 1.0]


def test_assign_rebinds_borrowed_memory():
    array = np.ones(3)
    w = tg.borrow(array, requires_grad=True)
    w.assign_([1.0, 2.0, 3.0])
    assert array.tolist() == [1.0, 1.0, 1.0] and w.tolist() == [1.0, 2.0, 3.0]


def test_assign_refuses_computed_values_and_other_shapes():
    x = leaf(1.0, 2.0)
    with pytest.raises(tg.GraphError, match="only a leaf"):
        (x * 2).assign_([1.0, 1.0])
    with pytest.raises(ValueError, match=r"got shape \(3,\), expected \(2,\)"):
        x.assign_([1.0, 2.0, 3.0])


# --- gradients are values


def test_no_two_gradients_share_memory():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = a + b
    cotangent = np.ones(2)
    y.backward(cotangent)
    arrays = [a.grad.data, b.grad.data, cotangent]
    for i, p in enumerate(arrays):
        assert not any(np.shares_memory(p, q) for q in arrays[i + 1 :])


def test_cotangent_is_checked_and_not_changed():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"cotangent: got shape \(3,\), expected \(2,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(tg.GraphError, match="reduce it"):
        (x * 2).backward()
    cotangent = np.array([1.0, 10.0])
    (x * 2).backward(cotangent)
    assert x.grad.tolist() == [2.0, 20.0] and cotangent.tolist() == [1.0, 10.0]


def test_backward_off_the_tape_says_why():
    with pytest.raises(tg.GraphError, match="requires_grad=True"):
        tg.tensor(1.0).backward()
    with pytest.raises(tg.GraphError, match="requires_grad=False"):
        tg.grad(leaf(1.0).sum(), tg.tensor(1.0))


def test_integers_cannot_require_a_gradient():
    with pytest.raises(TypeError, match="int64 has no gradient"):
        tg.tensor([1, 2], requires_grad=True)
    with pytest.raises(tg.GraphError, match="detach"):
        (leaf(1.0) * 2).requires_grad = False


# --- half types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_sums_are_accumulated_in_float32(dtype):
    ones = tg.tensor(np.ones(4096), dtype=dtype, requires_grad=True)
    assert ones.sum().item() == 4096 and ones.sum().dtype == ones.dtype
    bias = tg.tensor([0.0], dtype=dtype, requires_grad=True)
    (ones + bias).sum().backward()
    assert bias.grad.item() == 4096 and bias.grad.dtype == bias.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_derivatives_are_computed_in_float32_and_narrowed_once(dtype):
    numbers = np.linspace(-3, 3, 50)
    x = tg.tensor(numbers, dtype=dtype, requires_grad=True)
    wide = tg.tensor(x.data.astype("float32"), requires_grad=True)
    y = tg.softmax(x)
    g = np.linspace(0, 1, 50).astype(x.dtype)
    wide_y = tg.tensor(y.data.astype("float32"))
    expected = wide_y * (g.astype("float32") - (g.astype("float32") * wide_y).sum())
    assert (tg.grad(y, x, g).data == expected.data.astype(x.dtype)).all()
    assert tg.grad(tg.grad(y, x, g, create_graph=True).sum(), x).dtype == x.dtype
    assert wide.dtype == "float32"


# --- modes


def test_no_grad_records_nothing_and_is_per_thread_and_task():
    x = leaf(1.0)
    seen = {}

    def other_thread():
        seen["thread"] = (x * 2).requires_grad

    async def other_task():
        with tg.no_grad():
            await asyncio.sleep(0)
            return (x * 2).requires_grad

    async def both():
        task = asyncio.create_task(other_task())
        await asyncio.sleep(0)
        mine = (x * 2).requires_grad
        return mine, await task

    with tg.no_grad():
        assert not (x * 2).requires_grad
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert seen["thread"]
    assert asyncio.run(both()) == (True, False)


def test_no_grad_decorates():
    @tg.no_grad()
    def double(x):
        return x * 2

    assert not double(leaf(1.0)).requires_grad and not double(leaf(1.0)).requires_grad


def test_hooks_see_the_whole_gradient_and_may_replace_it():
    x = leaf(1.0, 2.0)
    h = x * 2
    seen = []
    h.register_hook(lambda g: seen.append(g.tolist()))
    remove = x.register_hook(lambda g: g * 10)
    (h * 3 + h).sum().backward()
    assert seen == [[4.0, 4.0]] and x.grad.tolist() == [80.0, 80.0]
    remove()
    assert tg.grad((x * 2).sum(), x).tolist() == [2.0, 2.0]


def test_detect_anomaly_names_the_op_and_the_line():
    x = leaf(0.0, 1.0)
    message = r"log made .*test_autograd.py:\d+: .*tg.log"
    ignored = np.errstate(divide="ignore")
    with tg.detect_anomaly(), ignored, pytest.raises(FloatingPointError, match=message):
        tg.log(x)
    with tg.detect_anomaly(), np.errstate(divide="ignore"):
        y = tg.sqrt(x)
        with pytest.raises(FloatingPointError, match=r"backward pass of sqrt .*y = tg.sqrt\(x\)"):
            tg.grad(y.sum(), x)


# --- checkpoint


def test_checkpoint_gives_the_same_bits_also_for_what_it_closes_over():
    rng = np.random.default_rng(0)
    x = tg.tensor(rng.normal(size=(5, 5)), requires_grad=True)
    w = tg.tensor(rng.normal(size=(5, 5)), requires_grad=True)
    interior = w * 2

    def f(z):
        return tg.tanh(z @ interior) @ w

    for order in (1, 2):
        results = []
        for run in (f, lambda z: tg.checkpoint(f, z)):
            y = (run(x * 3) ** 2).sum()
            found = tg.grad(y, [x, w, interior], create_graph=order == 2)
            if order == 2:
                found = tg.grad(sum((g * g).sum() for g in found), [x, w])
            results.append([g.numpy().tobytes() for g in found])
        if order == 1:
            assert results[0] == results[1]
        else:
            for a, b in zip(*results, strict=True):  # sums in another order: not the same bits
                np.testing.assert_allclose(np.frombuffer(a), np.frombuffer(b), rtol=1e-10)


def test_checkpoint_draws_the_same_random_numbers_again():
    def noisy(x, rng):
        return x * rng.normal(size=x.shape)

    x = leaf(1.0, 1.0)
    a, b = np.random.default_rng(1), np.random.default_rng(1)
    y, z = tg.checkpoint(noisy, x, a), noisy(x, b)
    assert y.tolist() == z.tolist()
    assert tg.grad(y.sum(), x).tolist() == tg.grad(z.sum(), x).tolist()
    assert a.normal() == b.normal()  # and the caller's generator has moved on as it would have


def test_checkpoint_lowers_peak_memory():
    x = tg.tensor(np.ones(100_000), requires_grad=True)

    def block(x):
        for _ in range(10):
            x = tg.tanh(x)
        return x

    def peak(run):
        tracemalloc.start()
        y = x
        for _ in range(8):
            y = run(y)
        y.sum().backward()
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    assert peak(lambda y: tg.checkpoint(block, y)) < 0.5 * peak(block)


def test_a_weights_gradient_is_not_copied():
    """It is an array of its own as it leaves the product: two of them would be the peak."""
    x, w = tg.tensor(np.ones((8, 512))), tg.tensor(np.ones((1024, 512)), requires_grad=True)
    y = tg.functional.linear(x, w).sum()
    tracemalloc.start()
    y.backward()
    high = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert high < 1.5 * w.grad.data.nbytes


def test_checkpoint_of_several_outputs():
    x = leaf(1.0, 2.0)
    a, b = tg.checkpoint(lambda z: (z * z, z * 3), x * 2)
    assert tg.grad((a * b).sum(), x).tolist() == [72.0, 288.0]  # d/dx 24 x^3


# --- fused functions


class Doubling:
    """A kernel that computes 2 x y, counting its calls."""

    calls = 0

    def supports(self, xp, x, y):
        return True

    def forward(self, xp, x, y):
        Doubling.calls += 1
        return 2 * x * y, None

    def backward(self, xp, needs, g, residuals, x, y):
        return [2 * g * y if needs[0] else None, 2 * g * x if needs[1] else None]


@tg.fused(Doubling())
def doubled(x, y):
    return x * y + x * y


@tg.use_kernels(True)
def test_a_kernel_computes_and_its_definition_is_differentiated_again():
    x, y = leaf(1.5, 2.0), leaf(3.0, 4.0)
    before = Doubling.calls
    z = doubled(x * 2, y * y)  # computed inputs: the pull must stop at them and go on outside
    assert Doubling.calls == before + 1
    first = tg.grad(z.sum(), [x, y])
    assert [g.tolist() for g in first] == [[36.0, 64.0], [36.0, 64.0]]
    gx, gy = tg.grad(z.sum(), [x, y], create_graph=True)
    assert tg.grad(gx.sum(), y).tolist() == [24.0, 32.0]
    assert tg.grad(gy.sum(), [x, y])[0].tolist() == [24.0, 32.0]
    assert "doubled" in tg.kernels_used()


def test_kernels_can_be_switched_off():
    before = Doubling.calls
    with tg.use_kernels(False):
        assert doubled(np.ones(2), np.ones(2)).tolist() == [2.0, 2.0]
    assert doubled.definition(np.ones(2), np.ones(2)).tolist() == [2.0, 2.0]
    assert Doubling.calls == before


@tg.use_kernels(True)
def test_a_stale_value_stops_a_fused_backward_too():
    x, y = leaf(1.0), leaf(2.0)
    z = doubled(x, y).sum()
    y.assign_([7.0])
    with pytest.raises(tg.GraphError, match="doubled.*assign_"):
        z.backward()


# --- pictures


def test_dot_shows_nodes_and_leaves():
    x, w = leaf(1.0), leaf(2.0)
    text = tg.to_dot((x * w).sum(), names={w: "w"})
    assert text.startswith("digraph") and "mul" in text and "w\\n(1,)" in text
    assert text.count("->") == 3
