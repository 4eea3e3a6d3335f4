"""Logistic regression beside scikit-learn's fastest solvers, in one run, at equal accuracy.

python tests/benchmarks/logistic.py [rows] [repeats]

Each line: seconds (the least of the repeats), the largest entry of the gradient of the mean
objective where the solver stopped, and the time relative to ours. A solver that does not reach
the gradient asked for is marked, and counts as beaten only if it was slower as well.
"""

import sys
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Theirs

from tinygrad_ml.estimators import LogisticRegression
from tinygrad_ml.estimators.likelihood import Objective

GOAL = 1e-8


def rows_of(n, d=50, seed=0):
    """Two classes from a logistic model with unit-variance logits."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    w = rng.standard_normal(d) / d**0.5
    return X, (rng.random(n) < 1 / (1 + np.exp(-(X @ w)))).astype(int)


def gradient_norm(model, X, y):
    """The largest entry of the gradient of the mean objective at a fit, C = 1."""
    outputs = len(model.coef_)
    labels = y.astype(float) if outputs == 1 else y
    objective = Objective(X, labels, np.ones(len(y)), outputs, l2=1 / len(y))
    theta = np.hstack([model.coef_, model.intercept_[:, None]]).ravel()
    return np.abs(objective.gradient(theta)[1]).max()


def timed(make, X, y, repeats):
    seconds = []
    for _ in range(repeats):
        model = make()
        start = time.perf_counter()
        model.fit(X, y)
        seconds.append(time.perf_counter() - start)
    return min(seconds), gradient_norm(model, X, y)


def compare(title, X, y, solvers, repeats):
    print(title)
    ours = None
    for name, make in solvers.items():
        seconds, norm = timed(make, X, y, repeats)
        ours = ours or seconds
        missed = "" if norm <= GOAL else f"  (above {GOAL:g})"
        print(
            f"  {name:36}{seconds:8.3f} s  {norm:8.1e}  {seconds / ours:6.2f}{missed}", flush=True
        )


def main(rows=1_000_000, repeats=2):
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = rows_of(rows)
    # lbfgs stops early by its other criterion unless tol is far below the goal
    compare(
        f"{rows} x 50, two classes",
        X,
        y,
        {
            "ours, tol=1e-8": lambda: LogisticRegression(tol=GOAL),
            "ours, to rounding errors": LogisticRegression,
            "scikit-learn lbfgs, tol=1e-8": lambda: Theirs(tol=GOAL, max_iter=1000),
            "scikit-learn newton-cholesky, 1e-8": lambda: Theirs(
                solver="newton-cholesky", tol=GOAL
            ),
        },
        repeats,
    )
    X, y = load_digits(return_X_y=True)
    compare(
        "digits, ten classes",
        X,
        y,
        {
            "ours, tol=1e-8": lambda: LogisticRegression(tol=GOAL),
            "ours, to rounding errors": LogisticRegression,
            "ours, newton-cg, to rounding errors": lambda: LogisticRegression(solver="newton-cg"),
            "scikit-learn newton-cholesky, 1e-8": lambda: Theirs(
                solver="newton-cholesky", tol=GOAL
            ),
            "scikit-learn lbfgs, tol=1e-8": lambda: Theirs(tol=GOAL, max_iter=10_000),
        },
        repeats,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
