"""Colours sort themselves: competitive learning, and what cooperation adds to it.

    python examples/03_som_colours.py [folder for the pictures]

A thousand random colours and a map of 20 x 30 hexagons. Units compete for each colour, and the
one that is most like it wins. If only the winner learns, the colours stay scattered over the map;
if its neighbours learn along with it, and the neighbourhood shrinks, the map becomes a palette.
"""

import sys
from pathlib import Path

import numpy as np

from tinygrad_ml.estimators import SOM


def neighbors_apart(som):
    """How far apart neighbouring units' colours are, on average."""
    return float(som.u_matrix().mean())


def main(folder):
    colours = np.random.default_rng(0).random((1000, 3))  # red, green, blue in [0, 1]
    alike = dict(shape=(20, 30), grid="hexagonal", init="random", random_state=0, max_iter=30)

    alone = SOM(neighborhood="bubble", radius=0.1, radius_end=0.1, **alike).fit(colours)
    together = SOM(neighborhood="gaussian", radius=12, radius_end=0.5, **alike).fit(colours)

    print("                              winner alone   with its neighbourhood")
    for name, measure in [
        ("quantisation error", lambda som: som.quantization_error(colours)),
        ("topographic error", lambda som: som.topographic_error(colours)),
        ("distance between neighbours", neighbors_apart),
    ]:
        print(f"{name:28}  {measure(alone):12.3f}   {measure(together):12.3f}")

    if folder:
        draw(alone, together, Path(folder) / "som_colours.png")


def draw(alone, together, path):
    from matplotlib import pyplot

    from tinygrad_ml.estimators.som_plots import plot_cells, plot_u_matrix

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for som, place, title in [
        (alone, axes[0], "only the winner learns"),
        (together, axes[1], "its neighbours learn too"),
    ]:
        plot_cells(som, som.codebook_.reshape(*som.shape, 3), place, title=title)
    plot_u_matrix(together, axes[2], title="distance to the neighbours")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
