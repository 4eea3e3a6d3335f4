"""Derivatives of functions, against closed forms; and how they nest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg

seeds = st.integers(0, 2**32 - 1)


def matrices(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [tg.tensor(rng.normal(size=s)) for s in shapes]


@given(seeds)
def test_quadratic_form(seed):
    a, x, v = matrices(seed, (3, 3), (3,), (3,))
    f = lambda x: x @ (a @ x)
    both = a.data + a.data.T
    y, g = tg.value_and_grad(f)(x)
    np.testing.assert_allclose(y.data, x.data @ a.data @ x.data, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(g.data, both @ x.data, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tg.hessian(f)(x).data, both, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tg.hvp(f, x, v).data, both @ v.data, rtol=1e-12, atol=1e-12)


@given(seeds)
def test_jacobian_vjp_and_jvp_agree(seed):
    w, x, v, u = matrices(seed, (4, 3), (3,), (3,), (4,))
    f = lambda x: tg.tanh(w @ x)
    j = (1 - np.tanh(w.data @ x.data) ** 2)[:, None] * w.data
    _, pull = tg.vjp(f, x)
    np.testing.assert_allclose(tg.jacobian(f)(x).data, j, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(pull(u)[0].data, u.data @ j, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tg.jvp(f, [x], [v])[1].data, j @ v.data, rtol=1e-12, atol=1e-14)


def test_several_arguments():
    x, y = tg.tensor([1.0, 2.0]), tg.tensor([3.0, 4.0])
    f = lambda x, y: (x * x * y).sum()
    _, (gx, gy) = tg.value_and_grad(f)(x, y)
    assert gx.tolist() == [6.0, 16.0] and gy.tolist() == [1.0, 4.0]
    (hxx, hxy), (hyx, hyy) = tg.hessian(f)(x, y)
    assert hxx.tolist() == [[6.0, 0.0], [0.0, 8.0]] and hyy.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert hxy.tolist() == hyx.tolist() == [[2.0, 0.0], [0.0, 4.0]]
    jx, jy = tg.jacobian(lambda x, y: x * y)(x, y)
    assert jx.tolist() == [[3.0, 0.0], [0.0, 4.0]] and jy.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_they_nest():
    x = tg.tensor([0.7], dtype="float64")
    gradient = lambda x: tg.value_and_grad(lambda z: tg.sin(z).sum())(x)[1]
    np.testing.assert_allclose(tg.jacobian(gradient)(x).data, [[-np.sin(0.7)]])
    np.testing.assert_allclose(tg.hessian(lambda x: gradient(x).sum())(x).data, [[-np.cos(0.7)]])
    hv = lambda x: tg.hvp(lambda z: (z**4).sum(), [x], [np.ones(1)])
    np.testing.assert_allclose(tg.value_and_grad(lambda x: hv(x).sum())(x)[1].data, [24 * 0.7])
    _, jvp_slope = tg.value_and_grad(lambda x: tg.jvp(tg.exp, [x], [np.ones(1)])[1].sum())(x)
    np.testing.assert_allclose(jvp_slope.data, np.exp(0.7))


def test_arguments_are_left_as_they_were():
    x = tg.tensor([1.0], requires_grad=True)
    tg.value_and_grad(lambda z: (z * z).sum())(x)
    assert x.grad is None
    with tg.no_grad():
        assert tg.value_and_grad(lambda z: (z * z).sum())(x)[1].tolist() == [2.0]


def test_errors_say_what_was_expected():
    x = tg.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"f returned shape \(2,\), expected one number"):
        tg.value_and_grad(tg.exp)(x)
    with pytest.raises(ValueError, match=r"tangent of shape \(3,\), expected \(2,\)"):
        tg.jvp(tg.exp, [x], [np.ones(3)])
    with pytest.raises(ValueError, match="got 2 tangents, expected 1"):
        tg.jvp(tg.exp, [x], [x, x])
    with pytest.raises(ValueError, match="single number"):
        tg.hvp(tg.exp, x, x)


def test_jacobian_of_nothing():
    assert tg.jacobian(tg.exp)(tg.tensor(np.zeros(0))).shape == (0, 0)
