"""Logistic regression against its textbook forms, published tables and its own invariances."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml.estimators import (
    CalibratedClassifier,
    IsotonicCalibration,
    LogisticRegression,
    LogisticRegressionCV,
    PlattScaling,
    TemperatureScaling,
    expected_calibration_error,
    logistic_path,
    reliability_curve,
)
from tinygrad_ml.estimators.likelihood import (
    FirthObjective,
    Objective,
    curvature_of,
    curvature_times,
    gram,
    loss_and_gradient,
    loss_of_logits,
)
from tinygrad_ml.estimators.solvers import inverse

SEPARABLE = "separable"

# 32 students: grade point average, test score, new teaching method, grade improved.
# Spector & Mazzeo 1980; the table is in Greene, Econometric Analysis.
SPECTOR = """
2.66 20 0 0  2.89 22 0 0  3.28 24 0 0  2.92 12 0 0  4.00 21 0 1  2.86 17 0 0  2.76 17 0 0
2.87 21 0 0  3.03 25 0 0  3.92 29 0 1  2.63 20 0 0  3.32 23 0 0  3.57 23 0 0  3.26 25 0 1
3.53 26 0 0  2.74 19 0 0  2.75 25 0 0  2.83 19 0 0  3.12 23 1 0  3.16 25 1 1  2.06 22 1 0
3.62 28 1 1  2.89 14 1 0  3.51 26 1 0  3.54 24 1 1  2.83 27 1 1  3.39 17 1 1  2.67 24 1 0
3.65 21 1 1  4.00 23 1 1  3.10 21 1 0  2.39 19 1 1
"""


def spector():
    table = np.array(SPECTOR.split(), dtype=float).reshape(32, 4)
    return table[:, :3], table[:, 3].astype(int)


def blobs(n=120, d=4, classes=3, seed=0):
    """Overlapping classes, so that a maximum of the likelihood exists."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    X = rng.standard_normal((n, d)) + 0.7 * rng.standard_normal((classes, d))[y]
    return X, y


def sample(k, seed=0, n=7):
    """Logits (k, n), labels and weights."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n).astype(float) if k == 1 else rng.integers(k, size=n)
    return 3 * rng.standard_normal((k, n)), y, rng.random(n)


def all_close(a, b, rtol=1e-12):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


# --------------------------------------------------------------- the loss and its derivatives


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("function", [loss_and_gradient, curvature_of])
def test_fused_pass_equals_the_engine(function, k):
    for fused, engine in zip(function(*sample(k)), function.definition(*sample(k)), strict=True):
        all_close(fused, engine)


@pytest.mark.parametrize("k", [1, 3])
def test_fused_product_equals_the_engine(k):
    v = np.random.default_rng(1).standard_normal((k, 7))
    all_close(curvature_times(*sample(k), v), curvature_times.definition(*sample(k), v))


@pytest.mark.parametrize("k", [1, 3])
def test_fused_gram_equals_the_engine(k):
    X = np.random.default_rng(1).standard_normal((7, 2))
    all_close(gram(*sample(k), X), gram.definition(*sample(k), X))


@pytest.mark.parametrize("penalty", ["l2", "l1", None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [2, 3])
def test_a_fit_is_the_same_with_and_without_kernels(penalty, dtype, k):
    X, y = blobs(classes=k)
    model = LogisticRegression(penalty).fit(X.astype(dtype), y)
    with tg.use_kernels(False):
        plain = LogisticRegression(penalty).fit(X.astype(dtype), y)
    all_close(model.coef_, plain.coef_, 1e-10)
    all_close(model.intercept_, plain.intercept_, 1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_objective_equals_the_derivatives_of_its_tensor_form(k):
    X, y = blobs(20, 2, classes=max(k, 2))
    y = y.astype(float) if k == 1 else y
    o = Objective(X, y, np.ones(20), k, l2=0.1)
    theta = np.random.default_rng(0).standard_normal(o.shape)

    def f(t):
        z = t[:, :-1] @ X.T + t[:, -1:]
        return loss_of_logits(z, y, o.weight) + 0.05 * (t[:, :-1] * t[:, :-1]).sum()

    value, g = tg.value_and_grad(f)(tg.tensor(theta))
    flat = theta.ravel()
    v = np.linspace(-1, 1, o.size)
    all_close(o.gradient(flat)[0], value.item())
    all_close(o.gradient(flat)[1], g.numpy().ravel())
    all_close(o.hessian(flat), tg.hessian(f)(tg.tensor(theta)).numpy().reshape(o.size, o.size))
    all_close(o.hessian_product(flat)(v), o.hessian(flat) @ v)


def test_hessian_is_the_textbooks():
    X, y = blobs(30, 3, classes=2)
    o = Objective(X, y.astype(float), np.ones(30), 1, intercept=False)
    theta = np.array([0.3, -0.2, 0.5])
    p = 1 / (1 + np.exp(-X @ theta))
    all_close(o.gradient(theta)[1], X.T @ (p - y) / 30)
    all_close(o.hessian(theta), X.T @ np.diag(p * (1 - p)) @ X / 30)


def test_firth_gradient_is_that_of_the_penalised_likelihood():
    X, y = blobs(30, 2, classes=2)
    o = FirthObjective(X, y.astype(float), np.ones(30), 1)
    A = np.hstack([X, np.ones((30, 1))])
    theta = np.array([0.4, -0.3, 0.2])

    def f(t):
        z = A @ t
        p = tg.sigmoid(z)
        information = A.T @ ((p * (1 - p))[:, None] * A)
        _, logdet = tg.linalg.slogdet(information)
        return loss_of_logits(z[None], y, np.full(30, 1 / 30)) - logdet / 60

    value, g = tg.value_and_grad(f)(tg.tensor(theta))
    all_close(o.gradient(theta)[0], value.item())
    all_close(o.gradient(theta)[1], g.numpy())


def test_loss_neither_overflows_nor_loses_its_tail():
    z = np.array([[-800.0, 800.0, -800.0, 800.0]])
    y = np.array([0.0, 1.0, 1.0, 0.0])
    loss, g = loss_and_gradient(z, y, np.ones(4))
    assert loss == 1600
    assert g.tolist() == [[0, 0, -1, 1]]


@pytest.mark.parametrize("kernels", [True, False])
def test_fit_is_the_same_by_the_engine(kernels):
    X, y = blobs()
    with tg.use_kernels(kernels):
        model = LogisticRegression().fit(X, y)
    all_close(model.coef_, LogisticRegression(solver="newton-cg").fit(X, y).coef_, 1e-9)


# ------------------------------------------------------------------------------------ solvers


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [None, "l2"])
@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_smooth_solvers_end_at_one_minimum(solver, penalty, classes):
    X, y = blobs(classes=classes)
    X = X * [1, 100, 0.01, 1] + [0, 500, 3, 0]  # raw columns of unlike size
    exact = LogisticRegression(penalty).fit(X, y)
    model = LogisticRegression(penalty, solver=solver).fit(X, y)
    assert exact.solver_ == "newton"
    assert exact.converged_
    assert model.converged_
    all_close(model.decision_function(X), exact.decision_function(X), 1e-8)


@pytest.mark.parametrize("penalty", [None, "l2"])
@pytest.mark.parametrize("seed", range(6))
def test_a_line_search_that_sees_only_rounding_is_not_the_end(seed, penalty):
    for classes in (2, 3):  # f cannot tell two points apart here; the gradient can
        X, y = blobs(classes=classes, seed=seed)
        X = X * [1, 100, 0.01, 1] + [0, 500, 3, 0]
        assert LogisticRegression(penalty, solver="newton-cg").fit(X, y).converged_


@pytest.mark.parametrize("penalty", ["l1", "elasticnet"])
@pytest.mark.parametrize("classes", [2, 3])
def test_l1_solvers_end_at_one_minimum_with_exact_zeros(penalty, classes):
    X, y = blobs(classes=classes)
    near = LogisticRegression(penalty, C=0.05).fit(X, y)
    model = LogisticRegression(penalty, C=0.05, solver="fista").fit(X, y)
    assert near.solver_ == "proximal-newton"
    assert (near.coef_ == 0).any()
    assert ((near.coef_ == 0) == (model.coef_ == 0)).all()
    all_close(model.coef_, near.coef_, 1e-8)


@pytest.mark.parametrize("n", [3, 150])
def test_inverse_of_a_badly_scaled_matrix(n):
    rng = np.random.default_rng(0)
    A, scale = rng.standard_normal((2 * n, n)), 10.0 ** rng.integers(-6, 6, size=n)
    H, x = scale[:, None] * (A.T @ A) * scale, rng.standard_normal(n) / scale
    all_close(inverse(np, H)(H @ x) * scale, x * scale, 1e-9)


def test_least_subgradient_vanishes():
    X, y = blobs(classes=2)
    model = LogisticRegression("l1", C=0.1).fit(X, y)
    slope = 0.1 * X.T @ (model.predict_proba(X)[:, 1] - y)  # of the loss, times C
    active = model.coef_[0] != 0
    all_close(slope[active], -np.sign(model.coef_[0][active]), 1e-10)
    assert (np.abs(slope[~active]) <= 1).all()


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_sgd_converges_to_its_tolerance(penalty):
    X, y = blobs(500, classes=2)
    model = LogisticRegression(penalty, solver="sgd", random_state=0).fit(X, y)
    assert model.gradient_norm_ <= 1e-6
    all_close(model.coef_, LogisticRegression(penalty).fit(X, y).coef_, 1e-3)


def test_large_data_start_from_a_sample_and_end_at_the_minimum():
    X, y = blobs(200_000, 2, classes=2)
    model = LogisticRegression(None).fit(X, y)
    z = model.decision_function(X)
    assert np.abs(X.T @ (1 / (1 + np.exp(-z)) - y)).max() / len(y) < 1e-14
    assert model.n_iter_[0] < 10


def test_raw_iris_ends_at_machine_level():
    folder = os.environ.get("TINYGRAD_ML_DATA")
    if folder is None:
        pytest.skip("TINYGRAD_ML_DATA is not set: no iris data")
    table = np.loadtxt(Path(folder) / "iris" / "iris.csv", delimiter=",", skiprows=1)
    model = LogisticRegression().fit(table[:, :4], table[:, 4].astype(int))
    assert model.converged_
    assert model.gradient_norm_ < 1e-12  # entries of X reach 8, sums of products 50


def test_warm_start_has_nothing_left_to_do():
    X, y = blobs()
    model = LogisticRegression(warm_start=True).fit(X, y)
    first = model.coef_
    assert model.fit(X, y).n_iter_[0] == 1
    all_close(model.coef_, first)


def test_max_iter_too_small_is_said():
    X, y = blobs()
    with pytest.warns(UserWarning, match="max_iter=1 "):
        assert not LogisticRegression(max_iter=1).fit(X, y).converged_


def test_partial_fit_approaches_the_fit():
    X, y = blobs(4000, classes=2)
    model = LogisticRegression(batch_size=20, random_state=0)
    for part in np.array_split(np.arange(4000), 4):
        model.partial_fit(X[part], y[part], classes=[0, 1])
    exact = LogisticRegression().fit(X, y)
    assert model.score(X, y) > exact.score(X, y) - 0.02


@pytest.mark.parametrize("with_kernels", [True, False])
def test_sparse_input_equals_dense(with_kernels):
    sparse = pytest.importorskip("scipy.sparse")
    X, y = blobs()
    X = np.where(X > 0.5, X, 0)
    dense = LogisticRegression().fit(X, y)
    for solver in ("newton", "newton-cg", "lbfgs"):
        with tg.use_kernels(with_kernels):
            model = LogisticRegression(solver=solver).fit(sparse.csr_array(X), y)
        assert model.gradient_norm_ < 1e-14
        all_close(model.coef_, dense.coef_, 1e-8)
    all_close(model.predict_proba(sparse.csr_array(X)), model.predict_proba(X))


def test_memory_mapped_rows_are_fitted(tmp_path):
    X, y = blobs(classes=2)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    all_close(LogisticRegression().fit(mapped, y).coef_, LogisticRegression().fit(X, y).coef_)


# --------------------------------------------------------------------------------- invariances

seeds = st.integers(0, 1000)
classes = st.sampled_from([2, 3])


@given(seeds, classes)
def test_order_of_rows_does_not_matter(seed, k):
    X, y = blobs(60, 3, k, seed)
    order = np.random.default_rng(seed).permutation(60)
    one, two = LogisticRegression().fit(X, y), LogisticRegression().fit(X[order], y[order])
    all_close(one.coef_, two.coef_, 1e-9)


@given(seeds, classes)
def test_an_integer_weight_is_that_many_rows(seed, k):
    X, y = blobs(60, 3, k, seed)
    times = np.random.default_rng(seed).integers(0, 4, size=60)
    times[:k] = 1
    y[:k] = np.arange(k)
    weighted = LogisticRegression().fit(X, y, times)
    repeated = LogisticRegression().fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    all_close(weighted.coef_, repeated.coef_, 1e-9)


@given(seeds, classes)
def test_scaled_columns_give_scaled_coefficients(seed, k):
    X, y = blobs(150, 3, k, seed)
    scale = np.array([10.0, 0.1, 3.0])
    one, two = LogisticRegression(None).fit(X, y), LogisticRegression(None).fit(X * scale, y)
    all_close(one.coef_, two.coef_ * scale, 1e-7)


@given(seeds)
def test_permuted_classes_permute_the_coefficients(seed):
    X, y = blobs(60, 3, 3, seed)
    order = np.random.default_rng(seed).permutation(3)
    one, two = LogisticRegression().fit(X, y), LogisticRegression().fit(X, order[y])
    all_close(one.coef_, two.coef_[order], 1e-9)


def test_class_weight_is_a_sample_weight():
    X, y = blobs()
    by_class = LogisticRegression(class_weight={0: 2, 2: 5}).fit(X, y)
    by_row = LogisticRegression().fit(X, y, np.array([2.0, 1.0, 5.0])[y])
    all_close(by_class.coef_, by_row.coef_, 1e-10)


def test_intercept_is_not_penalised():
    X, y = blobs(classes=2)
    model = LogisticRegression(C=1e-9).fit(X, y)
    share = y.mean()
    all_close(model.intercept_, [math.log(share / (1 - share))], 1e-6)


# ------------------------------------------------------------------------- separation and Firth


@pytest.mark.parametrize("solver", ["newton", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("quasi", [False, True])
@pytest.mark.parametrize("with_kernels", [True, False])
def test_separable_data_warn_once_and_give_one_finite_answer(solver, quasi, with_kernels):
    X = np.array([[0.0], [1], [2], [2] if quasi else [2.5], [3], [4]])
    y = np.array([0, 0, 0, 1, 1, 1])
    with pytest.warns(UserWarning, match=SEPARABLE) as caught, tg.use_kernels(with_kernels):
        model = LogisticRegression(None, solver=solver).fit(X, y)
    assert len(caught) == 1
    assert model.separable_
    all_close(model.coef_, LogisticRegression(C=1e4).fit(X, y).coef_, 1e-6)


@given(seeds)
def test_data_that_overlap_are_not_called_separable(seed):
    X, y = blobs(100, 2, 2, seed)
    y[:2], X[0], X[1] = [0, 1], X[1] * 5, X[0] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(None).fit(X, y)
    if not model.separable_:
        assert model.converged_
    else:
        assert ((model.decision_function(X) > 0) == y).mean() > 0.9


def test_firth_on_a_two_by_two_table_adds_one_half():
    X = np.array([[0.0]] * 10 + [[1.0]] * 10)
    y = np.array([0] * 10 + [0] * 4 + [1] * 6)  # no event where x = 0: maximum at infinity
    model = LogisticRegression("firth").fit(X, y)
    expected = math.log((6.5 / 4.5) / (0.5 / 10.5))  # the log odds ratio, 1/2 in every cell
    all_close(model.coef_, [[expected]], 1e-9)


# ----------------------------------------------------------------------------------- inference


def test_spector_and_mazzeos_published_table():
    X, y = spector()
    r = LogisticRegression(None).fit(X, y).inference(X, y)
    np.testing.assert_allclose(r.params, [[2.826, 0.095, 2.379, -13.021]], atol=5e-4)
    np.testing.assert_allclose(r.std_err, [[1.263, 0.142, 1.065, 4.931]], atol=5e-4)
    np.testing.assert_allclose(r.z, [[2.238, 0.672, 2.234, -2.641]], atol=5e-4)
    np.testing.assert_allclose(r.p, [[0.025, 0.501, 0.025, 0.008]], atol=5e-4)
    np.testing.assert_allclose(r.conf_int()[0], [[0.351, -0.182, 0.292, -22.687]], atol=5e-4)
    np.testing.assert_allclose(r.log_likelihood, -12.890, atol=5e-4)
    np.testing.assert_allclose(r.pseudo_r2, 0.374, atol=5e-4)
    np.testing.assert_allclose(r.marginal_effects()[0], [0.3626, 0.0122, 0.3052], atol=5e-5)


def test_summary_shows_names_and_numbers():
    X, y = spector()
    text = LogisticRegression(None).fit(X, y).summary(X, y, covariance="HC0")
    assert "HC0" in text
    assert "-13.0213" in text
    assert "1.2675" in text  # the robust error of the first coefficient


def test_marginal_effects_are_differences_of_probabilities():
    X, y = blobs()
    model = LogisticRegression(None).fit(X, y)
    effects, _ = model.inference(X, y).marginal_effects()
    h = 1e-5
    for j, step in enumerate(h * np.eye(4)):
        change = (model.predict_proba(X + step) - model.predict_proba(X - step)).mean(axis=0)
        np.testing.assert_allclose(effects[:, j], change / (2 * h), atol=1e-9)  # h^2


def test_inference_refuses_what_has_no_standard_errors():
    X, y = blobs(classes=2)
    with pytest.raises(ValueError, match="L1"):
        LogisticRegression("l1").fit(X, y).inference(X, y)


def test_inference_names_a_column_that_others_determine():
    X, y = blobs(classes=2)
    X = np.hstack([X, X[:, :1] - 2 * X[:, 1:2]])
    model = LogisticRegression(None).fit(X, y)
    all_close(
        model.predict_proba(X),
        LogisticRegression(None).fit(X[:, :4], y).predict_proba(X[:, :4]),
        1e-8,
    )
    with pytest.raises(ValueError, match="x4 is a linear combination"):
        model.inference(X, y)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X[:, 0], y), "X: expected a 2D array"),
        (lambda X, y: (X, y[:-1]), "y: got 119 values for 120"),
        (lambda X, y: (X, 0 * y), "one class only"),
        (lambda X, y: (np.where(X[3, 1] == X, np.nan, X), y), "NaN, first in row 3, column 1"),
        (lambda X, y: (np.where(X[3, 1] == X, np.inf, X), y), "inf"),
        (lambda X, y: (np.hstack([X, 0 * X[:, :1] + 5]), y), "column 4 is constant"),
        (lambda X, y: (X, y + 0.5), "continuous"),
    ],
)
def test_bad_data_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(None).fit(*change(*blobs()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"penalty": "l3"}, "penalty"),
        ({"C": -1}, "C: got -1"),
        ({"penalty": "l1", "solver": "newton"}, "these do: proximal-newton, fista, sgd"),
        ({"penalty": "l2", "solver": "fista"}, "these do: newton, newton-cg, lbfgs, sgd"),
        ({"class_weight": {7: 1}}, "7 is none of the classes"),
        ({"tol": -1}, "tol"),
        ({"penalty": "firth"}, "two classes"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**parameters).fit(*blobs())


def test_weights_are_checked():
    X, y = blobs()
    for weight in (-np.ones(120), np.zeros(120), np.ones(3)):
        with pytest.raises(ValueError, match="sample_weight"):
            LogisticRegression().fit(X, y, weight)


def test_predict_before_fit_says_so():
    with pytest.raises(ValueError, match="not fitted"):
        LogisticRegression().predict([[1.0]])


# ----------------------------------------------------------------------- path, files, interface


def test_path_is_a_fit_for_each_c():
    X, y = blobs()
    Cs, coefs, _ = logistic_path(X, y, [0.1, 10])
    for C, coef in zip(Cs, coefs, strict=True):
        all_close(coef, LogisticRegression(C=C).fit(X, y).coef_, 1e-9)


def test_cross_validation_takes_the_best_mean_score():
    X, y = blobs()
    model = LogisticRegressionCV(5, cv=3, random_state=0).fit(X, y)
    assert model.scores_.shape == (3, 5)
    assert model.Cs_[model.scores_.mean(axis=0).argmax()] == model.C_
    all_close(model.coef_, LogisticRegression(C=model.C_).fit(X, y).coef_, 1e-9)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b", "c"]])
def test_saved_and_loaded_predicts_the_same(tmp_path, suffix, labels):
    X, y = blobs()
    model = LogisticRegression(C=math.pi).fit(X, np.array(labels)[y])
    model.save(tmp_path / f"m.{suffix}")
    again = LogisticRegression.load(tmp_path / f"m.{suffix}")
    assert again.get_params() == model.get_params()
    assert (again.predict(X) == model.predict(X)).all()
    assert (again.coef_ == model.coef_).all()


def test_load_refuses_other_files(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="not written by an estimator"):
        LogisticRegression.load(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        LogisticRegression.load(tmp_path / "y.npz")


def test_log_probabilities_are_exact_where_probabilities_underflow():
    model = LogisticRegression().fit(*blobs(classes=2))
    model.coef_, model.intercept_ = np.array([[1.0, 0, 0, 0]]), np.zeros(1)
    assert model.predict_log_proba([[2000.0, 0, 0, 0]])[0, 0] == -2000


def test_verbose_shows_progress(capfd):
    LogisticRegression(verbose=1).fit(*blobs())
    assert "newton" in capfd.readouterr().err


# --------------------------------------------------------------------------------- calibration


def test_reliability_curve_by_hand():
    predicted, observed, weight = reliability_curve([0, 1, 1, 1], [0.1, 0.3, 0.8, 0.9], bins=2)
    np.testing.assert_allclose(predicted, [0.2, 0.85])
    np.testing.assert_allclose(observed, [0.5, 1])
    assert weight.tolist() == [2, 2]
    np.testing.assert_allclose(
        expected_calibration_error([0, 1, 1, 1], [0.1, 0.3, 0.8, 0.9], bins=2), 0.225
    )


def test_platt_scaling_undoes_a_scale_and_a_shift():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(20_000)
    y = rng.random(20_000) < 1 / (1 + np.exp(-z))
    platt = PlattScaling().fit(5 * z + 2, y)
    np.testing.assert_allclose([platt.slope_, platt.intercept_], [0.2, -0.4], atol=0.02)


def test_isotonic_pools_violators():
    model = IsotonicCalibration().fit([1, 2, 3, 4, 5.0], [0, 1, 0, 1, 1])
    np.testing.assert_allclose(model.predict([0, 1, 2, 2.5, 3, 4, 9]), [0, 0, 0.5, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("k", [2, 4])
def test_temperature_is_found(k):
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((30_000, k))
    y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)  # a draw from softmax(z)
    logits = 3 * (z[:, 1] - z[:, 0]) if k == 2 else 3 * z
    model = TemperatureScaling().fit(logits, y)
    np.testing.assert_allclose(model.temperature_, 3, rtol=0.03)  # two standard errors
    assert model.predict(logits).shape == logits.shape


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_calibrated_classifier_lowers_the_error_of_an_overconfident_one(method):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 40))
    y = (X[:, 0] + 1.5 * rng.standard_normal(600) > 0).astype(int)
    raw = LogisticRegression(C=1e3).fit(X[:200], y[:200])
    model = CalibratedClassifier(LogisticRegression(C=1e3), method=method, random_state=0)
    model.fit(X[:200], y[:200])
    before, after = (
        expected_calibration_error(y[200:], m.predict_proba(X[200:])[:, 1]) for m in (raw, model)
    )
    assert after < before
