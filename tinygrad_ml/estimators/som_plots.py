"""Pictures of a map: one cell for each unit, square or hexagonal as its grid is.

    from tinygrad_ml.estimators import som_plots
    som_plots.plot_u_matrix(som).figure.savefig("walls.png")

matplotlib is imported by the first picture. Each function draws into `axes` (None: a new figure)
and returns them.
"""

import math

import numpy as np

from ..backend import to_host


def plot_cells(som, values, axes=None, *, cmap="viridis", bar=True, title=None):
    """One colour for each unit, by a number or as it is: (rows, columns) or (rows, columns, 3)"""
    _pyplot()
    from matplotlib.collections import PolyCollection

    axes = _axes(axes)
    values = np.asarray(to_host(values))
    cells = PolyCollection(cell_outlines(som._grid()), linewidth=0.5, edgecolor="face")
    if values.ndim == 3:
        cells.set_facecolor(np.clip(values.reshape(-1, values.shape[-1]), 0, 1))
    else:
        cells.set_array(values.reshape(-1))
        cells.set_cmap(cmap)
    axes.add_collection(cells)
    _frame(axes, som._grid(), title)
    if bar and values.ndim == 2:
        axes.figure.colorbar(cells, ax=axes, shrink=0.8)
    return axes


def plot_u_matrix(som, axes=None, **options):
    """Mean distance to the neighbours: dark walls between light clusters."""
    options = {"cmap": "bone_r", "title": "U-matrix", **options}
    return plot_cells(som, som.u_matrix(), axes, **options)


def plot_planes(som, names=None, features=None, columns=4):
    """One map for each feature, coloured by the prototypes' values; returns the figure."""
    pyplot = _pyplot()
    planes = som.component_planes()
    features = list(range(len(planes))) if features is None else list(features)
    names = getattr(som, "feature_names_in_", None) if names is None else names
    rows = math.ceil(len(features) / columns)
    columns = min(columns, len(features))
    size = (3 * columns, 2.6 * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, f in zip(grid.flat, features, strict=False):
        plot_cells(som, planes[f], axes, title=str(f) if names is None else str(names[f]))
    for axes in grid.flat[len(features) :]:
        axes.set_axis_off()
    return figure


def plot_hits(som, X, axes=None, *, color="#f28e2b", background=None, title="hits"):
    """A cell within each cell, its area as the number of rows that the unit wins."""
    _pyplot()
    from matplotlib.collections import PolyCollection

    background = som.u_matrix() if background is None else background
    axes = plot_cells(som, background, axes, cmap="bone_r", bar=False, title=title)
    hits = np.asarray(to_host(som.hit_map(X)), dtype=float).reshape(-1)
    scale = np.sqrt(hits / max(hits.max(), 1e-300))[:, None, None]
    centers = som._grid().positions[:, None]
    inner = centers + 0.95 * scale * (cell_outlines(som._grid()) - centers)
    axes.add_collection(PolyCollection(inner, facecolor=color, edgecolor="none"))
    return axes


def plot_labels(som, X, y, axes=None, *, cmap="tab10", title="labels"):
    """The most frequent label of each unit as its colour; units that win nothing are white.

    Labels of at most three letters are written on the cells, longer ones beside the map.
    """
    pyplot = _pyplot()
    places, classes = som.label_map(X, y)
    places = np.asarray(to_host(places))
    palette = pyplot.get_cmap(cmap)
    colors = np.ones((*places.shape, 3))
    for i in range(len(classes)):
        colors[places == i] = palette(i % palette.N)[:3]
    axes = plot_cells(som, colors, axes, title=title)
    names = [str(c) for c in classes]
    if max(map(len, names)) > 3:
        squares = [
            pyplot.Rectangle((0, 0), 1, 1, color=palette(i % palette.N)) for i in range(len(names))
        ]
        axes.legend(squares, names, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        return axes
    style = dict(ha="center", va="center", color="white", fontsize=_font_size(axes))
    for (x, y), i in zip(som._grid().positions, places.reshape(-1), strict=True):
        if i >= 0:
            axes.text(x, y, names[i], **style)
    return axes


def cell_outlines(grid):
    """The corners of every cell, cells side by side without gaps: (k, 4 or 6, 2)"""
    if grid.kind == "hexagonal":  # a corner upwards, as far from the middle as its edges are long
        angles = np.pi / 6 + np.arange(6) * np.pi / 3
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(3)
    else:
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    return grid.positions[:, None] + corners


def _frame(axes, grid, title):
    outline = cell_outlines(grid).reshape(-1, 2)
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", title=title)
    axes.set_axis_off()


def _font_size(axes):
    """A font size that fits a cell, in points."""
    axes.figure.canvas.draw()  # only now is it known how large a cell will be
    (x0, _), (x1, _) = axes.transData.transform([(0, 0), (1, 0)])
    return 0.4 * (x1 - x0) * 72 / axes.figure.dpi


def _axes(axes):
    if axes is not None:
        return axes
    return _pyplot().subplots(layout="constrained")[1]


def _pyplot():
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'tinygrad_ml[plot]'") from error
    return pyplot
