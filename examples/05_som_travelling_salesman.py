"""A travelling salesman's tour by an elastic ring of units.

    python examples/05_som_travelling_salesman.py [folder for the pictures]

A map need not be a plane: a row of units whose ends are joined is a ring. Trained on cities, each
city draws its nearest unit and that unit's neighbours along the ring, so that the ring stretches
towards all cities while it stays short. Visited in the order of their units the cities make a
tour. Durbin & Willshaw 1987; Angeniol, de La Croix Vaubois & Le Texier 1988
"""

import sys
from pathlib import Path

import numpy as np

from tinygrad_ml.estimators import SOM


def length(cities, tour):
    """The way through all cities and back to the first."""
    way = cities[tour]
    return float(np.linalg.norm(way - np.roll(way, -1, axis=0), axis=1).sum())


def ring_tour(cities, radius_end=0.8):
    """The order in which a ring of units, drawn to the cities, passes them; and the ring."""
    n = len(cities)
    angle = np.linspace(0, 2 * np.pi, 4 * n, endpoint=False)
    circle = cities.mean(axis=0) + 0.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ring = SOM((1, 4 * n), toroidal=True, init=circle, radius=0.4 * n, radius_end=radius_end,
               max_iter=150).fit(cities)  # fmt: skip
    return np.argsort(ring.predict(cities), kind="stable"), ring


def nearest_first(cities):
    """For comparison: always go on to the nearest city not yet seen."""
    tour, left = [0], set(range(1, len(cities)))
    while left:
        here = cities[tour[-1]]
        tour.append(min(left, key=lambda city: np.linalg.norm(cities[city] - here)))
        left.remove(tour[-1])
    return np.array(tour)


def main(folder):
    rng = np.random.default_rng(1)
    cities = rng.random((100, 2))
    tour, ring = ring_tour(cities)
    print(f"100 cities in a unit square, {ring.n_iter_} epochs of {len(ring.codebook_)} units")
    print(f"in random order          {length(cities, rng.permutation(100)):6.2f}")
    print(f"the nearest one first    {length(cities, nearest_first(cities)):6.2f}")
    print(f"in the ring's order      {length(cities, tour):6.2f}")
    print(
        f"0.7124 sqrt(n A)         {0.7124 * np.sqrt(100):6.2f}   (the best tour for many cities)"
    )
    if folder:
        early = [ring_tour(cities, radius_end=r)[1].codebook_ for r in (20, 5)]
        draw(cities, [*early, cities[tour]], Path(folder) / "som_tour.png")


def draw(cities, rings, path):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    titles = ["the ring at radius 20", "at radius 5", "the tour"]
    for place, points, title in zip(axes, rings, titles, strict=True):
        closed = np.concatenate([points, points[:1]])
        place.plot(*closed.T, color="steelblue")
        place.scatter(*cities.T, color="crimson", s=15, zorder=2)
        place.set(title=title, aspect="equal")
        place.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
