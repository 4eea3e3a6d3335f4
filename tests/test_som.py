"""Self-organising maps against their definitions, in float64 and by invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml.estimators import SOM, SOMClassifier, SOMRegressor, som_measures, som_plots
from tinygrad_ml.estimators.som_grid import DECAYS, NEIGHBORHOODS, Grid, smooth
from tinygrad_ml.estimators.som_soft import (
    free_energy,
    local_errors,
    soft_assignment,
    soft_quantization,
)
from tinygrad_ml.testing import check_grads

GRIDS = [
    ("rectangular", False, (4, 5)),
    ("rectangular", True, (5, 3)),
    ("rectangular", True, (1, 7)),
    ("hexagonal", False, (5, 4)),
    ("hexagonal", False, (1, 4)),
    ("hexagonal", True, (6, 4)),
]
grids = pytest.mark.parametrize(("kind", "toroidal", "shape"), GRIDS)
seeds = st.integers(0, 2**32 - 1)


def data(seed=0, n=60, d=4):
    """Rows on a bent sheet, so that a map has something to find."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1, 1, (n, 2))
    bent = np.stack([2 * u[:, 0], u[:, 1], u[:, 0] * u[:, 1], np.sin(2 * u[:, 0])], axis=1)
    return bent[:, :d] + 0.05 * rng.standard_normal((n, d))


def adjacency(grid, neighbors=None):
    """(k, k) bools: which units are neighbours of which."""
    found = np.zeros((grid.size, grid.size), bool)
    found[grid.neighbor_pairs(neighbors)] = True
    return found


def distances_by_definition(grid):
    """The shortest distance between two units, over all ways around a torus."""
    gaps = grid.positions[:, None] - grid.positions
    period = np.array([grid.columns, grid.rows * grid.row_height])
    turns = [-1, 0, 1] if grid.toroidal else [0]
    every = [np.linalg.norm(gaps + period * (a, b), axis=-1) for a in turns for b in turns]
    return np.min(every, axis=0)


# ------------------------------------------------------------------------------------ the grid


@grids
def test_distances_on_the_map(kind, toroidal, shape):
    grid = Grid(shape, kind, toroidal)
    np.testing.assert_allclose(grid.distances(), distances_by_definition(grid), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "neighbors", "inside", "corner"),
    [("rectangular", 4, 4, 2), ("rectangular", 8, 8, 3), ("hexagonal", 6, 6, 2)],
)
def test_number_of_neighbors(kind, neighbors, inside, corner):
    flat = adjacency(Grid((6, 6), kind), neighbors).sum(axis=1).reshape(6, 6)
    torus = adjacency(Grid((6, 6), kind, toroidal=True), neighbors).sum(axis=1)
    assert (flat[1:-1, 1:-1] == inside).all()
    assert flat[0, 0] == corner
    assert (torus == inside).all()


@grids
def test_pairs_of_neighbors_are_the_near_ones(kind, toroidal, shape):
    grid = Grid(shape, kind, toroidal)
    D = distances_by_definition(grid)
    near = (D > 0) & (D < 1.45 if kind == "rectangular" else D < 1.1)
    np.testing.assert_array_equal(adjacency(grid), near)
    first, second = np.indices(near.shape).reshape(2, -1)
    np.testing.assert_array_equal(grid.are_neighbors(first, second), near.reshape(-1))


def test_neighbors_on_hexagons_by_hand():
    # row 1 stands half a unit to the right: unit 4 = (1, 1) touches 1 and 2 above it
    assert np.flatnonzero(adjacency(Grid((3, 3), "hexagonal"))[4]).tolist() == [1, 2, 3, 5, 7, 8]


def test_hexagonal_torus_needs_even_rows():
    with pytest.raises(ValueError, match="even number"):
        SOM((5, 4), grid="hexagonal", toroidal=True).fit(data())


@grids
@pytest.mark.parametrize("name", NEIGHBORHOODS)
def test_smoothing_is_the_product_with_the_neighborhood(kind, toroidal, shape, name):
    grid, h = Grid(shape, kind, toroidal), NEIGHBORHOODS[name]
    values = np.random.default_rng(0).standard_normal((grid.size, 3))
    expected = h(distances_by_definition(grid), 1.7) @ values
    # the order of the sums differs: 20 terms of size 1 in float64
    np.testing.assert_allclose(smooth(grid, values, h, 1.7), expected, atol=1e-13)


@pytest.mark.parametrize("name", NEIGHBORHOODS)
def test_neighborhood_is_one_at_the_winner(name):
    assert NEIGHBORHOODS[name](np.zeros(1), 0.7) == 1


@pytest.mark.parametrize("name", DECAYS)
def test_decay_runs_from_start_to_end(name):
    values = DECAYS[name](5.0, 0.5, np.linspace(0, 1, 9))
    np.testing.assert_allclose(values[[0, -1]], [5.0, 0.5], rtol=1e-14)
    assert (np.diff(values) < 0).all()


# ------------------------------------------------------------------------------- the two rules


def batch_by_definition(X, codebook, grid, h, radii, weight=None):
    """Loops over rows and units: the batch rule as it is written."""
    weight = np.ones(len(X)) if weight is None else weight
    H = distances_by_definition(grid)
    for radius in radii:
        top, bottom = np.zeros_like(codebook), np.zeros(len(codebook))
        for x, m in zip(X, weight, strict=True):
            c = np.argmin(((x - codebook) ** 2).sum(axis=1))
            top += m * h(H[c], radius)[:, None] * x
            bottom += m * h(H[c], radius)
        reached = bottom > 0
        codebook = codebook.copy()
        codebook[reached] = top[reached] / bottom[reached, None]
    return codebook


@grids
@pytest.mark.parametrize("radius", [2.1, 1.3, 0.7])
@pytest.mark.parametrize("name", ["gaussian", "bubble", "epanechnikov"])
def test_batch_rule(kind, toroidal, shape, name, radius):
    # one step: after it units with the same few rows around them are equal, and winners a toss-up
    X, weight = data(), np.random.default_rng(1).uniform(0, 2, 60)
    grid, start = Grid(shape, kind, toroidal), data(7, n=shape[0] * shape[1])
    som = SOM(shape, grid=kind, toroidal=toroidal, neighborhood=name, radius=radius, init=start,
              max_iter=1).fit(X, sample_weight=weight)  # fmt: skip
    expected = batch_by_definition(X, start, grid, NEIGHBORHOODS[name], [radius], weight)
    np.testing.assert_allclose(som.codebook_, expected, rtol=1e-10, atol=1e-12)


@grids
def test_batch_training(kind, toroidal, shape):
    X, grid, start = data(), Grid(shape, kind, toroidal), data(7, n=shape[0] * shape[1])
    som = SOM(shape, grid=kind, toroidal=toroidal, radius=2, init=start, max_iter=6, decay="linear")
    expected = batch_by_definition(
        X, start, grid, NEIGHBORHOODS["gaussian"], np.linspace(2, 0.5, 6)
    )
    np.testing.assert_allclose(som.fit(X).codebook_, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NEIGHBORHOODS)
def test_sequential_rule(name):
    X, h, w = data(), NEIGHBORHOODS[name], data(7, n=12)
    som = SOM((3, 4), grid="hexagonal", training="online", neighborhood=name, init=w, radius=2,
              decay="linear", learning_rate=0.1, shuffle=False, max_iter=2).fit(X)  # fmt: skip
    H = distances_by_definition(Grid((3, 4), "hexagonal"))
    for step, x in enumerate(np.concatenate([X, X])):
        t = step / 120
        c = np.argmin(((x - w) ** 2).sum(axis=1))
        w = w + (0.1 + (0.01 - 0.1) * t) * h(H[c], 2 - 1.5 * t)[:, None] * (x - w)
    np.testing.assert_allclose(som.codebook_, w, rtol=1e-10)


def test_callables_stand_for_names():
    named = SOM((4, 4), neighborhood="triangle", decay="inverse").fit(data())
    called = SOM(
        (4, 4),
        neighborhood=lambda d, r: np.maximum(0, 1 - d / r),
        decay=lambda start, end, t: start / (1 + (start / end - 1) * t),
    ).fit(data())
    np.testing.assert_array_equal(named.codebook_, called.codebook_)


def test_manhattan_and_cosine_units_by_definition():
    X, w = data(), data(7, n=12)
    som = SOM((3, 4), init=w, max_iter=1, distance="manhattan").fit(X)
    D = np.abs(X[:, None] - som.codebook_).sum(axis=2)
    np.testing.assert_array_equal(som.predict(X), D.argmin(axis=1))
    np.testing.assert_allclose(som.transform(X), D, rtol=1e-12)
    som = SOM((3, 4), init=w, distance="cosine").fit(X)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(som.codebook_, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(som.transform(X), 1 - unit @ som.codebook_.T, atol=1e-12)


def test_partial_fit_online_repeats_fit():
    parameters = dict(training="online", max_iter=3, random_state=5, init=data(7, n=12))
    whole, steps = SOM((3, 4), **parameters).fit(data()), SOM((3, 4), **parameters)
    for _ in range(3):
        steps.partial_fit(data())
    np.testing.assert_array_equal(steps.codebook_, whole.codebook_)


def test_partial_fit_batch_at_rate_one_repeats_fit():
    parameters = dict(max_iter=3, learning_rate=1.0, learning_rate_end=1.0)
    whole, steps = SOM((3, 4), **parameters).fit(data()), SOM((3, 4), **parameters)
    for _ in range(3):
        steps.partial_fit(data())
    np.testing.assert_array_equal(steps.codebook_, whole.codebook_)


def test_partial_fit_on_chunks_comes_near_fit():
    X, stream = data(n=600), SOM((5, 5), max_iter=30)
    for i in range(60):
        stream.partial_fit(X[i % 6 :: 6])
    assert stream.quantization_error(X) < 1.3 * SOM((5, 5)).fit(X).quantization_error(X)


def test_early_stopping_stops_where_nothing_falls_any_more():
    som = SOM((3, 3), max_iter=200, radius=1.0, radius_end=0.9, tol=1e-4, patience=2).fit(data())
    errors = som.quantization_errors_
    assert som.n_iter_ == len(errors) < 200
    assert errors[-2:].min() > errors[-3] * (1 - 1e-4)
    assert SOM((3, 3), max_iter=200, radius=1.0, radius_end=0.9).fit(data()).n_iter_ == 200


# ------------------------------------------------------------------------------ first codebooks


@grids
def test_pca_start_lies_in_the_main_plane(kind, toroidal, shape):
    X = data()
    plane = SOM(shape, grid=kind, toroidal=toroidal)._first_codebook(X, None, None)
    _, deviations, axes = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    inside = (plane - X.mean(axis=0)) @ axes.T
    np.testing.assert_allclose(inside[:, 2:], 0, atol=1e-12)
    reach = np.ptp(inside, axis=0)[:2] / 2
    sides = 2 if min(shape) > 1 else 1
    expected = deviations / np.sqrt(len(X))
    np.testing.assert_allclose(reach[:sides], expected[:sides], rtol=1e-9)


def test_pca_start_of_wide_data_is_the_same_plane():
    X = np.random.default_rng(0).standard_normal((6, 20))
    narrow = np.linalg.qr(X.T)[0]  # the same rows in 6 coordinates
    wide = SOM((3, 4))._first_codebook(X, None, None)
    low = SOM((3, 4))._first_codebook(X @ narrow, None, None) @ narrow.T
    distance = lambda w: np.linalg.norm(w[:, None] - w, axis=2)  # whatever the signs
    np.testing.assert_allclose(distance(wide), distance(low), atol=1e-10)


def test_samples_start_with_rows_and_random_within_the_box():
    X = data()
    for name in ("samples", "random"):
        first = SOM((3, 4), init=name)._first_codebook(X, None, np.random.default_rng(0))
        assert (first >= X.min(axis=0)).all()
        assert (first <= X.max(axis=0)).all()
    rows = SOM((3, 4), init="samples")._first_codebook(X, None, np.random.default_rng(0))
    assert {tuple(r) for r in rows} <= {tuple(r) for r in X}
    assert len({tuple(r) for r in rows}) == 12


# ---------------------------------------------------------------------------------- invariances


@given(seeds)
def test_order_of_rows_does_not_matter(seed):
    X, rng = data(seed), np.random.default_rng(seed)
    a, b = SOM((4, 4)).fit(X), SOM((4, 4)).fit(rng.permutation(X))
    np.testing.assert_allclose(a.codebook_, b.codebook_, rtol=1e-7, atol=1e-9)


@given(seeds)
def test_a_weight_is_a_repetition(seed):
    X, times = data(seed), np.random.default_rng(seed).integers(0, 4, 60)
    weighted = SOM((4, 4)).fit(X, sample_weight=times)
    repeated = SOM((4, 4)).fit(np.repeat(X, times, axis=0))
    np.testing.assert_allclose(weighted.codebook_, repeated.codebook_, rtol=1e-7, atol=1e-9)


def test_a_weight_is_a_repetition_online():
    # while the winner stays the same unit; here there is but one
    X, times = data(n=5), np.array([1, 3, 2, 1, 4])
    parameters = dict(training="online", init=np.zeros((1, 4)), shuffle=False, max_iter=1,
                      learning_rate_end=0.5)  # fmt: skip
    weighted = SOM((1, 1), **parameters).fit(X, sample_weight=times)
    repeated = SOM((1, 1), **parameters).fit(np.repeat(X, times, axis=0))
    np.testing.assert_allclose(weighted.codebook_, repeated.codebook_, rtol=1e-12)


@given(seeds, st.integers(-20, 20), st.floats(-50, 50))
def test_scaled_and_shifted_data_scale_and_shift_the_map(seed, exponent, shift):
    X, scale = data(seed), 2.0**exponent  # a power of two rounds nothing
    map_of_scaled = SOM((4, 4)).fit(scale * (X + shift)).codebook_
    np.testing.assert_allclose(map_of_scaled, scale * (SOM((4, 4)).fit(X).codebook_ + shift),
                               rtol=1e-7, atol=1e-7 * scale)  # fmt: skip


@given(seeds, st.integers(1, 70))
def test_block_size_does_not_change_the_map(seed, block):
    X = data(seed)
    whole, parts = SOM((4, 4)).fit(X), SOM((4, 4), block_size=block).fit(X)
    np.testing.assert_array_equal(whole.codebook_, parts.codebook_)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_follows_float64_also_far_from_zero(offset):
    X = (data(n=300) + offset).astype(np.float32)
    single, double = SOM((5, 5)).fit(X), SOM((5, 5)).fit(X.astype(np.float64))
    assert single.codebook_.dtype == np.float32
    # one ulp of the coordinates is 1e-3 at 1e4; a winner may change where two are that near
    close = single.quantization_error(X) / double.quantization_error(X.astype(np.float64))
    assert close == pytest.approx(1, abs=1e-4 if offset == 0 else 2e-2)


# --------------------------------------------------------------------------------- missing data


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_nothing_missing_under_a_mask_is_no_mask(distance):
    masked = SOM((4, 4), distance=distance, missing="mask").fit(data())
    plain = SOM((4, 4), distance=distance).fit(data())
    np.testing.assert_allclose(masked.codebook_, plain.codebook_, rtol=1e-9, atol=1e-12)


def test_missing_values_in_the_batch_rule_by_definition():
    X, w = data(), data(7, n=12)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X = X[~np.isnan(X).all(axis=1)]
    som = SOM((3, 4), init=w, missing="mask", max_iter=1, radius=1.5).fit(X)
    c = np.nansum((X[:, None] - w) ** 2, axis=2).argmin(axis=1)
    h = NEIGHBORHOODS["gaussian"](Grid((3, 4)).distances()[c], 1.5)  # (n, k)
    expected = h.T @ np.nan_to_num(X) / (h.T @ ~np.isnan(X))
    np.testing.assert_allclose(som.codebook_, expected, rtol=1e-10)


def test_missing_values_distances_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics.pairwise")
    X = data()
    X[::3, 1] = X[::5, 2] = np.nan
    som = SOM((3, 4), missing="mask").fit(X)
    expected = metrics.nan_euclidean_distances(X, som.codebook_)
    np.testing.assert_allclose(som.transform(X), expected, rtol=1e-7)
    assert som.quantization_error(X) == pytest.approx(expected.min(axis=1).mean(), rel=1e-9)


def test_online_training_moves_no_missing_feature():
    X = data()
    X[:, 2] = np.nan
    start = data(7, n=12)
    som = SOM((3, 4), init=start, missing="mask", training="online").fit(X)
    np.testing.assert_array_equal(som.codebook_[:, 2], start[:, 2])
    assert (som.codebook_[:, 0] != start[:, 0]).all()


# ------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("kind", "second", "errors"),
    [
        ("rectangular", (0, 1), {4: 0, 8: 0}),
        ("rectangular", (1, 1), {4: 1, 8: 0}),
        ("rectangular", (0, 2), {4: 1, 8: 1}),
        ("hexagonal", (1, 0), {6: 0}),
        ("hexagonal", (1, 1), {6: 1}),
    ],
)
def test_topographic_error_by_hand(kind, second, errors):
    codebook = 100.0 + np.arange(9.0)[:, None]
    codebook[0], codebook[second[0] * 3 + second[1]] = 0.0, 1.0
    som = SOM((3, 3), grid=kind, init=codebook).fit([[0.0]])
    som.codebook_ = codebook
    for neighbors, expected in errors.items():
        assert som.topographic_error([[0.1]], neighbors=neighbors) == expected


def test_distortion_by_definition():
    X, som = data(), SOM((3, 4)).fit(data())
    D = ((X[:, None] - som.codebook_) ** 2).sum(axis=2)
    h = NEIGHBORHOODS["gaussian"](Grid((3, 4)).distances()[D.argmin(axis=1)], 1.3)
    expected = (h * D).sum(axis=1).mean()
    assert som.distortion(X, radius=1.3) == pytest.approx(expected, rel=1e-10)


def test_batch_training_at_one_radius_lowers_the_local_error():
    # the mean step is the minimum of the distortion for fixed winners
    X, start = data(), data(7, n=12)
    D = Grid((3, 4)).distances()
    winners = ((X[:, None] - start) ** 2).sum(axis=2).argmin(axis=1)
    cost = lambda w: (np.exp(-(D[winners] ** 2) / 2) * ((X[:, None] - w) ** 2).sum(axis=2)).sum()
    after = SOM((3, 4), init=start, max_iter=1, radius=1.0).fit(X).codebook_
    assert cost(after) < cost(start)
    assert cost(after) <= cost(after + 1e-4) and cost(after) <= cost(after - 1e-4)


def test_kaski_lagus_by_all_shortest_paths():
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    X, som = data(), SOM((4, 5), grid="hexagonal").fit(data())
    w = som.codebook_
    apart = np.linalg.norm(w[:, None] - w, axis=2) * adjacency(Grid((4, 5), "hexagonal"))
    ways = csgraph.shortest_path(apart)
    D = np.linalg.norm(X[:, None] - w, axis=2)
    first, second = np.argsort(D, axis=1)[:, :2].T
    expected = (D.min(axis=1) + ways[first, second]).mean()
    assert som.kaski_lagus(X) == pytest.approx(expected, rel=1e-10)


def test_map_arrays_by_hand():
    som = SOM((1, 3), init=np.array([[0.0], [1.0], [3.0]]), max_iter=1, radius=1e-3,
              radius_end=1e-3)  # fmt: skip
    X, y = np.array([[0.0], [0.0], [3.0]]), ["b", "b", "a"]
    som.fit(X)
    np.testing.assert_allclose(som.u_matrix(), [[1, 1.5, 2]])
    np.testing.assert_array_equal(som.hit_map(X), [[2, 0, 1]])
    np.testing.assert_array_equal(som.component_planes(), [[[0, 1, 3]]])
    places, classes = som.label_map(X, y)
    assert (places.tolist(), classes.tolist()) == ([[1, -1, 0]], ["a", "b"])


def test_transform_distances_and_coordinates():
    X, som = data(), SOM((3, 4), grid="hexagonal").fit(data())
    D = np.linalg.norm(X[:, None] - som.codebook_, axis=2)
    np.testing.assert_allclose(som.transform(X), D, rtol=1e-7)
    places = som.set_params(output="coordinates").transform(X)
    np.testing.assert_allclose(places, Grid((3, 4), "hexagonal").positions[D.argmin(axis=1)])


# --------------------------------------------------------------------- classifier and regressor


def test_classifier_and_regressor_by_definition():
    X, y = data(), (data()[:, 0] > 0) * 2.0
    classifier = SOMClassifier((3, 4)).fit(X, y)
    H = NEIGHBORHOODS["gaussian"](Grid((3, 4)).distances(), 0.5)
    one_hot = np.eye(12)[classifier.winners(X)].T @ (y[:, None] == [0, 2])
    expected = H @ one_hot / (H @ one_hot.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(classifier.probabilities_, expected, rtol=1e-12)
    assert classifier.score(X, y) > 0.9
    regressor = SOMRegressor((3, 4)).fit(X, y)
    np.testing.assert_allclose(regressor.predict(X), 2 * classifier.predict_proba(X)[:, 1])


# --------------------------------------------------------------------------------- the soft map

SOFT = [free_energy, soft_quantization]


def soft_case(seed=0):
    rng = np.random.default_rng(seed)
    h = NEIGHBORHOODS["gaussian"](Grid((2, 3), "hexagonal").distances(), 0.8)
    return rng.standard_normal((5, 2)), rng.standard_normal((6, 2)), h


@pytest.mark.parametrize("f", SOFT)
def test_gradients_of_the_soft_map_to_second_order(f):
    x, w, h = soft_case()
    check_grads(lambda x, w: f(x, w, h, temperature=0.7), [x, w], order=2)


def test_free_energy_gradient_is_the_mean_pull_of_the_neighborhood():
    x, w, h = soft_case()
    h = h / h.sum(axis=1, keepdims=True)
    p = soft_assignment(x, w, h, 0.7)  # (n, k), arrays in, arrays out
    pull = (p @ h).T @ x - (p @ h).sum(axis=0)[:, None] * w
    codebook = tg.tensor(w, requires_grad=True)
    gradient = tg.grad(free_energy(x, codebook, h, 0.7), codebook)
    np.testing.assert_allclose(gradient.numpy(), -2 * pull / len(x), rtol=1e-10)


def test_at_no_temperature_it_is_the_best_local_error():
    x, w, h = soft_case()
    best = local_errors(x, w, h).min(axis=1).mean()
    assert float(free_energy(x, w, h, 1e-6)) == pytest.approx(best, abs=1e-5)
    assert float(soft_quantization(x, w, h, 1e-6)) == pytest.approx(best, rel=1e-9)


# -------------------------------------------------------------------------- files and complaints


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", [SOM, SOMClassifier, SOMRegressor])
def test_save_and_load(tmp_path, suffix, kind):
    X, y = data(), (data()[:, 0] > 0).astype(int)
    fitted = kind((3, 4), grid="hexagonal", toroidal=False).fit(X, y)
    fitted.save(tmp_path / f"map{suffix}")
    loaded = kind.load(tmp_path / f"map{suffix}")
    assert repr(loaded) == repr(fitted)
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(shape=5), "shape: got 5"),
        (dict(shape=(0, 3)), "shape"),
        (dict(grid="octagonal"), "grid"),
        (dict(neighborhood="mexican_hat"), "online"),
        (dict(neighborhood=lambda d, r: 1.0), "neighborhood: its result"),
        (dict(radius=-1.0), "radius"),
        (dict(learning_rate=1.5), "learning_rate"),
        (dict(distance="cosine", missing="mask"), "missing"),
        (dict(init=np.zeros((3, 3))), "init: got shape"),
        (dict(decay="sometimes"), "decay"),
    ],
)
def test_impossible_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        SOM(**parameters).fit(data())


def test_impossible_rows_are_named():
    X = data()
    X[3] = 0
    with pytest.raises(ValueError, match="row 3 is all zeros"):
        SOM(distance="cosine").fit(X)
    X[3] = np.nan
    with pytest.raises(ValueError, match="missing in row 3"):
        SOM(missing="mask").fit(X)
    with pytest.raises(ValueError, match="row 3, column 0"):
        SOM().fit(X)


def test_what_grows_without_bound_is_reported():
    som = SOM((10, 10), training="online", neighborhood="mexican_hat", max_iter=2000, radius=1)
    with pytest.raises(ValueError, match="without bound"), np.errstate(all="ignore"):
        som.fit(data())


def test_verbose_shows_a_bar(capsys):
    SOM((2, 2), max_iter=2, verbose=True).fit(data())
    assert "quantization_error" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["rectangular", "hexagonal"])
def test_cells_fill_the_plane(kind):
    grid = Grid((4, 6), kind)
    corners = som_plots.cell_outlines(grid)
    x, y = np.moveaxis(corners, -1, 0)
    areas = 0.5 * np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1))
    np.testing.assert_allclose(areas, grid.row_height)  # a column wide, a row high: no gap
    assert (np.linalg.norm(corners - grid.positions[:, None], axis=2) < 0.75).all()


def test_pictures_show_the_arrays():
    pytest.importorskip("matplotlib").use("Agg")
    X, y = data(), (data()[:, 0] > 0).astype(int)
    som = SOM((4, 5), grid="hexagonal").fit(X)
    shown = som_plots.plot_u_matrix(som).collections[0].get_array()
    np.testing.assert_array_equal(shown, som.u_matrix().reshape(-1))
    assert len(som_plots.plot_planes(som).axes) >= 4
    assert len(som_plots.plot_hits(som, X).collections) == 2
    assert len(som_plots.plot_labels(som, X, y).texts) == (som.hit_map(X) > 0).sum()


def test_without_matplotlib_the_command_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'tinygrad_ml\[plot\]'"):
        som_plots.plot_u_matrix(SOM((2, 2)).fit(data()))


# -------------------------------------------------------------------------------------- devices


@pytest.mark.gpu
@pytest.mark.parametrize("training", ["batch", "online"])
def test_on_a_gpu_results_stay_there_and_are_the_same(training):
    import cupy

    X = data()
    here = SOM((4, 4), training=training, random_state=0).fit(X)
    there = SOM((4, 4), training=training, random_state=0).fit(cupy.asarray(X))
    assert isinstance(there.codebook_, cupy.ndarray)
    assert isinstance(there.u_matrix(), cupy.ndarray)
    np.testing.assert_allclose(there.codebook_.get(), here.codebook_, rtol=1e-6, atol=1e-9)


def test_second_best_unit_of_a_single_unit_is_refused():
    som = SOM((1, 1)).fit(data())
    with pytest.raises(ValueError, match="one unit"):
        som.topographic_error(data())
    assert som.quantization_error(data()) > 0


def test_shortest_ways_stop_at_what_was_asked():
    chain = [[(1, 1.0)], [(0, 1.0), (2, 2.0)], [(1, 2.0)]]
    assert som_measures.shortest_ways(chain, 0, {2})[2] == 3.0
