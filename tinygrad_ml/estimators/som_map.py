"""What every self-organising map can do: be trained, match rows, be measured, be looked at."""

import numpy as np

from ..backend import device_of, is_array, namespace, to_device
from . import som_measures as measures
from .base import Estimator, progress
from .som_grid import DECAYS, NEIGHBORHOODS, Grid
from .som_training import (
    DISTANCES,
    STARTS,
    batch_step,
    best_matching_units,
    distances_to_units,
    sequential_pass,
)
from .validation import (
    check_choice,
    check_fitted,
    check_number,
    check_random_state,
    check_vector,
    check_weights,
)


class Map(Estimator):
    """What SOM, SOMClassifier and SOMRegressor share: the map, its training and its measures.

    shape              (rows, columns)
    grid               "rectangular" or "hexagonal"
    toroidal           opposite edges are joined
    training           "batch", or "online": one row after the other
    neighborhood       "gaussian", "cut_gaussian", "bubble", "triangle", "epanechnikov",
                       "mexican_hat" (online only), or a function h(distances, radius)
    radius             at the start, in units of the grid; None: half of the longer side
    radius_end         at the end
    learning_rate      of online training (and of partial_fit), at the start, in (0, 1]
    learning_rate_end  at the end
    decay              of both: "exponential", "linear", "inverse", or d(start, end, t), t in [0, 1]
    distance           "euclidean", "manhattan" or "cosine"
    init               "pca", "samples", "random", or the prototypes themselves
    missing            "error", or "mask": NaN is what was not observed
    max_iter           epochs
    tol                stop when the quantisation error has fallen by less than this part of itself
                       for `patience` epochs, counted while the radius is at most 1 (before, the
                       map is being ordered and its error stands still); None: never
    shuffle            online: a new order of the rows in each epoch
    output             of transform: "distances" to every unit, or "coordinates" of the best
    block_size         rows whose distances are held at a time; None: as the cache likes it
    random_state       None, an int or a numpy Generator
    verbose            a progress bar

    Learned: codebook_ (units, features), quantization_errors_ (one for each epoch, as its units
    were searched), n_iter_, n_features_in_. Manhattan chooses units by its distance; prototypes
    are means with it too.
    """

    def __init__(
        self,
        shape=(10, 10),
        *,
        grid="rectangular",
        toroidal=False,
        training="batch",
        neighborhood="gaussian",
        radius=None,
        radius_end=0.5,
        learning_rate=0.5,
        learning_rate_end=0.01,
        decay="exponential",
        distance="euclidean",
        init="pca",
        missing="error",
        max_iter=20,
        tol=None,
        patience=3,
        shuffle=True,
        output="distances",
        block_size=None,
        random_state=None,
        verbose=False,
    ):
        self.shape = shape
        self.grid = grid
        self.toroidal = toroidal
        self.training = training
        self.neighborhood = neighborhood
        self.radius = radius
        self.radius_end = radius_end
        self.learning_rate = learning_rate
        self.learning_rate_end = learning_rate_end
        self.decay = decay
        self.distance = distance
        self.init = init
        self.missing = missing
        self.max_iter = max_iter
        self.tol = tol
        self.patience = patience
        self.shuffle = shuffle
        self.output = output
        self.block_size = block_size
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        from sklearn.utils import TransformerTags

        tags = super().__sklearn_tags__()
        tags.transformer_tags = TransformerTags(preserves_dtype=["float64", "float32"])
        tags.input_tags.allow_nan = self._masked
        return tags

    # --- what the parameters mean

    @property
    def _masked(self):
        return self.missing == "mask"

    def _grid(self):
        return Grid(self.shape, self.grid, self.toroidal)

    def _neighborhood(self):
        return NEIGHBORHOODS.get(self.neighborhood, self.neighborhood)

    def _start_radius(self):
        return max(self.shape) / 2 if self.radius is None else self.radius

    def _schedule(self, t):
        """(radius, learning rate) at the time t in [0, 1]."""
        decay = DECAYS.get(self.decay, self.decay)
        radius = decay(max(self._start_radius(), self.radius_end), self.radius_end, t)
        return radius, decay(self.learning_rate, self.learning_rate_end, t)

    def _check_parameters(self):
        """Every parameter is possible, also with the others; else an error that names it."""
        shape = self.shape
        if not (isinstance(shape, tuple | list) and len(shape) == 2):
            raise ValueError(f"shape: got {shape!r}, expected (rows, columns)")
        for side in shape:
            check_number(side, "shape", low=1, integer=True)
        check_choice(self.grid, "grid", ("rectangular", "hexagonal"))
        check_choice(self.training, "training", ("batch", "online"))
        check_choice(self.distance, "distance", tuple(DISTANCES))
        check_choice(self.missing, "missing", ("error", "mask"))
        check_choice(self.output, "output", ("distances", "coordinates"))
        if not callable(self.neighborhood):
            check_choice(self.neighborhood, "neighborhood", tuple(NEIGHBORHOODS))
        if not callable(self.decay):
            check_choice(self.decay, "decay", tuple(DECAYS))
        if not is_array(self.init):
            check_choice(self.init, "init", tuple(STARTS))
        check_number(self._start_radius(), "radius", low=0, open_low=True)
        check_number(self.radius_end, "radius_end", low=0, open_low=True)
        for name in ("learning_rate", "learning_rate_end"):
            check_number(getattr(self, name), name, low=0, high=1, open_low=True)
        for name in ("max_iter", "patience"):
            check_number(getattr(self, name), name, low=1, integer=True)
        if self.tol is not None:
            check_number(self.tol, "tol", low=0)
        if self.block_size is not None:
            check_number(self.block_size, "block_size", low=1, integer=True)
        if self._masked and self.distance == "cosine":
            raise ValueError("missing: 'mask' needs a distance that is a sum over features")
        self._check_neighborhood(self._grid())

    def _check_neighborhood(self, grid):
        """In batch training all weights are >= 0: a mean needs that."""
        tables = grid.tables()
        h = self._neighborhood()(tables, self._schedule(0.0)[0])
        if getattr(h, "shape", None) != tables.shape:
            raise ValueError(
                f"neighborhood: its result has the shape {np.shape(h)}, expected {tables.shape}, "
                "that of the distances"
            )
        if self.training == "batch" and bool((h < 0).any()):
            raise ValueError(
                "neighborhood: has negative weights (as mexican_hat has), of which batch training "
                "cannot take a mean; use training='online'"
            )

    # --- training

    def _prepare(self, X, sample_weight, first=True):
        """Checked parameters, rows and weights (None for all ones)."""
        self._check_parameters()
        if first:
            X = self._fit_matrix(X, missing=self._masked)
        else:
            X = self._fitted_matrix(X, "codebook_", missing=self._masked)
        weight = None if sample_weight is None else check_weights(sample_weight, X)
        return self._observed_rows(X), weight

    def _observed_rows(self, X):
        """X as the distance wants it; ValueError for a row of which nothing was observed."""
        if self._masked:
            empty = namespace([X]).isnan(X).all(axis=1)
            if bool(empty.any()):
                raise ValueError(f"X: every feature is missing in row {int(empty.argmax())}")
        return DISTANCES[self.distance].prepare(X)

    def _first_codebook(self, X, weight, rng):
        xp, grid = namespace([X]), self._grid()
        if is_array(self.init):
            codebook = xp.array(to_device(self.init, device_of(X)))
            expected = (grid.size, X.shape[1])
            if codebook.shape not in (expected, (*grid.shape, X.shape[1])):
                raise ValueError(f"init: got shape {codebook.shape}, expected {expected}")
            codebook = codebook.reshape(expected)
        else:
            codebook = STARTS[self.init](X, weight, grid, rng)
        return DISTANCES[self.distance].project(codebook).astype(X.dtype)

    def _train(self, X, weight):
        """Learn the codebook from prepared rows."""
        rng = self._rng = check_random_state(self.random_state)
        codebook, errors = self._first_codebook(X, weight, rng), []
        with progress(self.max_iter, "SOM", self.verbose, unit="epoch") as bar:
            for epoch in range(self.max_iter):
                codebook, error = self._epoch(X, weight, codebook, epoch, rng)
                errors.append(error)
                if not bool(namespace([codebook]).isfinite(codebook).all()):
                    raise ValueError(_diverged(self, epoch))
                bar.update(1)
                bar.set_postfix(quantization_error=f"{error:.4g}")
                if self._converged(errors):
                    break
        self.codebook_ = codebook
        self.n_iter_ = len(errors)
        self.quantization_errors_ = np.array(errors)

    def _epoch(self, X, weight, codebook, epoch, rng, rate=1.0):
        """One pass over the rows; the codebook after it and the mean distance found in it."""
        xp, grid, neighborhood = namespace([X]), self._grid(), self._neighborhood()
        if self.training == "batch":
            radius, _ = self._schedule(epoch / max(self.max_iter - 1, 1))
            codebook, distances = batch_step(
                X, weight, codebook, grid, neighborhood, radius,
                name=self.distance, rate=rate, masked=self._masked, block_size=self.block_size,
            )  # fmt: skip
        else:
            order = rng.permutation(len(X)) if self.shuffle else np.arange(len(X))
            codebook, distances = sequential_pass(
                X, weight, codebook, grid, neighborhood,
                lambda step: self._schedule((epoch + step / len(X)) / self.max_iter),
                order.tolist(), name=self.distance,
            )  # fmt: skip
            if weight is not None:
                weight = weight[xp.asarray(order)]
        return codebook, _mean(distances, weight)

    def _converged(self, errors):
        """Whether the last `patience` epochs, all at a radius of at most 1, brought nothing."""
        first = len(errors) - 1 - self.patience
        if self.tol is None or first < 0:
            return False
        steps = self.max_iter - 1 if self.training == "batch" else self.max_iter
        if self._schedule(first / max(steps, 1))[0] > max(1.0, self.radius_end):
            return False
        return min(errors[first + 1 :]) > errors[first] * (1 - self.tol)

    # --- the map after training

    def _input(self, X):
        """X checked and prepared, with the codebook beside it."""
        check_fitted(self, "codebook_")
        X = self._observed_rows(self._fitted_matrix(X, "codebook_", missing=self._masked))
        codebook = to_device(self.codebook_, device_of(X))
        if X.dtype != codebook.dtype:
            X, codebook = X.astype(np.float64), codebook.astype(np.float64)
        return X, codebook

    def _match(self, X, count=1):
        """The nearest units of each row and the exact distances to them: (n, count) both."""
        X, codebook = self._input(X)
        count = min(count, len(codebook))
        units, _ = best_matching_units(
            X, codebook, self.distance,
            count=count, masked=self._masked, block_size=self.block_size,
        )  # fmt: skip
        xp, between = namespace([X]), DISTANCES[self.distance].between
        if not self._masked:
            distances = [between(X - codebook[units[:, c]]) for c in range(count)]
            return units, xp.stack(distances, axis=1)
        share = X.shape[1] / (~xp.isnan(X)).sum(axis=1)
        scale = (xp.sqrt(share) if self.distance == "euclidean" else share).astype(X.dtype)
        distances = [scale * between(X - codebook[units[:, c]]) for c in range(count)]
        return units, xp.stack(distances, axis=1)

    def winners(self, X):
        """The best-matching unit of each row, counted along the rows of the map: (n,) ints"""
        return self._match(X)[0][:, 0]

    def transform(self, X):
        """Distances to all units (n, k), or with output="coordinates" the winners' x, y: (n, 2)"""
        if self.output == "coordinates":
            winners = self.winners(X)
            xp = namespace([winners])
            return xp.asarray(self._grid().positions)[winners].astype(self.codebook_.dtype)
        X, codebook = self._input(X)
        return distances_to_units(X, codebook, self.distance, masked=self._masked)

    def fit_transform(self, X, y=None, **options):
        """fit(X, y), then transform(X)."""
        return self.fit(X, y, **options).transform(X)

    def get_feature_names_out(self, input_features=None):
        """Names of the columns of `transform`."""
        check_fitted(self, "codebook_")
        if self.output == "coordinates":
            return np.array(["x", "y"], dtype=object)
        name = type(self).__name__.lower()
        return np.array([f"{name}{i}" for i in range(len(self.codebook_))], dtype=object)

    # --- measures

    def quantization_error(self, X, sample_weight=None):
        """The mean distance of a row to its best-matching unit."""
        distances = self._match(X)[1][:, 0]
        return _mean(distances, check_weights(sample_weight, distances[:, None]))

    def topographic_error(self, X, sample_weight=None, neighbors=None):
        """The share of rows whose two best-matching units are no neighbours      Kiviluoto 1996

        neighbors  4 or 8 (None: 8) on a rectangular grid, 6 on a hexagonal one
        """
        units, weight = self._match(X, 2)[0], self._weights_of(X, sample_weight)
        if units.shape[1] < 2:
            raise ValueError("topographic_error: a map of one unit has no second-best unit")
        return measures.topographic_error(self._grid(), units, weight, neighbors)

    def distortion(self, X, sample_weight=None, radius=None):
        """The mean of sum_i h(c(x), i) |x - w_i|^2, at radius_end unless one is given."""
        units, weight = self.winners(X), self._weights_of(X, sample_weight)
        X, codebook = self._input(X)
        radius = self.radius_end if radius is None else radius
        return measures.distortion(
            X, weight, units, codebook, self._grid(), self._neighborhood(), radius,
            self.distance, self._masked,
        )  # fmt: skip

    def kaski_lagus(self, X, sample_weight=None, neighbors=None):
        """The mean way from a row to its winner and on, over the map, to the second-best unit.

        Kaski & Lagus 1996
        """
        (units, distances), weight = self._match(X, 2), self._weights_of(X, sample_weight)
        if units.shape[1] < 2:
            raise ValueError("kaski_lagus: a map of one unit has no second-best unit")
        return measures.kaski_lagus(
            self._grid(), units, distances[:, 0], self.codebook_, weight, self._between, neighbors
        )

    def _weights_of(self, X, sample_weight):
        X = X if is_array(X) else np.asarray(X)
        return check_weights(sample_weight, X.reshape(len(X), -1))

    @property
    def _between(self):
        """The distance of prototypes whose difference is given."""
        return DISTANCES[self.distance].between

    # --- the map as arrays, (rows, columns)

    def u_matrix(self, neighbors=None):
        """Each unit's mean distance to its neighbours' prototypes      Ultsch & Siemon 1990"""
        check_fitted(self, "codebook_")
        return measures.u_matrix(self._grid(), self.codebook_, self._between, neighbors)

    def hit_map(self, X, sample_weight=None):
        """How many rows (or how much weight) each unit wins."""
        winners, weight = self.winners(X), self._weights_of(X, sample_weight)
        k = len(self.codebook_)
        return namespace([winners]).bincount(winners, weight, k).reshape(self.shape)

    def component_planes(self):
        """The prototypes feature by feature: (features, rows, columns)"""
        check_fitted(self, "codebook_")
        return self.codebook_.T.reshape(-1, *self.shape)

    def label_map(self, X, y, sample_weight=None):
        """The place, in the sorted classes, of the label most frequent at each unit; -1: no rows.

        Returns (places, classes).
        """
        winners, weight = self.winners(X), self._weights_of(X, sample_weight)
        classes, codes = sorted_classes(check_vector(y, length=len(winners)))
        votes = votes_of(winners, codes, weight, len(self.codebook_), len(classes))
        return measures.majority(votes).reshape(self.shape), classes


def _diverged(som, epoch):
    return (
        f"fit: the prototypes grew without bound in epoch {epoch + 1}: a neighborhood with "
        f"negative weights pushes away ever harder; got learning_rate={som.learning_rate}, "
        f"radius={som._start_radius()}, expected smaller ones"
    )


def _mean(distances, weight):
    if weight is None:
        return float(distances.mean(dtype=np.float64))
    return float((distances * weight).sum() / weight.sum())


def sorted_classes(y):
    """The sorted classes, and each label's place among them."""
    if y.dtype.kind == "f" and bool((y != namespace([y]).floor(y)).any()):
        raise ValueError("y: Unknown label type: continuous numbers; expected class labels")
    if namespace([y]) is np:
        return np.unique(y, return_inverse=True)
    return namespace([y]).unique(y, return_inverse=True)


def votes_of(winners, codes, weight, k, classes):
    """The weight of each class at each unit: (k, classes)"""
    xp = namespace([winners])
    place = winners * classes + xp.asarray(codes)
    return xp.bincount(place, weight, k * classes).reshape(k, classes)
