"""Self-organising maps: units on a grid learn prototypes, neighbours on it similar ones.

    som = SOM((20, 30), grid="hexagonal", random_state=0).fit(X)
    som.predict(X)                    the best-matching unit of each row
    som.u_matrix()                    where the clusters' walls are

Competitive learning with cooperation: the unit nearest to a row wins it, and draws its neighbours
along; the neighbourhood shrinks. What results is a topographic map, a plane bent into the data.
Kohonen 1982, 1990, 2013
"""

import numpy as np

from ..backend import device_of, namespace, to_device, to_host
from .som_grid import smooth
from .som_map import Map, sorted_classes, votes_of
from .validation import check_random_state, check_vector


class SOM(Map):
    """A self-organising map: prototypes of the data, in the order of a grid.

    `predict` gives units, `transform` distances or coordinates.
    """

    def fit(self, X, y=None, sample_weight=None):
        """Learn the map from rows X; y is ignored. Returns self."""
        X, weight = self._prepare(X, sample_weight)
        self._train(X, weight)
        return self

    def partial_fit(self, X, y=None, sample_weight=None):
        """One more epoch, on these rows: the first of a stream begins a map, later ones go on.

        The c-th call is at the time c / max_iter of the schedule, and stays at its end. Online,
        max_iter calls with the same rows are `fit`; a batch moves each unit towards the mean
        of its neighbourhood in these rows, at the learning rate.
        """
        first = not hasattr(self, "codebook_")
        X, weight = self._prepare(X, sample_weight, first)
        if first:
            self._rng = check_random_state(self.random_state)
            self.codebook_ = self._first_codebook(X, weight, self._rng)
            self.n_iter_, self.quantization_errors_ = 0, np.empty(0)
        rng = getattr(self, "_rng", None) or check_random_state(self.random_state)
        epoch = min(self.n_iter_, self.max_iter - 1)
        _, rate = self._schedule(epoch / max(self.max_iter - 1, 1))
        codebook = to_device(self.codebook_, device_of(X)).astype(X.dtype, copy=False)
        self.codebook_, error = self._epoch(X, weight, codebook, epoch, rng, rate)
        self.n_iter_ += 1
        self.quantization_errors_ = np.append(self.quantization_errors_, error)
        return self

    def predict(self, X):
        """The best-matching unit of each row, counted along the rows of the map: (n,) ints"""
        return self.winners(X)

    def fit_predict(self, X, y=None, sample_weight=None):
        """fit(X), then predict(X)."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def score(self, X, y=None, sample_weight=None):
        """The negative quantisation error: the greater, the better."""
        return -self.quantization_error(X, sample_weight)


class SOMClassifier(Map):
    """A map of which each unit knows how the classes are mixed in its neighbourhood.

    p(class | unit i) = sum_j h_ij n_j(class) / sum_j h_ij n_j      h at radius_end

    Where no row is near, the classes' share in all the data. Learned: classes_, probabilities_
    (units, classes), and what every map learns.
    """

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.classifier_tags = ClassifierTags()
        tags.target_tags.required = True
        return tags

    def fit(self, X, y, sample_weight=None):
        """Learn the map from X alone, then the classes of its units. Returns self."""
        y = check_vector(y)
        rows, weight = self._prepare(X, sample_weight)
        y = check_vector(y, length=len(rows), like=rows)
        self.classes_, codes = sorted_classes(y)
        self._train(rows, weight)
        winners = self.winners(X)
        xp = namespace([winners])
        weight = xp.ones(len(winners)) if weight is None else weight
        k, classes = len(self.codebook_), len(self.classes_)
        votes = votes_of(winners, codes, weight, k, classes)
        self.probabilities_ = _smoothed_mean(self, votes, votes.sum(axis=1, keepdims=True))
        return self

    def predict_proba(self, X):
        """p(class | x): (n, classes), in the order of classes_"""
        winners = self.winners(X)
        return to_device(self.probabilities_, device_of(winners))[winners]

    def predict(self, X):
        """The most probable class of each row; of equally probable ones the first."""
        best = self.predict_proba(X).argmax(axis=1)
        classes = self.classes_
        return classes[to_host(best) if namespace([classes]) is np else best]

    def score(self, X, y, sample_weight=None):
        """The share of rows whose class is predicted."""
        hit = to_host(self.predict(X)) == to_host(check_vector(y))
        return float(np.average(hit, weights=sample_weight))


class SOMRegressor(Map):
    """A map of which each unit knows the mean target of its neighbourhood.

    y_i = sum_j h_ij (sum of the targets of unit j) / sum_j h_ij n_j      h at radius_end

    Where no row is near, the mean of all. Learned: targets_ (units,), and what every map learns.
    """

    def __sklearn_tags__(self):
        from sklearn.utils import RegressorTags

        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor"
        tags.regressor_tags = RegressorTags(poor_score=True)
        tags.target_tags.required = True
        return tags

    def fit(self, X, y, sample_weight=None):
        """Learn the map from X alone, then the targets of its units. Returns self."""
        y = check_vector(y)
        rows, weight = self._prepare(X, sample_weight)
        y = check_vector(y, length=len(rows), like=rows)
        self._train(rows, weight)
        winners = self.winners(X)
        xp, k = namespace([winners]), len(self.codebook_)
        weight = xp.ones(len(winners)) if weight is None else weight
        sums = xp.bincount(winners, weight * y.astype(np.float64), k)[:, None]
        counts = xp.bincount(winners, weight, k)[:, None]
        self.targets_ = _smoothed_mean(self, sums, counts)[:, 0]
        return self

    def predict(self, X):
        """The mean target in the neighbourhood of each row's best-matching unit: (n,)"""
        winners = self.winners(X)
        return to_device(self.targets_, device_of(winners))[winners]

    def score(self, X, y, sample_weight=None):
        """R^2 = 1 - sum (y - p)^2 / sum (y - mean y)^2"""
        y, predicted = to_host(check_vector(y)).astype(float), to_host(self.predict(X))
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        residual = (weight * (y - predicted) ** 2).sum()
        total = (weight * (y - np.average(y, weights=weight)) ** 2).sum()
        return float(1 - residual / total) if total else float(residual == 0)


def _smoothed_mean(som, sums, counts):
    """sums (k, m) / counts (k, 1), over each unit's neighbourhood at radius_end"""
    xp = namespace([sums])
    both = xp.concatenate([sums, counts], axis=1)
    both = smooth(som._grid(), both, som._neighborhood(), som.radius_end)
    overall = sums.sum(axis=0) / counts.sum()
    reached = both[:, -1:] > 1e-200
    return xp.where(reached, both[:, :-1] / xp.where(reached, both[:, -1:], 1), overall)
