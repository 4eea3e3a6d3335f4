"""A map of handwritten digits that nobody labelled, and what it knows once a few are.

    python examples/04_som_digits.py [folder for the pictures]        needs scikit-learn's digits

1797 pictures of 8 x 8 pixels are laid out on a plane: a topographic map. Like digits become
neighbours, though training sees no label. Labels come in afterwards: they name the regions, and
the named map classifies pictures that it has never seen.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from tinygrad_ml.estimators import SOM, SOMClassifier


def main(folder):
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:1200], order[1200:]

    som = SOM((16, 20), grid="hexagonal").fit(X[train])
    alone = np.linalg.norm(X[train] - X[train].mean(axis=0), axis=1).mean()
    print(f"quantisation error {som.quantization_error(X[train]):.2f}, of one unit {alone:.2f}")
    print(f"topographic error {som.topographic_error(X[train]):.3f}")

    places, classes = som.label_map(X[train], y[train])
    print("\nthe most frequent digit of each unit (. won nothing):")
    for i, row in enumerate(places):
        print(" " * (i % 2) + " ".join("." if p < 0 else str(classes[p]) for p in row))

    classifier = SOMClassifier((16, 20), grid="hexagonal").fit(X[train], y[train])
    print(f"\naccuracy on {len(test)} new pictures: {classifier.score(X[test], y[test]):.3f}")
    if folder:
        draw(som, X[train], y[train], Path(folder))


def draw(som, X, y, folder):
    from matplotlib import pyplot

    from tinygrad_ml.estimators.som_plots import plot_hits, plot_labels, plot_u_matrix

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    plot_u_matrix(som, axes[0])
    plot_hits(som, X, axes[1])
    plot_labels(som, X, y, axes[2])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "som_digits.png")

    rows, columns = som.shape
    mosaic = som.codebook_.reshape(rows, columns, 8, 8).swapaxes(1, 2).reshape(rows * 8, -1)
    pyplot.imsave(folder / "som_digits_prototypes.png", -mosaic, cmap="gray")
    print(f"wrote {folder / 'som_digits.png'} and {folder / 'som_digits_prototypes.png'}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
