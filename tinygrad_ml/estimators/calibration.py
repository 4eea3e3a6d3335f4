"""Probabilities that mean what they say: of all samples given 0.7, 70 % should be in the class.

Platt        P = 1 / (1 + e^-(a s + b)), by maximum likelihood         Platt 1999
isotonic     P a rising step function of s, by least squares           Zadrozny & Elkan 2002
temperature  P = softmax(z / T), one number for all classes            Guo et al. 2017
"""

import copy
import math

import numpy as np

from .. import ops
from ..autograd import grad
from ..backend import to_host
from ..tensor import Tensor
from .base import Estimator, progress
from .likelihood import Objective, loss_of_logits
from .logistic import encode, known_codes, stratified_folds
from .solvers import Stop, newton
from .validation import (
    check_choice,
    check_fitted,
    check_number,
    check_random_state,
    check_vector,
    check_weights,
)


def reliability_curve(y, probability, *, bins=10, strategy="uniform", sample_weight=None):
    """(mean predicted, observed share, weight) of each bin that is not empty.

    y            1 for samples in the class, 0 for others
    probability  predicted, in [0, 1]
    strategy     "uniform": bins of equal width; "quantile": of equally many samples
    """
    probability = _probabilities(probability)
    y = _zero_or_one(y, len(probability))
    weight = to_host(check_weights(sample_weight, probability[:, None]))
    check_number(bins, "bins", low=1, integer=True)
    check_choice(strategy, "strategy", ("uniform", "quantile"))
    share = np.linspace(0, 1, bins + 1)
    edges = share if strategy == "uniform" else np.quantile(probability, share)
    place = np.searchsorted(edges[1:-1], probability)
    total, predicted, observed = (
        np.bincount(place, weights=weight * values, minlength=bins)
        for values in (1.0, probability, y)
    )
    kept = total > 0
    return predicted[kept] / total[kept], observed[kept] / total[kept], total[kept]


def expected_calibration_error(y, probability, *, bins=10, strategy="uniform", sample_weight=None):
    """sum over bins of (share of samples) |mean predicted - observed|      Naeini et al. 2015"""
    predicted, observed, weight = reliability_curve(
        y, probability, bins=bins, strategy=strategy, sample_weight=sample_weight
    )
    return float(weight @ np.abs(predicted - observed) / weight.sum())


def _probabilities(values):
    values = to_host(check_vector(values, "probability")).astype(np.float64)
    if values.size == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError("probability: expected numbers in [0, 1]")
    return values


def _zero_or_one(y, length):
    y = to_host(check_vector(y, length=length))
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y: expected 0 or 1 for each sample")
    return y.astype(np.float64)


# ------------------------------------------------------------------------------------- methods


class PlattScaling(Estimator):
    """P(y = 1 | score) = 1 / (1 + e^-(a score + b)), learned as slope_ and intercept_.

    Targets are (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) instead of 1 and 0, so that scores which
    separate the classes do not make the slope infinite (Platt 1999; Lin, Lin & Weng 2007).
    """

    def fit(self, scores, y, sample_weight=None):
        """Learn from scores (n,) and y (n,) of 0 and 1. Returns self."""
        scores = to_host(check_vector(scores, "scores")).astype(np.float64)
        y = _zero_or_one(y, len(scores))
        weight = to_host(check_weights(sample_weight, scores[:, None]))
        ones, zeros = weight @ y, weight @ (1 - y)
        target = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
        if np.ptp(scores) == 0:
            raise ValueError("scores: all are equal, so they tell nothing about y")
        objective = Objective(scores[:, None], target, weight, 1)
        with progress(100, "platt", False) as bar:
            result = newton(objective, np.zeros(2), Stop(None, 100, bar))
        self.slope_, self.intercept_ = map(float, result.theta)
        return self

    def predict(self, scores):
        """Probabilities of class 1, (n,)."""
        check_fitted(self, "slope_")
        scores = check_vector(scores, "scores")
        return ops.sigmoid(self.slope_ * scores.astype(np.float64) + self.intercept_)


class IsotonicCalibration(Estimator):
    """P(y = 1 | score) rises with the score and is otherwise free: steps, joined by lines.

    Learns thresholds_ (scores) and values_ (probabilities) by pooling adjacent violators: whenever
    a block's mean is below that of the block before it, the two become one (Ayer et al. 1955).
    """

    def fit(self, scores, y, sample_weight=None):
        """Learn from scores (n,) and y (n,) of 0 and 1. Returns self."""
        scores = to_host(check_vector(scores, "scores")).astype(np.float64)
        y = _zero_or_one(y, len(scores))
        weight = to_host(check_weights(sample_weight, scores[:, None]))
        scores, y, weight = (a[weight > 0] for a in (scores, y, weight))
        levels, place = np.unique(scores, return_inverse=True)
        total = np.bincount(place, weights=weight)
        means = np.bincount(place, weights=weight * y) / total
        values = pool_adjacent_violators(means, total)
        inner = np.zeros(len(levels), dtype=bool)  # between two equal neighbours: a line says it
        inner[1:-1] = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
        self.thresholds_, self.values_ = levels[~inner], values[~inner]
        return self

    def predict(self, scores):
        """Probabilities of class 1, (n,); beyond the scores of fit, those of the nearest."""
        check_fitted(self, "values_")
        scores = to_host(check_vector(scores, "scores"))
        return np.interp(scores, self.thresholds_, self.values_)


def pool_adjacent_violators(means, weight):
    """The rising sequence nearest to `means` in weighted squares."""
    blocks = []  # (mean, weight, length)
    for mean, w in zip(means.tolist(), weight.tolist(), strict=True):
        length = 1
        while blocks and blocks[-1][0] >= mean:
            before, v, n = blocks.pop()
            mean, w, length = (before * v + mean * w) / (v + w), v + w, length + n
        blocks.append((mean, w, length))
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


class TemperatureScaling(Estimator):
    """softmax(z / T): confidence changes, the predicted class does not. Learns temperature_.

    The loss is convex in 1 / T; Newton's steps take both derivatives from the engine.
    """

    def fit(self, logits, y, sample_weight=None):
        """Learn from logits (n, K), or (n,) for two classes, and y of 0 ... K - 1. Returns self."""
        z, y = _logits(logits), to_host(check_vector(y))
        if len(y) != z.shape[1] or y.min() < 0 or y.max() >= max(len(z), 2):
            raise ValueError(f"y: expected {z.shape[1]} classes in 0 ... {max(len(z), 2) - 1}")
        weight = to_host(check_weights(sample_weight, z.T))
        weight = weight / weight.sum()
        y = y.astype(np.float64 if len(z) == 1 else np.int64)
        inverse = 1.0
        for _ in range(100):
            slope, bend = _slope_and_bend(inverse, z, y, weight)
            step = -slope / bend if bend > 0 else -math.copysign(inverse, slope)
            following = inverse + step
            if following <= 0:  # 1 / T stays positive
                following = inverse / 4
            following = min(following, 4 * inverse)
            if abs(following - inverse) <= 1e-14 * inverse or not 1e-8 < following < 1e8:
                break
            inverse = following
        self.temperature_ = 1 / inverse
        return self

    def predict(self, logits):
        """Probabilities, (n, K), or (n,) of class 1 for logits (n,)."""
        check_fitted(self, "temperature_")
        logits = logits / self.temperature_
        return ops.sigmoid(logits) if logits.ndim == 1 else ops.softmax(logits)


def _logits(logits):
    """(k, n), float64."""
    z = np.asarray(to_host(logits), dtype=np.float64)
    if z.ndim not in (1, 2) or z.shape[-1] == 0 or not np.isfinite(z).all():
        raise ValueError(f"logits: expected finite numbers, (n,) or (n, K), got shape {z.shape}")
    return z[None] if z.ndim == 1 else np.ascontiguousarray(z.T)


def _slope_and_bend(inverse, z, y, weight):
    """The first and second derivative of the mean loss by 1 / T."""
    inverse = Tensor.leaf(np.array(inverse), requires_grad=True)
    slope = grad(loss_of_logits(inverse * z, y, weight), inverse, create_graph=True)
    return slope.item(), grad(slope, inverse).item()


# ---------------------------------------------------------------------------------- classifiers


METHODS = {
    "platt": PlattScaling,
    "isotonic": IsotonicCalibration,
    "temperature": TemperatureScaling,
}


class CalibratedClassifier(Estimator):
    """A classifier whose probabilities are calibrated on samples that it was not fitted to.

    estimator  anything with fit and decision_function (or predict_proba)
    method     "platt" or "isotonic" (each class against the rest, then normalised), "temperature"
    cv         folds; each sample's score comes from a fit without its fold

    Learns estimator_ (fitted to all samples), calibrators_ and classes_.
    """

    def __init__(self, estimator=None, *, method="platt", cv=5, random_state=None):
        self.estimator = estimator
        self.method = method
        self.cv = cv
        self.random_state = random_state

    def fit(self, X, y):
        """Learn the classifier and the calibration of its scores. Returns self."""
        check_choice(self.method, "method", tuple(METHODS))
        check_number(self.cv, "cv", low=2, integer=True)
        X = self._fit_matrix(X)
        labels = check_vector(y, length=len(X))
        self.classes_, codes = encode(labels, np.ones(len(X)))
        fold = stratified_folds(codes, self.cv, check_random_state(self.random_state))
        scores = None
        for k in range(self.cv):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            part = _scores(self._fresh().fit(X[train], labels[train]), X[test])
            scores = np.empty((len(X), *part.shape[1:])) if scores is None else scores
            scores[test] = part
        self.estimator_ = self._fresh().fit(X, labels)
        self.calibrators_ = self._calibrate(scores, codes)
        return self

    def _fresh(self):
        from .logistic import LogisticRegression

        given = LogisticRegression() if self.estimator is None else self.estimator
        return copy.deepcopy(given)

    def _calibrate(self, scores, codes):
        kind = METHODS[self.method]
        if self.method == "temperature":
            return [kind().fit(scores, codes)]
        if scores.ndim == 1:
            return [kind().fit(scores, codes)]
        return [kind().fit(scores[:, c], codes == c) for c in range(scores.shape[1])]

    def predict_proba(self, X):
        """P(class | row): (n, K)."""
        X = self._fitted_matrix(X, "calibrators_")
        scores = _scores(self.estimator_, X)
        if self.method == "temperature" and scores.ndim == 2:
            return self.calibrators_[0].predict(scores)
        if scores.ndim == 1:
            p = self.calibrators_[0].predict(scores)
            return np.stack([1 - p, p], axis=1)
        p = np.stack([c.predict(scores[:, k]) for k, c in enumerate(self.calibrators_)], axis=1)
        total = p.sum(axis=1, keepdims=True)
        return np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[1])

    def predict(self, X):
        """The most probable class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def score(self, X, y):
        """The share of rows whose class is predicted right."""
        return float(np.mean(self.predict(X) == self.classes_[known_codes(y, self.classes_)]))

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        tags.target_tags.required = True
        return tags


def _scores(estimator, X):
    """Logits on the host: decision_function, or log-probabilities."""
    if hasattr(estimator, "decision_function"):
        return to_host(estimator.decision_function(X))
    p = np.clip(to_host(estimator.predict_proba(X)), 1e-300, None)
    logs = np.log(p)
    return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs
