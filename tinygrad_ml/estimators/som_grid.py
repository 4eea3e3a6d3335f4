"""The map's side of a self-organising map: its grid, its neighbourhoods and how they shrink.

A unit is counted along the rows: unit i stands in row i // columns, column i % columns. What one
unit is to another depends only on their displacement, so that everything about the grid is read
off one table of displacements (two on a hexagonal grid, whose odd rows stand half a unit aside).
"""

import math

import numpy as np

from ..backend import namespace, to_host

# ------------------------------------------------------------------------------------- grids


class Grid:
    """Units on a plane, one unit of length apart.

    kind      "rectangular": four (or eight) neighbours; "hexagonal": six, odd rows 1/2 to the right
    toroidal  the right edge joins the left one, and the bottom the top
    """

    def __init__(self, shape, kind="rectangular", toroidal=False):
        self.rows, self.columns = shape
        self.shape, self.kind, self.toroidal = tuple(shape), kind, toroidal
        self.size = self.rows * self.columns
        self.parities = (
            min(2, self.rows) if kind == "hexagonal" else 1
        )  # rows p, p + 2, ... stand alike
        self.row_height = math.sqrt(3) / 2 if kind == "hexagonal" else 1.0
        if kind == "hexagonal" and toroidal and self.rows % 2:
            raise ValueError(
                f"shape: got {self.rows} rows, expected an even number: "
                "on a hexagonal torus the last row must fit the first"
            )

    @property
    def positions(self):
        """Where the units stand: (k, 2), x to the right and y downwards."""
        row, column = np.divmod(np.arange(self.size), self.columns)
        return np.stack([column + self._stagger(row), row * self.row_height], axis=1)

    def _stagger(self, row):
        return (row % self.parities) / 2

    def displacements(self, parity=0):
        """|x| and |y| from a unit in a row of this parity to one `u` rows and `v` columns away.

        x: (2 rows - 1, 2 columns - 1)  y: (2 rows - 1, 1)      u = -(rows - 1) ... rows - 1
        """
        u = np.arange(1 - self.rows, self.rows)[:, None]
        v = np.arange(1 - self.columns, self.columns)
        x = np.abs(v + self._stagger(parity + u) - parity / 2)
        y = np.abs(u * self.row_height)
        if self.toroidal:
            x = np.minimum(x, np.abs(self.columns - x))
            y = np.minimum(y, np.abs(self.rows * self.row_height - y))
        return x, y

    def distances(self, units=None):
        """Distances on the map from these units (None: from all) to every unit: (..., k)."""
        units = np.arange(self.size) if units is None else to_host(units)
        return self.spread(self.tables(), units)

    def tables(self):
        """The distance to every displacement: (parities, 2 rows - 1, 2 columns - 1)."""
        return np.stack([np.hypot(*self.displacements(p)) for p in range(self.parities)])

    def spread(self, tables, units):
        """Rows of the (k, k) matrix of which `tables` has an entry for each displacement."""
        row, column = units // self.columns, units % self.columns
        windows = self.windows(tables)
        chosen = windows[row % self.parities, self.rows - 1 - row, self.columns - 1 - column]
        return chosen.reshape(*units.shape, self.size)

    def windows(self, tables):
        """Views into `tables`: [parity, rows - 1 - i, columns - 1 - j] is as seen from (i, j)."""
        xp = namespace([tables])
        return xp.lib.stride_tricks.sliding_window_view(tables, self.shape, axis=(1, 2))

    def check_neighbors(self, neighbors):
        """How many neighbours count: 6 on hexagons; 4, or 8 with the diagonals, on squares."""
        if neighbors is None:
            return 6 if self.kind == "hexagonal" else 8
        if neighbors not in ((6,) if self.kind == "hexagonal" else (4, 8)):
            wanted = "6" if self.kind == "hexagonal" else "4 or 8"
            raise ValueError(f"neighbors: got {neighbors}, expected {wanted} on a {self.kind} grid")
        return neighbors

    def adjacent(self, neighbors=None):
        """Which displacements lead to a neighbour: bools, tables as of distances."""
        reach = 1.5 if self.check_neighbors(neighbors) == 8 else 1.1  # diagonals are sqrt(2) away
        distance = self.tables()
        return (distance > 0.5) & (distance < reach)

    def are_neighbors(self, first, second, neighbors=None):
        """For each pair of units whether they are neighbours: (n,) and (n,) -> (n,) bools"""
        adjacent = namespace([first]).asarray(self.adjacent(neighbors))
        down = second // self.columns - first // self.columns
        right = second % self.columns - first % self.columns
        parity = first // self.columns % self.parities
        return adjacent[parity, down + self.rows - 1, right + self.columns - 1]

    def neighbor_pairs(self, neighbors=None):
        """All pairs of neighbours, each in both orders: first, second, (m,) units"""
        parity, down, right = np.nonzero(self.adjacent(neighbors))
        down, right = down - (self.rows - 1), right - (self.columns - 1)
        units = np.arange(self.size)[:, None]  # (k, 1), against all displacements
        row, column = units // self.columns, units % self.columns
        inside = (row % self.parities == parity) & (row + down >= 0) & (row + down < self.rows)
        inside &= (column + right >= 0) & (column + right < self.columns)
        second = units + down * self.columns + right
        return np.broadcast_to(units, second.shape)[inside], second[inside]


# --------------------------------------------------------------------------- neighbourhoods
# h(d, r): the weight of a unit at distance d from the winner, while the radius is r. h(0, r) = 1.


def gaussian(distance, radius):
    """exp(-d^2 / 2r^2)      Ritter & Schulten 1986; Kohonen 1990, eq. 6"""
    xp = namespace([distance])
    return xp.exp(-0.5 * (distance / radius) ** 2)


# h(hypot(x, y)) = h(x) h(y): smoothing goes along the rows of the map, then across them
gaussian.separable = True  # type: ignore[attr-defined]


def cut_gaussian(distance, radius):
    """exp(-d^2 / 2r^2) where d <= r, else 0      SOM Toolbox (Vesanto et al. 2000), "cutgauss" """
    return gaussian(distance, radius) * bubble(distance, radius)


def bubble(distance, radius):
    """1 where d <= r, else 0      Kohonen 1982"""
    return (distance <= radius + 1e-9) * 1.0  # a hexagonal neighbour may be 1 + 1e-16 away


def triangle(distance, radius):
    """max(0, 1 - d/r)"""
    xp = namespace([distance])
    return xp.maximum(0.0, 1 - distance / radius)


def epanechnikov(distance, radius):
    """max(0, 1 - d^2/r^2)      Epanechnikov 1969"""
    xp = namespace([distance])
    return xp.maximum(0.0, 1 - (distance / radius) ** 2)


def mexican_hat(distance, radius):
    """(1 - d^2/r^2) exp(-d^2 / 2r^2): units at a distance are pushed away      Kohonen 1982

    Negative weights have no mean, so that this one trains sample by sample only. What is pushed
    away is pushed the harder the farther it is: it wants a small learning rate and few epochs.
    """
    return (1 - (distance / radius) ** 2) * gaussian(distance, radius)


NEIGHBORHOODS = {
    f.__name__: f for f in (gaussian, cut_gaussian, bubble, triangle, epanechnikov, mexican_hat)
}


# ------------------------------------------------------------------------------------- decay
# d(start, end, t): the value at time t of a training that runs from t = 0 to t = 1.


def linear(start, end, t):
    """start + (end - start) t"""
    return start + (end - start) * t


def exponential(start, end, t):
    """start (end / start)^t      Ritter, Martinetz & Schulten 1992"""
    return start * (end / start) ** t


def inverse(start, end, t):
    """start / (1 + (start / end - 1) t)"""
    return start / (1 + (start / end - 1) * t)


DECAYS = {f.__name__: f for f in (linear, exponential, inverse)}


# --------------------------------------------------------------------------------- smoothing


def smooth(grid, values, neighborhood, radius):
    """H values,  H_ij = h(distance of i and j on the map, radius)      values: (k, m)

    The second of the two products of batch training. A separable h costs k (rows + columns) m
    operations, any other k^2 m, of which rows of units beyond its reach are left out.
    """
    if getattr(neighborhood, "separable", False):
        return _smooth_separably(grid, values, neighborhood, radius)
    xp = namespace([values])
    tables = neighborhood(xp.asarray(grid.tables()), radius).astype(values.dtype)
    reached = to_host((tables != 0).any(axis=2))  # (parities, 2 rows - 1)
    by_row = values.reshape(grid.rows, grid.columns, -1)
    smoothed = []
    for i in range(grid.rows):
        near = np.flatnonzero(reached[i % grid.parities, grid.rows - 1 - i :][: grid.rows])
        near = xp.asarray(near)
        table = tables[i % grid.parities, grid.rows - 1 - i + near]  # (near rows, 2 columns - 1)
        windows = xp.lib.stride_tricks.sliding_window_view(table, grid.columns, axis=1)
        weights = windows[:, ::-1].transpose(1, 0, 2)  # (columns, near rows, columns)
        near_values = by_row[near].reshape(-1, by_row.shape[-1])
        smoothed.append(weights.reshape(grid.columns, -1) @ near_values)
    return xp.concatenate(smoothed)


def _smooth_separably(grid, values, neighborhood, radius):
    """H values where h(hypot(x, y)) = h(x) h(y): along each row of the map, then across rows."""
    xp, dtype = namespace([values]), values.dtype
    rows, columns = grid.shape
    by_row = values.reshape(rows, columns, -1)
    smoothed = xp.empty_like(by_row)
    for parity in range(grid.parities):  # of the rows that receive
        x, y = grid.displacements(parity)
        # h is symmetric: to a receiver from a source is as from it to the source
        to = _toeplitz(rows, y[:, 0])[parity :: grid.parities]  # (receiving rows, rows)
        across = neighborhood(xp.asarray(to), radius).astype(dtype)
        steps = x[rows - 1 - parity :][: grid.parities]  # one line for each parity of the source
        along = np.stack([_toeplitz(columns, step) for step in steps])  # (parities, c, c)
        along = neighborhood(xp.asarray(along), radius).astype(dtype)
        for source in range(grid.parities):
            part = along[source] @ by_row[source :: grid.parities]  # (source rows, c, m)
            term = xp.tensordot(across[:, source :: grid.parities], part, axes=1)
            if source == 0:
                smoothed[parity :: grid.parities] = term
            else:
                smoothed[parity :: grid.parities] += term
    return smoothed.reshape(values.shape)


def _toeplitz(n, entries):
    """The (n, n) matrix whose entry [i, j] is entries[j - i + n - 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(entries, n)
    return windows[::-1]
