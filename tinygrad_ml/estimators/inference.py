"""What a fitted logistic regression says about its uncertainty: errors, tests, criteria, effects.

The maximum likelihood estimate is normal around the truth for many samples, with covariance
H^-1 (H the Hessian of minus the log-likelihood), or H^-1 G H^-1 with G = sum_i s_i s_i^T over the
scores if the model is only approximately right (HC0: Huber 1967, White 1980).
"""

import math
from dataclasses import dataclass

import numpy as np

from ..backend import to_host
from .likelihood import FirthObjective, Objective, curvature_of, loss_and_gradient


@dataclass
class Inference:
    """Estimates beside their errors, one row an equation (class against the first) and term.

    params, std_err, z, p   (K - 1, p): the p-th term is the intercept where there is one
    covariance              ((K - 1) p, (K - 1) p)
    log_likelihood, null_log_likelihood, aic, bic, pseudo_r2 (McFadden 1974)
    """

    names: list
    equations: list
    params: np.ndarray
    covariance: np.ndarray
    kind: str
    note: str
    n: float
    log_likelihood: float
    null_log_likelihood: float
    effects: tuple

    @classmethod
    def of(cls, model, objective, kind):
        """From a fitted model and the objective that it minimised."""
        k, p = objective.shape
        theta = np.hstack([to_host(model.coef_), to_host(model.intercept_)[:, None]])
        theta = theta[:, :p]
        flat = objective.xp.asarray(theta.reshape(-1))
        n = objective.total_weight
        free = slice(0, None) if k == 1 else slice(p, None)  # against the first class
        H = n * to_host(objective.hessian(flat))[free, free]
        _check_regular(H, _term_names(model, objective))
        covariance = np.linalg.inv(H)
        if kind == "HC0":
            G = to_host(_outer_scores(objective, flat))[free, free]
            covariance = covariance @ G @ covariance
        params = theta if k == 1 else theta[1:] - theta[0]
        classes = [str(c) for c in model.classes_.tolist()]
        note = ""
        if bool(objective.l2.any()):
            note = "penalised fit: errors are those of the posterior under its normal prior"
        if type(objective) is FirthObjective:
            note = "Firth's penalised likelihood"
        return cls(
            names=_term_names(model, objective),
            equations=[f"{c} against {classes[0]}" for c in classes[1:]],
            params=params,
            covariance=covariance,
            kind=kind,
            note=note,
            n=n,
            log_likelihood=-n * _loss(objective, flat),
            null_log_likelihood=_null_log_likelihood(objective),
            effects=_average_effects(objective, flat, covariance, params),
        )

    @property
    def std_err(self):
        return np.sqrt(np.diag(self.covariance)).reshape(self.params.shape)

    @property
    def z(self):
        """params / std_err, standard normal if the parameter is zero."""
        return self.params / self.std_err

    @property
    def p(self):
        """P(|Z| > |z|) = erfc(|z| / sqrt 2), two-sided."""
        return np.vectorize(lambda z: math.erfc(abs(z) / math.sqrt(2)))(self.z)

    def conf_int(self, level=0.95):
        """(lower, upper) of each parameter, Wald's."""
        if not 0 < level < 1:
            raise ValueError(f"level: got {level!r}, expected a number between 0 and 1")
        half = normal_quantile((1 + level) / 2) * self.std_err
        return self.params - half, self.params + half

    @property
    def aic(self):
        return 2 * self.params.size - 2 * self.log_likelihood

    @property
    def bic(self):
        return self.params.size * math.log(self.n) - 2 * self.log_likelihood

    @property
    def pseudo_r2(self):
        """1 - log-likelihood / that of the intercept alone."""
        return 1 - self.log_likelihood / self.null_log_likelihood

    def marginal_effects(self):
        """(effects, standard errors): the mean over samples of d P(class) / d feature.

        (d,) for two classes, P of the second; (K, d) for more. Errors by the delta method.
        """
        return self.effects

    def summary(self):
        """The table as text."""
        lines = [
            f"Logistic regression: {self.n:g} samples, {self.params.size} parameters, "
            f"{self.kind} errors",
            f"log-likelihood {self.log_likelihood:.4f} (intercept alone "
            f"{self.null_log_likelihood:.4f}), pseudo R2 {self.pseudo_r2:.4f}, "
            f"AIC {self.aic:.2f}, BIC {self.bic:.2f}",
        ]
        if self.note:
            lines.append(self.note)
        low, high = self.conf_int()
        width = max(9, *map(len, self.names))
        for e, equation in enumerate(self.equations):
            lines += ["", equation]
            lines.append(
                f"{'':{width}} {'coef':>10} {'std err':>10} {'z':>8} {'P>|z|':>7} "
                f"{'[0.025':>10} {'0.975]':>10}"
            )
            for j, name in enumerate(self.names):
                lines.append(
                    f"{name:{width}} {self.params[e, j]:10.4f} {self.std_err[e, j]:10.4f} "
                    f"{self.z[e, j]:8.3f} {self.p[e, j]:7.3f} {low[e, j]:10.4f} {high[e, j]:10.4f}"
                )
        return "\n".join(lines)


def normal_quantile(q):
    """x with P(Z <= x) = q, by bisection on erfc."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        below = 0.5 * math.erfc(-middle / math.sqrt(2)) < q
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _check_regular(H, names):
    """ValueError that names the first term which those before it determine."""
    scale = np.sqrt(np.maximum(np.diag(H), 1e-300))
    scaled, done = H / scale[:, None] / scale, []
    for j in range(len(H)):  # what is left of column j beside the columns kept so far
        weights = np.linalg.solve(scaled[np.ix_(done, done)], scaled[done, j])
        if scaled[j, j] - scaled[done, j] @ weights < 1e-12:
            raise ValueError(
                f"inference: {names[j % len(names)]} is a linear combination of the terms before "
                "it, so its coefficient is not determined; drop that column"
            )
        done.append(j)


def _term_names(model, objective):
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        names = [f"x{j}" for j in range(objective.features)]
    return [*map(str, names), *(["intercept"] if objective.intercept else [])]


def _loss(objective, theta):
    """The mean loss without its penalty."""
    return sum(
        loss_and_gradient(objective.logits(theta, X), y, weight)[0]
        for X, y, weight in objective.blocks()
    )


def _null_log_likelihood(objective):
    """The log-likelihood of the intercept alone: that of the classes' shares."""
    y, weight = to_host(objective.y), to_host(objective.weight)
    shares = np.bincount(y.astype(np.int64), weights=weight)
    shares = shares[shares > 0]
    return objective.total_weight * float(shares @ np.log(shares))


def _outer_scores(objective, theta):
    """sum_i s_i s_i^T / w_i: an integer weight counts as that many samples."""
    xp, (k, p) = objective.xp, objective.shape
    G = xp.zeros((objective.size, objective.size))
    for X, y, weight in objective.blocks():
        z = objective.logits(theta, X)
        _, r = loss_and_gradient(z, y, xp.ones_like(weight))
        scores = (r.T[:, :, None] * objective.with_ones(X)[:, None, :]).reshape(-1, k * p)
        G += (scores * (weight * objective.total_weight)[:, None]).T @ scores
    return G


def _average_effects(objective: Objective, theta, covariance, params):
    """The mean of d P_c / d x_j over samples, and its standard error by the delta method.

    d P / d x = J beta with J = diag(P) - P P^T; its derivative by beta is J and, through J,
    the third derivative of the log-normaliser.
    """
    k, p = objective.shape
    d = objective.features
    beta = to_host(params)[:, :d]
    classes = max(k, 2)
    beta = np.vstack([np.zeros(d), beta])  # (K, d), the first class is the reference
    effects = np.zeros((classes, d))
    slopes = np.zeros((classes, d, classes, p))
    for X, _, weight in objective.blocks():
        weight = to_host(weight)
        J = to_host(curvature_of(objective.logits(theta, X), *_labels(objective, X)))
        P = to_host(_probabilities(objective, theta, X))  # (K, n)
        full = to_host(objective.with_ones(X))
        if k == 1:
            J = J[0, 0] * np.array([[1.0, -1.0], [-1.0, 1.0]])[:, :, None]
        effects += (J @ weight) @ beta
        for j in range(d):
            lean = beta[:, j] @ P  # (n,), the mean slope over classes
            rise = P * (beta[:, j][:, None] - lean)  # dP_c/dx_j
            for c in range(classes):
                for b in range(classes):
                    # d rise_c / d z_b
                    turn = (c == b) * rise[c] - P[b] * rise[c] - P[c] * rise[b]
                    slopes[c, j, b] += (weight * turn) @ full
                    slopes[c, j, b, j] += weight @ J[c, b]
    slopes = slopes[:, :, 1:].reshape(classes, d, -1)
    errors = np.sqrt(np.einsum("cja,ab,cjb->cj", slopes, covariance, slopes))
    return (effects[1], errors[1]) if k == 1 else (effects, errors)


def _labels(objective, X):
    """Labels and weights under which the curvature is that of one plain sample."""
    n, xp = X.shape[0], objective.xp
    return xp.zeros(n, dtype=np.int64 if objective.shape[0] > 1 else np.float64), xp.ones(n)


def _probabilities(objective, theta, X):
    """(K, n), the gradient of the loss for a sample of no class is its probabilities."""
    xp, z = objective.xp, objective.logits(theta, X)
    if len(z) == 1:
        z = xp.concatenate([0 * z, z])
    e = xp.exp(z - z.max(axis=0))
    return e / e.sum(axis=0)
