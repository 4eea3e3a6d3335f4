"""tg.optim: the published formulas, exact resuming, half types, clipping and schedules."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import io, optim
from tinygrad_ml.autograd import GraphError


def leaf(array, dtype="float64"):
    return tg.tensor(np.asarray(array), dtype=dtype, requires_grad=True)


def with_gradient(array, gradient, dtype="float64"):
    p = leaf(array, dtype)
    p.grad = tg.tensor(np.asarray(gradient), dtype=dtype)
    return p


def everything(p):
    return True


# --- the formulas, by hand


def test_sgd_moves_against_the_gradient():
    p = with_gradient([1.0, 2.0], [10.0, -10.0])
    optim.SGD([p], lr=0.1).step()
    assert p.tolist() == [0.0, 3.0]


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_adams_first_step_has_size_lr_whatever_the_gradients_scale(make, scale):
    p = with_gradient([1.0, 2.0], [scale, -scale])
    make([p], lr=0.1, eps=0, weight_decay=0).step()
    np.testing.assert_allclose(p.data, [0.9, 2.1], rtol=1e-12)  # float64: a few roundings


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW])
def test_every_optimiser_finds_the_minimum_of_a_quadratic(make):
    p = leaf([[3.0, -2.0]])
    optimizer = make([p], lr=0.1, weight_decay=0)
    for _ in range(300):
        optimizer.zero_grad()
        ((p - np.array([1.0, 5.0])) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(p.data, [[1, 5]], atol=1e-3)  # Adam circles within lr / 100


def test_decay_reaches_matrices_only_unless_told_otherwise():
    matrix, gain = with_gradient(np.ones((2, 2)), np.zeros((2, 2))), with_gradient([1.0], [0.0])
    optim.AdamW([matrix, gain], lr=0.1, weight_decay=0.5).step()
    assert matrix.tolist() == [[0.95] * 2] * 2
    assert gain.tolist() == [1.0]
    optim.AdamW([gain], lr=0.1, weight_decay=0.5, decays=everything).step()
    assert gain.tolist() == [0.95]


def test_groups_have_settings_of_their_own():
    slow, fast = with_gradient([0.0], [1.0]), with_gradient([0.0], [1.0])
    optim.SGD([{"parameters": [slow], "lr": 0.1}, {"parameters": [fast]}], lr=1.0).step()
    assert slow.tolist() == [-0.1]
    assert fast.tolist() == [-1.0]


def test_a_group_may_be_the_only_one_with_momentum():
    plain, heavy = leaf([0.0]), leaf([0.0])
    groups = [{"parameters": [plain]}, {"parameters": [heavy], "momentum": 0.5}]
    optimizer = optim.SGD(iter(groups), lr=1.0)
    for _ in range(2):
        plain.grad = heavy.grad = tg.tensor([1.0], dtype="float64")
        optimizer.step()
    assert plain.tolist() == [-2.0]
    assert heavy.tolist() == [-2.5]


def test_a_parameter_without_gradient_is_left_alone_and_starts_its_own_count_later():
    p, late = leaf([0.0]), leaf([0.0])
    optimizer = optim.Adam([p, late], lr=0.1, eps=0)
    for t in range(10):
        p.grad = tg.tensor([1.0], dtype="float64")
        late.grad = None if t < 9 else tg.tensor([1.0], dtype="float64")
        optimizer.step()
    np.testing.assert_allclose(late.data, [-0.1], rtol=1e-12)  # as any first step


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (3, 70_000), (70_000, 3), (1, 200_000)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_updated_piece_by_piece_to_the_same_bits(shape, order):
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, *shape))
    p = with_gradient(np.asarray(w, order=order), g)
    with tg.use_kernels(False):  # the kernel's last digits are its own
        optim.AdamW([p], weight_decay=0).step()
    m, v = (1 - 0.9) * g, (1 - 0.999) * (g * g)
    correction = (1 - 0.999) ** -0.5
    spread = np.sqrt(v) + 1e-8 / correction
    assert np.array_equal(p.data, w - 1e-3 / (1 - 0.9) / correction * m / spread)


# --- the tape and the memory


def test_a_stale_tape_refuses_to_run_backward_after_a_step():
    p = leaf([2.0])
    y = (p * p).sum()
    p.grad = tg.tensor([1.0], dtype="float64")
    optim.SGD([p], lr=0.1).step()
    with pytest.raises(GraphError, match=r"changed by assign_ \(or an optimiser step"):
        y.backward()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_read_only_memory_is_left_alone_and_the_parameter_gets_its_own(tmp_path, dtype):
    io.save(tmp_path / "a", {"w": np.ones(3, dtype)})
    mapped = io.load(tmp_path / "a")["w"]
    p = tg.Tensor.leaf(mapped, requires_grad=True)
    for _ in range(2):
        p.grad = tg.tensor(np.ones(3, dtype))
        optim.SGD([p], lr=0.25).step()
    assert p.tolist() == [0.5] * 3
    assert p.dtype == dtype
    assert mapped.tolist() == [1.0] * 3


def test_the_step_is_in_place_and_leaves_the_gradient_alone():
    p = with_gradient([1.0], [1.0])
    memory, gradient = p.data, p.grad
    optim.AdamW([p]).step()
    assert p.data is memory
    assert p.grad is gradient
    assert gradient.tolist() == [1.0]


def test_zero_grad_forgets():
    p = with_gradient([1.0], [1.0])
    optim.SGD([p], lr=1).zero_grad()
    assert p.grad is None


# --- half types


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_float32_masters_add_up_steps_that_a_half_type_cannot_hold(dtype):
    steps, lr = 100, 1e-4  # the spacing of float16 at 1 is 1e-3, that of bfloat16 8e-3
    kept, lost = leaf([1.0], dtype), leaf([1.0], dtype)
    for p, master in ((kept, "float32"), (lost, None)):
        optimizer = optim.SGD([p], lr=lr, master=master)
        for _ in range(steps):
            p.grad = tg.tensor([-1.0], dtype=dtype)
            optimizer.step()
    assert kept.data[0] == dtype(1 + steps * lr)
    assert lost.data[0] == 1
    assert kept.dtype == lost.dtype == dtype


def test_small_gradients_survive_in_float32_moments():
    p = with_gradient([1.0], [1e-5], np.float16)  # its square is 0 in float16
    optim.Adam([p], lr=0.25, eps=0).step()
    assert p.tolist() == [0.75]


@pytest.mark.parametrize("order", ["optimiser first", "weights first"])
def test_a_master_survives_a_resume_and_yields_to_new_weights(order):
    p = leaf([1.0], np.float16)
    optimizer = optim.SGD([p], lr=1e-4)
    for _ in range(3):
        p.grad = tg.tensor([-1.0], dtype=np.float16)
        optimizer.step()
    q = leaf([7.0], np.float16)
    resumed = optim.SGD([q], lr=1e-4)
    actions = [lambda: q.assign_(p.data), lambda: resumed.load_state_dict(optimizer.state_dict())]
    for action in actions if order == "weights first" else actions[::-1]:
        action()
    for o, x in ((optimizer, p), (resumed, q)):
        x.grad = tg.tensor([-1.0], dtype=np.float16)
        o.step()
    assert o.state["0"]["master"] == optimizer.state["0"]["master"] != np.float32(1)

    q.assign_(np.array([5.0]))
    resumed.step()
    assert abs(resumed.state["0"]["master"] - 5) < 1e-3


def test_a_master_yields_where_only_one_entry_was_changed():
    p = with_gradient([1.0, 2.0], [0.0, 0.0], np.float16)
    optimizer = optim.SGD([p], lr=1.0)
    optimizer.step()
    p.assign_(np.array([1.0, 3.0]))
    optimizer.step()
    assert p.tolist() == [1.0, 3.0]


# --- to stop and go on

makers = st.sampled_from(
    [
        lambda ps: optim.SGD(ps, lr=0.1, schedule=optim.warmup_linear(3, 9)),
        lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
        lambda ps: optim.AdamW(ps, lr=0.1, schedule=optim.warmup_cosine(2, 8)),
    ]
)


def train(optimizer, parameters, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = tg.tensor(rng.standard_normal(p.shape), dtype=p.dtype)
        optimizer.step()


@given(makers, st.integers(0, 4), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_a_resumed_run_has_the_same_bits(tmp_path_factory, make, before, dtype):
    path = tmp_path_factory.getbasetemp() / "state"
    first = [leaf(np.ones((3, 2)), dtype), leaf(np.ones(()), dtype)]
    optimizer = make(zip("ab", first, strict=True))
    train(optimizer, first, before, seed=1)
    io.save(path, optimizer.state_dict())
    second = [leaf(p.data, dtype) for p in first]
    resumed = make(zip("ab", second, strict=True))
    resumed.load_state_dict(io.load(path))
    train(optimizer, first, 3, seed=2)
    train(resumed, second, 3, seed=2)
    assert all((p.data == q.data).all() for p, q in zip(first, second, strict=True))
    again = resumed.state_dict()
    assert all(np.array_equal(x, again[name]) for name, x in optimizer.state_dict().items())


def test_a_state_dict_is_a_copy():
    p = with_gradient([1.0], [1.0])
    optimizer = optim.Adam([p])
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.step()
    assert saved["0.m"] != optimizer.state["0"]["m"]


def test_a_state_that_does_not_fit_is_refused_whole():
    p = with_gradient([1.0, 2.0], [1.0, 1.0])
    optimizer = optim.Adam([("w", p)])
    optimizer.step()
    saved = optimizer.state_dict() | {"w.m": np.zeros(3), "x.m": np.zeros(2)}
    del saved["w.v"]
    with pytest.raises(ValueError, match=r"(?s)w\.m is \(3,\).*w\.v \(2,\) is missing.*x\.m is un"):
        optimizer.load_state_dict(saved)
    assert optimizer.steps == 1
    assert optimizer.state["w"]["steps"] == 1


# --- what is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.SGD([], lr=1), ValueError, "got none"),
        (lambda p: optim.SGD([p, p], lr=1), ValueError, "1 comes twice"),
        (lambda p: optim.SGD([("w", p), ("w", leaf([1.0]))], lr=1), ValueError, "w comes twice"),
        (lambda p: optim.SGD([p.data], lr=1), TypeError, "expected a Tensor"),
        (lambda p: optim.SGD([p * 2], lr=1), ValueError, "computed value"),
        (lambda p: optim.SGD([p], lr=-1), ValueError, "lr: got -1"),
        (lambda p: optim.SGD([p], lr=math.nan), ValueError, "lr: got nan"),
        (lambda p: optim.SGD([p], lr=1, nesterov=True), ValueError, "nesterov"),
        (lambda p: optim.SGD([p], lr=1, momentum=1), ValueError, "momentum: got 1"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, "betas: got 1.0"),
        (lambda p: optim.AdamW([p], weight_decay=-1), ValueError, "weight_decay: got -1"),
        (lambda p: optim.AdamW([p], master="float16"), ValueError, "master: got 'float16'"),
        (lambda p: optim.SGD([{"parameters": [p], "rate": 1}], lr=1), TypeError, "'rate'"),
        (lambda p: optim.SGD([{"params": [p]}], lr=1), TypeError, "'parameters'"),
        (lambda p: optim.clip_grad_norm([p], 0), ValueError, "max_norm: got 0"),
        (lambda p: optim.warmup_cosine(5, 4), ValueError, "warmup: got 5"),
        (lambda p: optim.wsd(2, 4, 3), ValueError, "decay: got 3"),
    ],
)
def test_nonsense_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make(leaf([1.0]))


def test_a_misshapen_gradient_is_refused_before_anything_moves():
    first, second = with_gradient([1.0], [1.0]), with_gradient([1.0], [[1.0]])
    with pytest.raises(ValueError, match=r"1 is \(1,\), its gradient \(1, 1\)"):
        optim.SGD([first, second], lr=1).step()
    assert first.tolist() == [1.0]


# --- clipping


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_clipping_keeps_the_direction_and_bounds_the_norm(bound, seed):
    rng = np.random.default_rng(seed)
    gradients = [rng.standard_normal((3, 2)) * 10, rng.standard_normal(())]
    parameters = [with_gradient(np.zeros_like(g), g) for g in gradients]
    flat = np.concatenate([g.ravel() for g in gradients])
    norm = optim.clip_grad_norm(parameters, bound)
    clipped = np.concatenate([p.grad.data.ravel() for p in parameters])
    np.testing.assert_allclose(norm, np.linalg.norm(flat), rtol=1e-14)  # 7 terms in float64
    np.testing.assert_allclose(clipped, flat * min(1, bound / norm), rtol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "entry"),
    [("float16", 200.0), ("float32", 1e30), ("float64", 1e300), ("float64", 1e-300)],
)
def test_the_norm_neither_overflows_nor_vanishes(dtype, entry):
    p = with_gradient(np.zeros(100_000), np.full(100_000, entry), dtype)
    np.testing.assert_allclose(
        optim.grad_norm([p]), float(p.grad.data[0]) * math.sqrt(100_000), rtol=1e-12
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_clipped_gradient_keeps_its_dtype(dtype):
    p = with_gradient([0.0, 0.0], [3.0, 4.0], dtype)
    old = p.grad
    assert optim.clip_grad_norm([p], 2.5) == 5.0
    assert p.grad.dtype == tg.dtypes.as_dtype(dtype)
    assert p.grad.tolist() == [1.5, 2.0]
    assert old.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(bad):
    p, q = with_gradient([1.0], [bad]), with_gradient([1.0], [1.0])
    norm = optim.clip_grad_norm([p, q], 1.0)
    optim.AdamW([p, q]).step()
    assert not math.isfinite(norm)
    assert p.tolist() == q.tolist() == [1.0]


# --- schedules


@given(st.integers(0, 20), st.integers(1, 50), st.floats(0, 1))
def test_schedules_follow_their_closed_formulas(warmup, rest, floor):
    total = warmup + rest
    linear, cosine = (f(warmup, total, floor) for f in (optim.warmup_linear, optim.warmup_cosine))
    for step in range(warmup):
        assert linear(step) == cosine(step) == (step + 1) / warmup
    for step in range(warmup, total + 1):
        t = (step - warmup) / rest
        assert linear(step) == pytest.approx(1 - (1 - floor) * t, abs=1e-15)
        middle = (1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * t)
        assert cosine(step) == pytest.approx(middle, abs=1e-15)
    assert linear(10 * total) == pytest.approx(floor) == cosine(10 * total)


def test_warm_up_stable_decay():
    rates = [optim.wsd(2, 10, 4, floor=0.2)(step) for step in range(12)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_the_schedule_scales_every_groups_rate():
    p = leaf([0.0])
    optimizer = optim.SGD([{"parameters": [p], "lr": 2.0}], lr=1.0, schedule=lambda t: 0.5**t)
    for _ in range(3):
        p.grad = tg.tensor([1.0], dtype="float64")
        optimizer.step()
    assert p.tolist() == [-2.0 - 1.0 - 0.5]
    assert optimizer.rates() == [0.25]


@pytest.mark.parametrize("use", [True, False])
def test_adamw_keeps_float32_s_digits_of_its_decays(use):
    rng = np.random.default_rng(0)
    w, g = (rng.normal(size=1000).astype("float32") for _ in range(2))
    p = tg.tensor(w, requires_grad=True)
    p.grad = tg.tensor(g)
    optimizer = optim.AdamW([("w", p)], lr=1e-3, betas=(0.9, 0.999))
    with tg.use_kernels(use):
        optimizer.step()
    for slot, expected in (
        ("m", (1 - 0.9) * g.astype(float)),
        ("v", (1 - 0.999) * g.astype(float) ** 2),
    ):
        # 1 - b of a rounded b would be off by 1e-5; 4 roundings are allowed
        np.testing.assert_allclose(optimizer.state["w"][slot], expected, rtol=4 * 1.2e-7)


def test_half_gradients_are_widened_a_few_at_a_time():
    """All of them in float32 at once would be a copy of the model."""
    parameters = [tg.zeros(1 << 20, dtype="bfloat16", requires_grad=True) for _ in range(6)]
    optimizer = optim.AdamW(parameters)
    for _ in range(2):
        for p in parameters:
            p.grad = tg.ones(p.shape, dtype="bfloat16")
        tracemalloc.start()
        optimizer.step()
        grown = np.diff(tracemalloc.get_traced_memory())[0]
        tracemalloc.stop()
    assert grown < 3 * 4 * parameters[0].size
    first = np.asarray(parameters[0].data, np.float32)
    assert first.max() < 0  # it descended, and every other one as far
    assert all((np.asarray(p.data, np.float32) == first).all() for p in parameters)
