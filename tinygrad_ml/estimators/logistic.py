"""Logistic regression: classes from logits that are linear in the features, by maximum likelihood.

scikit-learn's contract, and beyond it: fits that end at the minimum and not near it, a word where
no minimum exists, standard errors, and Firth's penalty.
"""

import math
import warnings

import numpy as np

from .. import ops
from ..backend import device_of, is_array, namespace, to_device, to_host
from . import solvers
from .base import Estimator, progress
from .inference import Inference
from .likelihood import FirthObjective, Objective
from .solvers import SeparatedError, Stop
from .validation import (
    ConvergenceWarning,
    check_choice,
    check_number,
    check_random_state,
    check_vector,
    check_weights,
    column_name,
    is_sparse,
    native,
)

PENALTIES = (None, "l1", "l2", "elasticnet", "firth")
SMOOTH = ("newton", "newton-cg", "lbfgs", "sgd")
WITH_L1 = ("proximal-newton", "fista", "sgd")
MAX_ITER = {
    "newton": 100,
    "newton-cg": 200,
    "lbfgs": 10_000,
    "proximal-newton": 100,
    "fista": 100_000,
    "sgd": 1000,
    "firth": 2000,  # Newton's steps with the expected information converge linearly
}
FEW = 1000  # parameters, up to which a Hessian is formed
SEPARATED_C = 1e4  # the penalty with which separable data get a finite answer


class LogisticRegression(Estimator):
    """P(y = 1 | x) = 1 / (1 + e^-(w x + b)), or softmax(W x + b) for more than two classes.

    Minimises  sum_i w_i loss_i + (1 / C) [(1 - r) |W|^2 / 2 + r |W|_1]  with r = 0 for "l2",
    1 for "l1" and `l1_ratio` for "elasticnet"; the intercept is not penalised.

    penalty       "l2", "l1", "elasticnet", None (maximum likelihood) or "firth" (two classes)
    C             inverse strength of the penalty; inf is penalty=None
    solver        "newton", "newton-cg", "lbfgs", "sgd"; with an L1 term "proximal-newton",
                  "fista", "sgd"; "auto" picks, and `solver_` says which
    tol           greatest entry of the gradient of the mean loss (of the least subgradient, with
                  an L1 term) at which to stop; None: the level of its rounding errors, and for
                  sgd 1e-6
    max_iter      None: enough for the solver
    class_weight  {class: weight}, or "balanced" for n / (classes * samples of the class)
    warm_start    begin at the last fit's coefficients
    batch_size    rows in a step of sgd and of partial_fit
    verbose       a progress bar

    Learns coef_ (1 or K, d), intercept_, classes_, n_iter_, and of the fit itself solver_, loss_
    (the objective per unit of weight), gradient_norm_, converged_ and separable_.
    """

    def __init__(
        self,
        penalty="l2",
        *,
        C=1.0,
        l1_ratio=0.5,
        fit_intercept=True,
        class_weight=None,
        solver="auto",
        tol=None,
        max_iter=None,
        warm_start=False,
        batch_size=256,
        random_state=None,
        verbose=0,
    ):
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting

    def fit(self, X, y, sample_weight=None):
        """Learn the coefficients from rows X (n, d) and their classes y (n,). Returns self.

        ValueError names the argument or column that cannot be used; a ConvergenceWarning says when
        the data are separable, or a solver did not reach its tolerance.
        """
        self._check_parameters()
        warm = self._warm_theta() if self.warm_start and hasattr(self, "coef_") else None
        vars(self).pop("steps_", None)
        X = self._fit_matrix(X, sparse=True)
        labels = check_vector(y, length=X.shape[0])
        weight = check_weights(sample_weight, X)
        self.classes_, codes = encode(labels, weight)
        weight = weight * class_weights(self.class_weight, self.classes_, codes, weight)
        objective, l1 = self._objective(X, codes, weight)
        self._check_identified(X)
        theta = objective.xp.zeros(objective.size)
        if warm is not None and warm.size == objective.size:
            theta = objective.xp.asarray(warm)
        self._learn(objective, l1, theta)
        return self

    def _check_parameters(self):
        check_choice(self.penalty, "penalty", PENALTIES)
        if not self._unpenalised():
            check_number(self.C, "C", low=0, open_low=True)
        check_number(self.l1_ratio, "l1_ratio", low=0, high=1)
        if self.tol is not None:
            check_number(self.tol, "tol", low=0)
        if self.max_iter is not None:
            check_number(self.max_iter, "max_iter", low=0, integer=True)
        check_number(self.batch_size, "batch_size", low=1, integer=True)
        check_choice(self.solver, "solver", ("auto", *SMOOTH, *WITH_L1))
        allowed = WITH_L1 if self._strengths(1.0)[1] else SMOOTH
        if self.penalty == "firth":
            allowed = ("newton",)
        if self.solver not in ("auto", *allowed):
            raise ValueError(
                f"solver: {self.solver!r} does not do penalty={self.penalty!r}; "
                f"these do: {', '.join(allowed)}"
            )

    def _unpenalised(self):
        """Whether no norm of the coefficients is penalised."""
        return self.penalty in (None, "firth") or float("inf") == self.C

    def _strengths(self, total_weight):
        """(l2, l1), the penalty of the mean loss."""
        if self._unpenalised():
            return 0.0, 0.0
        strength = 1 / (self.C * total_weight)
        ratio = {"l2": 0.0, "l1": 1.0, "elasticnet": self.l1_ratio}[self.penalty]
        return strength * (1 - ratio), strength * ratio

    def _objective(self, X, codes, weight):
        """The smooth part of the objective, and the L1 strength of each entry of theta."""
        outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        xp = np if is_sparse(X) else namespace([X])
        y = xp.asarray(codes if outputs > 1 else codes.astype(np.float64))
        l2, l1 = self._strengths(float(weight.sum()))
        if self.penalty == "firth":
            if outputs > 1:
                raise ValueError(f"penalty: 'firth' is for two classes, y has {outputs}")
            objective = FirthObjective(X, y, weight, 1, self.fit_intercept)
            return objective, xp.zeros(objective.size)
        objective = Objective(X, y, weight, outputs, self.fit_intercept, l2)
        l1 = xp.where(objective.l2 >= 0, l1, 0.0).reshape(objective.shape)
        if self.fit_intercept:
            l1[:, -1] = 0
        return objective, l1.reshape(-1)

    def _check_identified(self, X):
        """Without a penalty a constant column cannot be told from the intercept (or is zero)."""
        if not self._unpenalised() or is_sparse(X):
            return
        xp = namespace([X])
        same = xp.equal(X, X[:1] if self.fit_intercept else 0).all(axis=0)
        if bool(same.any()) and X.shape[0] > 1:
            column = column_name(int(same.argmax()), getattr(self, "feature_names_in_", None))
            raise ValueError(
                f"X: column {column} is constant, so its coefficient is not determined"
                f"{' beside the intercept' if self.fit_intercept else ''}; drop the column or use "
                "penalty='l2'"
            )

    def _pick(self, objective, has_l1):
        if self.solver != "auto":
            return self.solver
        few = objective.size <= FEW
        if has_l1:
            return "proximal-newton" if few else "fista"
        return "newton" if few or self.penalty == "firth" else "newton-cg"

    def _learn(self, objective, l1, theta):
        """Run the solver from theta, and take over what it found."""
        has_l1 = self._strengths(1.0)[1] > 0
        self.solver_ = self._pick(objective, has_l1)
        likelihood_only = not has_l1 and not bool(objective.l2.any())
        self.separable_ = False
        try:
            result = self._solve(objective, l1, theta, likelihood_only)
        except SeparatedError:
            result = self._answer_separable(objective)
        theta = objective.centred(result.theta, intercept_only=has_l1)
        theta = theta.reshape(objective.shape)
        self.coef_ = theta[:, : objective.features].copy()
        self.intercept_ = (
            theta[:, -1].copy() if self.fit_intercept else objective.xp.zeros(len(theta))
        )
        self.n_iter_ = np.array([max(result.iterations, 1)], dtype=np.int32)
        value = objective.value(result.theta) if result.value is None else result.value
        self.loss_ = value + float(l1 @ objective.xp.abs(result.theta))
        self.gradient_norm_, self.converged_ = result.gradient_norm, result.converged
        if not result.converged:
            warnings.warn(
                f"{self.solver_} stopped at a gradient of {result.gradient_norm:.1e}: "
                f"{result.reason}; scale the columns, raise max_iter, or give a tol",
                native(ConvergenceWarning),
                stacklevel=3,
            )

    def _solve(self, objective, l1, theta, likelihood_only):
        name = self.solver_
        max_iter = MAX_ITER["firth" if self.penalty == "firth" else name]
        max_iter = max_iter if self.max_iter is None else self.max_iter
        tol = 1e-6 if self.tol is None and name == "sgd" else self.tol
        search = likelihood_only and type(objective) is Objective
        with progress(max_iter, name, self.verbose) as bar:
            stop = Stop(tol, max_iter, bar, search)
            if name == "sgd":
                rng = check_random_state(self.random_state)
                result = solvers.sgd(objective, theta, stop, l1, rng, self.batch_size)
            elif name in WITH_L1:
                run = {"proximal-newton": solvers.proximal_newton, "fista": solvers.fista}[name]
                result = run(objective, theta, stop, l1)
            else:
                run = {
                    "newton": solvers.newton,
                    "newton-cg": solvers.newton_cg,
                    "lbfgs": solvers.lbfgs,
                }[name]
                result = run(objective, theta, stop)
        if search and name != "newton" and objective.size <= FEW:
            _confirm_maximum(objective, result, stop)
        return result

    def _answer_separable(self, objective):
        """One warning, and the fit under a weak penalty, which exists and is the same for all."""
        self.separable_ = True
        warnings.warn(
            "the classes are separable by these columns, so the likelihood has no maximum (the "
            f"coefficients would be infinite): fitted with penalty='l2', C={SEPARATED_C:g} "
            "instead; use penalty='firth' or a C of your own for one that means something",
            native(ConvergenceWarning),
            stacklevel=4,
        )
        objective.l2 = objective.l2 + 1 / (SEPARATED_C * objective.total_weight)
        if self.fit_intercept:
            objective.l2.reshape(objective.shape)[:, -1] = 0
        return self._solve(objective, 0 * objective.l2, 0 * objective.l2, False)

    def _warm_theta(self):
        coef, intercept = to_host(self.coef_), to_host(self.intercept_)
        theta = np.hstack([coef, intercept[:, None]]) if self.fit_intercept else coef
        return theta.reshape(-1)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One pass of averaged gradient steps over some rows, for data that come in parts.

        classes  all there are, needed on the first call. The average of all steps so far is what
        `coef_` holds (Polyak & Juditsky 1992); columns should be of like scale. Returns self.
        """
        self._check_parameters()
        first = not hasattr(self, "coef_")
        X = (
            self._fit_matrix(X, sparse=True) if first
            else self._fitted_matrix(X, "coef_", sparse=True)
        )  # fmt: skip
        labels, weight = check_vector(y, length=X.shape[0]), check_weights(sample_weight, X)
        if first:
            if classes is None:
                raise ValueError("classes: must be given on the first call of partial_fit")
            self.classes_ = np.unique(to_host(np.asarray(classes)))
            if len(self.classes_) < 2:
                raise ValueError(f"classes: got {self.classes_!r}, expected two or more")
        codes = known_codes(labels, self.classes_)
        weight = weight * class_weights(self.class_weight, self.classes_, codes, weight)
        objective, l1 = self._objective(X, codes, weight)
        xp, k = objective.xp, objective.shape[0]
        average = xp.zeros(objective.size) if first else xp.asarray(self._warm_theta())
        if not hasattr(self, "steps_"):
            self.steps_, self.last_ = 0, average
        rate = 1.0 / max(float(objective.hessian_trace_bound()), 1e-12)
        rng = check_random_state(self.random_state)
        for rows in solvers.batches(rng, objective.samples, self.batch_size):
            _, g = objective.subset(rows).gradient(self.last_)
            self.steps_ += 1
            step = rate / math.sqrt(self.steps_)
            self.last_ = solvers.soft_threshold(xp, self.last_ - step * g, step * l1)
            average = average + (self.last_ - average) / self.steps_
        theta = average.reshape(k, -1)
        self.coef_ = theta[:, : objective.features].copy()
        self.intercept_ = theta[:, -1].copy() if self.fit_intercept else xp.zeros(k)
        self.n_iter_, self.solver_ = np.array([1], dtype=np.int32), "sgd"
        return self

    # --- prediction

    def decision_function(self, X):
        """The logits: (n,) for two classes, (n, K) for more."""
        X = self._fitted_matrix(X, "coef_", sparse=True)
        like = device_of(X) if is_array(X) else "cpu"  # scipy's matrices are there
        coef, intercept = to_device(self.coef_, like), to_device(self.intercept_, like)
        z = X @ coef.T + intercept
        return z[:, 0] if z.shape[1] == 1 else z

    def predict(self, X):
        """The most probable class of each row."""
        z = self.decision_function(X)
        index = (z > 0).astype(np.int64) if z.ndim == 1 else z.argmax(axis=1)
        if self.classes_.dtype.kind in "biuf":
            return namespace([z]).asarray(self.classes_)[index]
        return self.classes_[to_host(index)]

    def predict_log_proba(self, X):
        """log P(class | row): (n, K), exact where the probability underflows."""
        z = self.decision_function(X)
        if z.ndim == 2:
            return ops.log_softmax(z)
        xp = namespace([z])
        return -xp.stack([ops.logaddexp(0.0, z), ops.logaddexp(0.0, -z)], axis=1)

    def predict_proba(self, X):
        """P(class | row): (n, K), columns in the order of `classes_`."""
        z = self.decision_function(X)
        if z.ndim == 2:
            return ops.softmax(z)
        return namespace([z]).stack([ops.sigmoid(-z), ops.sigmoid(z)], axis=1)

    def score(self, X, y, sample_weight=None):
        """The weighted share of rows whose class is predicted right."""
        right = to_host(self.predict(X)) == to_host(check_vector(y))
        return float(np.average(right, weights=sample_weight))

    # --- inference

    def inference(self, X, y, sample_weight=None, covariance="hessian"):
        """Standard errors, tests and criteria of this fit on the data it was fitted to.

        covariance  "hessian" (the inverse information) or "HC0" (robust: the sandwich)

        ValueError where there is no maximum of the likelihood to speak of.
        """
        check_choice(covariance, "covariance", ("hessian", "HC0"))
        X = self._fitted_matrix(X, "coef_", sparse=True)
        codes = known_codes(check_vector(y, length=X.shape[0]), self.classes_)
        if self._strengths(1.0)[1]:
            raise ValueError(
                "inference: an L1 penalty chooses its columns by the data, so standard errors do "
                "not hold; fit with penalty=None on the chosen columns, of other data"
            )
        if getattr(self, "separable_", False):
            raise ValueError("inference: the data are separable, no maximum exists; see 'firth'")
        weight = check_weights(sample_weight, X)
        weight = weight * class_weights(self.class_weight, self.classes_, codes, weight)
        objective, _ = self._objective(X, codes, weight)
        return Inference.of(self, objective, covariance)

    def summary(self, X, y, sample_weight=None, covariance="hessian"):
        """The table of `inference` as text."""
        return self.inference(X, y, sample_weight, covariance).summary()

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.classifier_tags = ClassifierTags()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags


def _confirm_maximum(objective, result, stop):
    """Where logits are extreme, let Newton's steps say whether a maximum exists."""
    if max(map(abs, objective.margins(result.theta))) > 15:
        solvers.newton(objective, 0 * result.theta, Stop(stop.tol, 60, stop.bar, True))


# ---------------------------------------------------------------------------- classes, weights


def encode(y, weight):
    """(classes in order, the number of each sample's class), of the samples of weight > 0.

    ValueError for real numbers as labels, and for fewer than two classes.
    """
    y = to_host(y)
    if y.dtype.kind == "f" and (y != np.floor(y)).any():
        raise ValueError(
            "y: Unknown label type: continuous. Labels must be classes; for real numbers use a "
            "regression"
        )
    counted = to_host(weight) > 0
    classes = _distinct(y if counted.all() else y[counted])
    if len(classes) < 2:
        raise ValueError(
            f"y: got one class only, {classes[0]} (among samples of weight > 0); a classifier "
            "needs at least two classes"
        )
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    return classes, codes


def _distinct(y):
    """np.unique, without sorting where labels are small integers."""
    if y.dtype.kind in "iu":
        low = int(y.min())
        if int(y.max()) - low < 1000:
            present = np.bincount((y - low).astype(np.int64))
            return (np.flatnonzero(present) + low).astype(y.dtype)
    return np.unique(y)


def known_codes(y, classes):
    """The number of each label among the classes; ValueError for one that is not there."""
    y = to_host(y)
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    strange = classes[codes] != y
    if strange.any():
        raise ValueError(f"y: {y[strange][0]!r} is none of the classes {list(classes)}")
    return codes


def class_weights(class_weight, classes, codes, weight):
    """A factor for each sample, beside `weight`."""
    xp = namespace([weight])
    if class_weight is None:
        return 1.0
    if isinstance(class_weight, str):
        check_choice(class_weight, "class_weight", ("balanced",))
        counts = np.bincount(codes, weights=to_host(weight), minlength=len(classes))
        factors = counts.sum() / (len(classes) * np.maximum(counts, 1e-300))
    elif isinstance(class_weight, dict):
        known = set(classes.tolist())
        unknown = [c for c in class_weight if c not in known]
        if unknown:
            raise ValueError(f"class_weight: {unknown[0]!r} is none of the classes {list(classes)}")
        factors = np.array([float(class_weight.get(c, 1.0)) for c in classes.tolist()])
        if not (factors >= 0).all():
            raise ValueError("class_weight: weights must be >= 0")
    else:
        raise TypeError(f"class_weight: got {class_weight!r}, expected None, 'balanced' or a dict")
    return xp.asarray(factors[codes])


# ------------------------------------------------------------------------- path and validation


def logistic_path(X, y, Cs=10, *, sample_weight=None, **parameters):
    """(Cs, coefficients (m, 1 or K, d), intercepts (m, 1 or K)): one fit a C, each from the last.

    Cs           an int for so many between 1e-4 and 1e4, or the values
    parameters   of LogisticRegression
    """
    Cs = np.logspace(-4, 4, Cs) if isinstance(Cs, int) else np.asarray(Cs, dtype=np.float64)
    model = LogisticRegression(warm_start=True, **parameters)
    coefs, intercepts = [], []
    for C in Cs:
        model.set_params(C=float(C)).fit(X, y, sample_weight)
        coefs.append(to_host(model.coef_))
        intercepts.append(to_host(model.intercept_))
    return Cs, np.stack(coefs), np.stack(intercepts)


def stratified_folds(codes, folds, rng):
    """The fold of each sample, every class spread evenly over the folds."""
    fold = np.empty(len(codes), dtype=np.int64)
    for c in range(int(codes.max()) + 1):
        rows = rng.permutation(np.flatnonzero(codes == c))
        if len(rows) < folds:
            raise ValueError(f"cv: got {folds} folds, class number {c} has {len(rows)} samples")
        fold[rows] = (np.arange(len(rows)) + c) % folds
    return fold


class LogisticRegressionCV(LogisticRegression):
    """LogisticRegression whose C is chosen by cross-validated log-likelihood.

    Cs  an int for so many between 1e-4 and 1e4, or the values
    cv  folds, stratified by class, or a list of pairs (rows to fit, rows to score)

    Learns besides C_ and scores_ (folds, Cs): the mean log-likelihood of a held-out sample.
    """

    def __init__(
        self,
        Cs=10,
        *,
        cv=5,
        penalty="l2",
        l1_ratio=0.5,
        fit_intercept=True,
        class_weight=None,
        solver="auto",
        tol=None,
        max_iter=None,
        random_state=None,
        verbose=0,
    ):
        self.Cs = Cs
        self.cv = cv
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.verbose = verbose

    warm_start, batch_size = False, 256  # arguments of the other that this one does not have

    @property
    def C(self):
        """The strength that was chosen."""
        return getattr(self, "C_", 1.0)

    def fit(self, X, y, sample_weight=None):
        """Choose C, then fit all rows with it. Returns self."""
        X = self._fit_matrix(X, sparse=True)
        labels, weight = check_vector(y, length=X.shape[0]), check_weights(sample_weight, X)
        _, codes = encode(labels, weight)
        splits = self._splits(codes)
        own = ("Cs", "cv", "verbose")
        parameters = {k: v for k, v in self.get_params(deep=False).items() if k not in own}
        scores = []
        with progress(len(splits), "folds", self.verbose) as bar:
            for train, test in splits:
                self.Cs_, coefs, intercepts = logistic_path(
                    X[train], labels[train], self.Cs, sample_weight=weight[train], **parameters
                )
                scores.append(_held_out(X[test], codes[test], weight[test], coefs, intercepts))
                bar.update(1)
        self.scores_ = np.array(scores)
        self.C_ = float(self.Cs_[self.scores_.mean(axis=0).argmax()])
        names = getattr(self, "feature_names_in_", None)
        super().fit(X, labels, sample_weight)
        if names is not None:
            self.feature_names_in_ = names
        return self

    def _splits(self, codes):
        if isinstance(self.cv, list | tuple):
            return list(self.cv)
        check_number(self.cv, "cv", low=2, integer=True)
        fold = stratified_folds(codes, self.cv, check_random_state(self.random_state))
        return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(self.cv)]


def _held_out(X, codes, weight, coefs, intercepts):
    """The mean log-likelihood of a sample under each of several fits."""
    xp = np if is_sparse(X) else namespace([X])
    outputs = coefs.shape[1]
    y = xp.asarray(codes.astype(np.float64) if outputs == 1 else codes)
    objective = Objective(X, y, weight, outputs)
    thetas = np.concatenate([coefs, intercepts[..., None]], axis=2)
    return [-objective.value(xp.asarray(t.reshape(-1))) for t in thetas]
