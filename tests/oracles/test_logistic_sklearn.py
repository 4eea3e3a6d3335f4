"""scikit-learn's own checks and solvers, and statsmodels' tables, as references."""

import numpy as np
import pytest

from tinygrad_ml.estimators import (
    CalibratedClassifier,
    IsotonicCalibration,
    LogisticRegression,
    LogisticRegressionCV,
    reliability_curve,
)

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn import datasets, linear_model
from sklearn.base import clone
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks


@parametrize_with_checks(
    [
        LogisticRegression(),
        LogisticRegression("l1"),
        LogisticRegression(solver="lbfgs"),
        LogisticRegressionCV(3, cv=2),
        CalibratedClassifier(cv=2),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("load", [datasets.load_iris, datasets.load_breast_cancer])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_same_minimum_or_a_lower_one(load):
    X, y = load(return_X_y=True)
    ours = LogisticRegression().fit(X, y)
    theirs = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-6)  # their tolerance
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_l1_is_sagas():
    X, y = datasets.load_iris(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    ours = LogisticRegression("l1", C=0.5).fit(X, y)
    theirs = linear_model.LogisticRegression(
        l1_ratio=1, C=0.5, solver="saga", tol=1e-10, max_iter=20_000
    ).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)


def test_within_scikit_learns_tools():
    X, y = datasets.load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), clone(LogisticRegression(C=2)))
    assert cross_val_score(model, X, y, cv=3).mean() > 0.9


def test_isotonic_is_theirs():
    rng = np.random.default_rng(0)
    s, y = rng.standard_normal(200), rng.integers(2, size=200)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(s, y)
    x = np.linspace(-4, 4, 100)
    np.testing.assert_allclose(IsotonicCalibration().fit(s, y).predict(x), theirs.predict(x))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_curve_is_theirs(strategy):
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p).astype(int)
    predicted, observed, _ = reliability_curve(y, p, bins=7, strategy=strategy)
    theirs = calibration_curve(y, p, n_bins=7, strategy=strategy)
    np.testing.assert_allclose((observed, predicted), theirs)


def statsmodels():
    return pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")


@pytest.mark.parametrize("kind", ["hessian", "HC0"])
def test_spector_is_statsmodels_logit(kind):
    sm = statsmodels()
    data = sm.datasets.spector.load()
    X, y = np.asarray(data.exog), np.asarray(data.endog)
    ours = LogisticRegression(None).fit(X, y).inference(X, y, covariance=kind)
    cov = "nonrobust" if kind == "hessian" else kind
    theirs = sm.Logit(y, np.hstack([X, np.ones((len(X), 1))])).fit(disp=0, tol=1e-14, cov_type=cov)
    effects = theirs.get_margeff()
    np.testing.assert_allclose(ours.params[0], theirs.params, rtol=1e-10)
    np.testing.assert_allclose(ours.std_err[0], theirs.bse, rtol=1e-9)
    np.testing.assert_allclose(ours.p[0], theirs.pvalues, rtol=1e-8)
    np.testing.assert_allclose((ours.aic, ours.bic), (theirs.aic, theirs.bic))
    np.testing.assert_allclose(np.stack(ours.conf_int(0.9))[:, 0].T, theirs.conf_int(0.1))
    np.testing.assert_allclose(
        ours.marginal_effects(), (effects.margeff, effects.margeff_se), rtol=1e-8
    )


def test_anes96_is_statsmodels_mnlogit():
    sm = statsmodels()
    data = sm.datasets.anes96.load()
    X, y = np.asarray(data.exog), np.asarray(data.endog).astype(int)
    ours = LogisticRegression(None).fit(X, y).inference(X, y)
    full = np.hstack([X, np.ones((len(X), 1))])
    theirs = sm.MNLogit(y, full).fit(disp=0, method="newton", maxiter=100, tol=1e-14)
    effects = theirs.get_margeff()
    np.testing.assert_allclose(ours.params, theirs.params.T, atol=1e-10)
    np.testing.assert_allclose(ours.std_err, theirs.bse.T, rtol=1e-9)
    np.testing.assert_allclose(ours.log_likelihood, theirs.llf)
    np.testing.assert_allclose(ours.marginal_effects()[0].T, effects.margeff, atol=1e-12)
    np.testing.assert_allclose(ours.marginal_effects()[1].T, effects.margeff_se, rtol=1e-8)
