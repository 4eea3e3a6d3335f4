"""Self-organising maps against MiniSom, and against scikit-learn's own list of demands."""

import numpy as np
import pytest

from tinygrad_ml.estimators import SOM, SOMClassifier, SOMRegressor


def data():
    return np.random.default_rng(0).standard_normal((80, 3)) * [3, 2, 1]


def pair(name="gaussian", **options):
    """The same map twice: MiniSom's, and ours with its schedule, sigma / (1 + 2t)."""
    minisom = pytest.importorskip("minisom")
    theirs = minisom.MiniSom(5, 6, 3, sigma=2.0, learning_rate=0.3, neighborhood_function=name,
                             random_seed=1)  # fmt: skip
    ours = SOM((5, 6), neighborhood=name, radius=2.0, radius_end=2 / 3, learning_rate=0.3,
               learning_rate_end=0.1, decay="inverse", init=theirs.get_weights().copy(),
               shuffle=False, **options)  # fmt: skip
    return theirs, ours


@pytest.mark.parametrize("name", ["gaussian", "mexican_hat"])
def test_sequential_training(name):
    theirs, ours = pair(name, training="online", max_iter=1)
    theirs.train(data(), 80)
    ours.fit(data())
    np.testing.assert_allclose(ours.codebook_, theirs.get_weights().reshape(30, 3), rtol=1e-9)


def test_batch_training():
    theirs, ours = pair(max_iter=8)
    theirs._learning_rate_decay_function = lambda rate, t, n: 1.0  # whole steps
    theirs._sigma_decay_function = lambda sigma, t, n: sigma / (1 + 2 * t / (n - 1))
    theirs.train_batch_offline(data(), 8)
    ours.fit(data())
    np.testing.assert_allclose(ours.codebook_, theirs.get_weights().reshape(30, 3), rtol=1e-9)


def test_measures():
    theirs, ours = pair(max_iter=4)
    ours.fit(data())
    theirs._weights = ours.codebook_.reshape(5, 6, 3)
    X = data()
    assert ours.quantization_error(X) == pytest.approx(theirs.quantization_error(X), rel=1e-12)
    assert ours.topographic_error(X) == pytest.approx(theirs.topographic_error(X), abs=1e-12)
    np.testing.assert_array_equal(ours.hit_map(X), theirs.activation_response(X))
    shape = ours.u_matrix() / ours.u_matrix().max()
    np.testing.assert_allclose(shape, theirs.distance_map(scaling="mean"), rtol=1e-9)


ORDER_COUNTS = {
    "check_sample_weight_equivalence_on_dense_data": "rows are learnt one after the other: three "
    "times in a row is not three times in a shuffled order",
}
ESTIMATORS = [
    (SOM(), {}),
    (SOM(grid="hexagonal", output="coordinates"), {}),
    (SOM(distance="manhattan", missing="mask"), {}),
    (SOM((4, 4), training="online"), ORDER_COUNTS),
    (SOMClassifier(), {}),
    (SOMRegressor(), {}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "exceptions"), ESTIMATORS, ids=lambda e: str(e)[:50])
def test_scikit_learn_accepts_it(estimator, exceptions):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    found = checks.check_estimator(estimator, expected_failed_checks=exceptions, on_fail=None)
    failed = {c["check_name"]: c["exception"] for c in found if c["status"] == "failed"}
    assert failed == {}
    assert {c["check_name"] for c in found if c["status"] == "xfail"} == set(exceptions)


def test_in_a_pipeline_and_a_grid_search():
    model_selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X = data()
    steps = pipeline.make_pipeline(preprocessing.StandardScaler(), SOM((3, 3)))
    search = model_selection.GridSearchCV(steps, {"som__shape": [(1, 2), (5, 5)]}, cv=3).fit(X)
    assert search.best_params_ == {"som__shape": (5, 5)}
