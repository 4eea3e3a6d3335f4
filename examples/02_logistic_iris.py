"""Logistic regression from its derivation, on two of the irises, with pictures.

    python examples/02_logistic_iris.py [folder for the picture]

1. The logistic distribution. Say that a flower leans towards class 1 by w x + b + e, and that it
   falls there if this is above 0. If the noise e is logistic, F(e) = 1 / (1 + exp(-e)), then
       P(y = 1 | x) = P(e > -(w x + b)) = F(w x + b),
   and the log odds, log P / (1 - P) = w x + b, are linear in x.
2. Maximum likelihood. Choose w and b under which the labels seen were most probable: minimise
       L = -sum_i log P(y_i | x_i) = sum_i [log(1 + exp(z_i)) - y_i z_i],   z = w x + b.
   dL/dz = p - y: at the minimum the predictions agree with the labels on average, along every
   feature. d2L/dz2 = p (1 - p) > 0: the valley has one bottom.
3. Newton's method goes there in a few steps: theta - H^-1 g, with H = X^T diag(p (1 - p)) X.
"""

import os
import sys
from pathlib import Path

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml.estimators import LogisticRegression


def irises():
    """Petal length and width of versicolor (0) and virginica (1): a file, or a like sample."""
    folder = os.environ.get("TINYGRAD_ML_DATA")
    if folder:
        table = np.loadtxt(Path(folder) / "iris" / "iris.csv", delimiter=",", skiprows=1)
        table = table[table[:, 4] > 0]
        return table[:, 2:4], table[:, 4] - 1
    rng = np.random.default_rng(0)  # the two species' published means and covariances
    versicolor = rng.multivariate_normal([4.26, 1.33], [[0.22, 0.07], [0.07, 0.04]], 50)
    virginica = rng.multivariate_normal([5.55, 2.03], [[0.30, 0.05], [0.05, 0.08]], 50)
    return np.vstack([versicolor, virginica]), np.repeat([0.0, 1.0], 50)


def loss(theta, X, y):
    """Minus the log-likelihood      theta: (w1, w2, b)"""
    z = X @ theta[:2] + theta[2]
    return (tg.logaddexp(z, 0.0) - y * z).sum()


def newton(X, y, steps=12):
    """The path of Newton's method from 0; gradient and Hessian by the engine."""
    path = [np.zeros(3)]
    for step in range(steps):
        theta = tg.tensor(path[-1])
        value, g = tg.value_and_grad(lambda t: loss(t, X, y))(theta)
        H = tg.hessian(lambda t: loss(t, X, y))(theta)
        print(f"step {step:2}  loss {value.item():9.5f}  |gradient| {abs(g.numpy()).max():.1e}")
        path.append(path[-1] - np.linalg.solve(H.numpy(), g.numpy()))
    return np.array(path)


def draw(X, y, path, folder):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    a, b = np.meshgrid(np.linspace(2.8, 7.2, 200), np.linspace(0.8, 2.7, 200))
    p = 1 / (1 + np.exp(-(a * path[-1][0] + b * path[-1][1] + path[-1][2])))
    shade = left.contourf(a, b, p, np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.6)
    left.contour(a, b, p, [0.5], colors="black")
    for label, name, mark in ((0, "versicolor", "o"), (1, "virginica", "^")):
        left.scatter(*X[y == label].T, marker=mark, edgecolor="black", label=name)
    left.set(xlabel="petal length, cm", ylabel="petal width, cm", title="P(virginica); line: 1/2")
    left.legend(loc="upper left")
    figure.colorbar(shade, ax=left)

    w1, w2 = np.meshgrid(np.linspace(-2, 14, 90), np.linspace(-3, 24, 90))
    z = w1[..., None] * (X[:, 0] - X[:, 0].mean()) + w2[..., None] * (X[:, 1] - X[:, 1].mean())
    z += path[-1][2] + path[-1][:2] @ X.mean(axis=0)  # the intercept of the fit, at the mean flower
    surface = -(np.logaddexp(z, 0) - y * z).sum(axis=-1)
    levels = right.contourf(w1, w2, surface, np.linspace(-150, -10, 29), extend="min")
    right.plot(path[:, 0], path[:, 1], "o-", color="white", markeredgecolor="black")
    right.plot(*path[-1][:2], "*", color="red", markersize=15)
    right.set(xlabel="w of length", ylabel="w of width", title="log-likelihood; Newton's steps")
    figure.colorbar(levels, ax=right)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "logistic_iris.png", dpi=110)
    print(f"wrote {folder / 'logistic_iris.png'}")


def main(folder=None):
    X, y = irises()
    path = newton(X, y)
    model = LogisticRegression(penalty=None).fit(X, y.astype(int))
    print("\nby hand ", path[-1], "\nby class", model.coef_[0], model.intercept_)
    print(f"gradient {model.gradient_norm_:.0e}, solver {model.solver_}\n")
    print(model.summary(X, y.astype(int)))
    if folder:
        draw(X, y, path, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
