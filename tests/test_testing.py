"""The tester tested: it finds what was planted, and finds nothing where nothing is wrong."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PLANTED

import tinygrad_ml as tg
from tinygrad_ml import op, ops, testing
from tinygrad_ml.testing import (
    GradientError,
    Subgradient,
    cases,
    check_grads,
    check_op,
    gradcheck,
    registry,
    subgradients,
)
from tinygrad_ml.testing.registry import check_case

seeds = pytest.mark.parametrize("seed", range(5))


def _plain(x):
    return x.data if isinstance(x, tg.Tensor) else x


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# --- what is wrong is found


@seeds
@pytest.mark.parametrize("name", PLANTED)
def test_planted(name, seed):
    f, args = PLANTED[name]()
    with pytest.raises(GradientError):
        check_grads(f, args, seed=seed)


def test_a_report_says_what_where_and_how_to_repeat_it():
    f, args = PLANTED["scaled_by_1_001"]()
    with pytest.raises(GradientError) as caught:
        check_grads(f, args, seed=5)
    text = str(caught.value)
    for part in ("sine", "order 1", "mode rev", "got", "expected", "±", "difference", "tape's jvp",
                 "seed         5", "check_grads(sine, [np.array("):  # fmt: skip
        assert part in text
    assert len(text.splitlines()) <= 12


# --- what is right passes: large and tiny, saturated, ill-conditioned, kinked, mixed arguments

RIGHT = {
    "tiny": lambda x: 1e-12 * tg.sin(x),
    "large": lambda x: 1e12 * tg.exp(x),
    "offset": lambda x: 1e6 + tg.sin(x),
    "saturated": lambda x: tg.tanh(20 * x) + tg.sigmoid(100 * x),
    "overflowing": lambda x: tg.softplus(1000 * x),
    "steep": lambda x: tg.sin(300 * x),
    "flat": lambda x: x**8,
    "kinked": lambda x: tg.relu(x) + tg.abs(x - 0.25) + tg.clip(x, -0.5, 0.5),
    "sorted": lambda x: tg.sort(x) * tg.cumsum(x),
    "extremes": lambda x: tg.max(x) * tg.min(x),
    "constant": lambda x: x * 0 + 1,
    "step": lambda x: tg.floor(x + 0.123) * x,
    "several": lambda x: (tg.sin(x), x.sum(), x.argmax()),
    "cancelling": lambda x: (1e4 + x) - 1e4,
    "norm": lambda x: tg.linalg.norm(x),
    "softmax": lambda x: tg.softmax(50 * x) @ x,
}


@seeds
@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(name, seed):
    check_grads(RIGHT[name], [normal(seed, 5)], seed=seed)


@seeds
def test_no_false_alarm_where_it_is_steep_at_one_point_and_flat_beside_it(seed):
    check_grads(lambda x: tg.tanh(3000 * x + 0.5), [np.array([0.0])], probe=False, seed=seed)


@seeds
def test_no_false_alarm_where_waves_are_short_beside_the_point(seed):
    check_grads(tg.sinc, [1000 * normal(seed, 4)], seed=seed)


def test_no_false_alarm_where_only_rounding_is_left():
    check_grads(tg.var, [np.full(3, 2.7010583518080624)])


@seeds
def test_no_false_alarm_when_ill_conditioned(seed):
    u, _ = np.linalg.qr(normal(seed, 4, 4))
    a = u @ np.diag([1, 0.1, 1e-2, 1e-3]) @ u.T
    check_grads(lambda a, b: tg.linalg.solve(a, b), [a, normal(seed, 4)], probe=False,
                rounding=10**6, seed=seed)  # fmt: skip  # condition 10^3, squared


@seeds
@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-8, 1e8, 1e30])
def test_no_false_alarm_at_any_scale_of_the_input(scale, seed):
    check_grads(lambda x: tg.sqrt(x * x + scale * scale), [scale * normal(seed, 4)], seed=seed)


def test_points_on_a_kink_are_held_to_the_one_sided_derivatives():
    check_grads(tg.relu, [np.array([0.0, -1.0, 2.0])])
    check_grads(tg.max, [np.array([2.0, 1.0, 2.0])])


def test_points_beside_a_kink_pass_when_it_is_declared():
    x = np.array([1e-9, -1e-9, 1 + 1e-9])
    check_grads(lambda x: tg.clip(x, 0, 1), [x], kinks=(0, 1))


@seeds
def test_no_false_alarm_beside_a_kink_of_the_first_derivative(seed):
    x = 1 + 1e-8 * normal(seed, 6)
    f = lambda x: tg.huber_loss(x, np.zeros(6), reduction="sum")
    check_grads(f, [x], kinks=lambda x: abs(x) - 1, probe=False, seed=seed)


def test_beside_a_kink_the_derivative_is_that_of_the_point_s_own_side():
    @op
    def relu(xp, x):
        return xp.maximum(x, 0)

    relu.vjp(x=lambda g, x: ops.where(np.abs(_plain(x)) < 1e-6, g / 2, ops.where(x > 0, g, 0)))
    check_grads(relu, [np.array([0.0, 1.0, -1.0])], kinks=0, probe=False)
    for beside in (1e-9, -1e-9):
        with pytest.raises(GradientError, match="order 1"):
            check_grads(relu, [np.array([beside, 1.0, -1.0])], kinks=0, probe=False)


@seeds
def test_no_false_alarm_where_gradients_are_subnormal(seed):
    check_grads(tg.cos, [np.array(5e-324)], probe=False, seed=seed)


@seeds
def test_no_false_alarm_where_it_changes_within_a_millionth_of_its_input(seed):
    x, w = np.full(2, 1686.0), np.full((4, 2), -200.0)  # 4 equal logits of 7e5
    check_grads(
        lambda x, w: tg.logsumexp(w @ x) - w[0] @ x, [x, w], order=1, probe=False, seed=seed
    )


def test_other_arguments_are_passed_through():
    index, mask = np.array([2, 0, 0]), np.array([True, False, True])
    f = lambda x, index, mask, name, n: tg.where(mask, x[index], x * n)
    check_grads(f, [normal(0, 3), index, mask, "a name", 3])


def test_a_tensor_passed_twice_is_one_variable():
    x = normal(0, 3)
    check_grads(tg.mul, [x, x], reference=np.multiply, analytic=True)


def test_the_same_seed_gives_the_same_result():
    first, second = (check_op("softmax", seed=3) for _ in range(2))
    assert (first.worst, first.compared) == (second.worst, second.compared)


# --- the registry


def test_ones_own_op():
    @testing.spec(lambda draw: (draw.array(draw.shape()),), np.arctan, name="mine.bend",
                  subgradients=(Subgradient("at 0", ([0.0],), ([1.0],)),))  # fmt: skip
    @op
    def bend(xp, x):
        return xp.arctan(x)

    bend.vjp(x=lambda g, x: g / (1 + x * x))
    try:
        assert check_op("mine.bend").compared > 0
        bend.vjp(x=lambda g, x: g / (1 + x))
        with pytest.raises(GradientError, match="check_op\\('mine.bend', seed="):
            check_op("mine.bend")
    finally:
        del registry.REGISTRY["mine.bend"]


def test_a_wrong_subgradient_is_found():
    wrong = registry.changed("relu", subgradients=(Subgradient("at 0", ([0.0],), ([1.0],)),))
    with pytest.raises(GradientError, match="subgradient at 0"):
        check_op(wrong, examples=1)


def test_an_op_without_a_spec_fails(monkeypatch):
    @op
    def unheard_of(xp, x):
        return x

    unheard_of.__module__ = ops.__name__
    monkeypatch.setattr(ops, "unheard_of", unheard_of, raising=False)
    with pytest.raises(LookupError, match="ops.unheard_of"):
        registry.require_complete(ops, exempt=registry.NOT_DIFFERENTIABLE)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(KeyError, match="ops.log_softmax"):
        check_op("log_soft")


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_cases_are_a_hypothesis_strategy(data):
    check_case("mul", data.draw(cases("mul")))


# --- the page about it

PAGE = Path(__file__).parent.parent / "docs" / "gradient-checking.md"


def test_the_page_s_examples_do_what_it_says():
    blocks = re.findall(r"```(python)?\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names, reports = {}, 0
    for (language, code), (following, output) in pairwise([*blocks, ("python", "")]):
        if language and not following and ": d y" in output:
            report = re.escape(output.splitlines()[0])
            with pytest.raises(GradientError, match=report) as caught:
                exec(compile(code, str(PAGE), "exec"), names)
            with pytest.raises(GradientError, match=report):  # what it offers can be pasted
                exec(str(caught.value).rpartition("repro")[2].strip(), names)
            reports += 1
        elif language:
            exec(compile(code, str(PAGE), "exec"), names)
    registry.REGISTRY.pop("mine.bend")
    assert reports == 2


# --- the command line and the plugin


def test_command_line(capsys):
    assert gradcheck.main(["softmax", "linalg.det"]) == 0
    out = capsys.readouterr().out
    assert "ops.softmax" in out and "2 right, 0 wrong" in out


def test_command_line_tells_a_wrong_rule(capsys, monkeypatch):
    monkeypatch.setitem(ops.tanh.vjps, "x", (lambda g, y: g * (1 - y), ("y",)))
    ops.tanh.plans.clear()
    try:
        assert gradcheck.main(["ops.tanh"]) == 1
    finally:
        monkeypatch.undo()
        ops.tanh.plans.clear()
    assert "check_op('ops.tanh', seed=" in capsys.readouterr().out


def test_command_line_refuses_an_unknown_name(capsys):
    with pytest.raises(SystemExit):
        gradcheck.main(["no such op"])
    assert "no single spec is called 'no such op'" in capsys.readouterr().err


def test_specs_without_scipy_say_what_to_install(monkeypatch):
    table = registry.TABLES[0]
    monkeypatch.delitem(sys.modules, f"tinygrad_ml.testing.{table}")
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"need scipy.*pip install 'tinygrad_ml\[test\]'"):
        registry.registry()


pytest_plugins = ["pytester"]


def test_plugin_prints_a_report(pytester):
    pytester.makepyfile("from tinygrad_ml.testing import check_op\ndef test(): check_op('mul')")
    result = pytester.runpytest_subprocess("-p", "tinygrad_ml.testing.plugin", "--grad-report")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= gradients =*", "function*cases*error/bar*", "ops.mul *"])


def test_the_table_of_subgradients_is_the_registry_s():
    written = Path(__file__).parent.parent / "docs" / "subgradients.md"
    assert written.read_text() == subgradients.table()
