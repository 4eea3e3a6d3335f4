"""How good a map is, and what it looks like as arrays.

Everything here is small (units, not rows) or runs in blocks of rows.
"""

import heapq

import numpy as np

from ..backend import namespace, to_host
from .som_training import blocks, distances_to_units


def topographic_error(grid, units, weight, neighbors=None):
    """The share of rows whose two best-matching units are no neighbours.      units: (n, 2)

    Kiviluoto 1996
    """
    wrong = ~grid.are_neighbors(units[:, 0], units[:, 1], neighbors)
    return float((wrong * weight).sum() / weight.sum())


def distortion(X, weight, units, codebook, grid, neighborhood, radius, name, masked):
    """The mean of sum_i h(c(x), i) D(x, w_i); D is |x - w|^2 for the Euclidean distance.

    What the batch rule lowers while the best-matching units stay      Lampinen & Oja 1992
    """
    xp, total = namespace([X]), 0.0
    tables = neighborhood(xp.asarray(grid.tables()), radius)
    for part in blocks(X, grid.size, name):
        distance = distances_to_units(X[part].astype(np.float64), codebook, name, masked=masked)
        if name == "euclidean":
            distance = distance * distance
        h = grid.spread(tables, units[part])
        total += float((weight[part] * (h * distance).sum(axis=1)).sum())
    return total / float(weight.sum())


def kaski_lagus(grid, units, distances, codebook, weight, between, neighbors=None):
    """The mean of |x - w_c| + the shortest way over the map from c to c', the second best unit.

    The way goes from neighbour to neighbour and is as long as their prototypes are apart; so it
    measures both how near the map is and how well it is ordered.
    Kaski & Lagus 1996, eq. 3      units: (n, 2)  distances: (n,), to the first
    """
    units, codebook, weight = to_host(units), to_host(codebook), to_host(weight)
    graph = weighted_neighbors(grid, codebook, between, neighbors)
    pairs, place = np.unique(units, axis=0, return_inverse=True)
    ways = np.empty(len(pairs))
    for start in np.unique(pairs[:, 0]):
        mine = np.flatnonzero(pairs[:, 0] == start)
        found = shortest_ways(graph, int(start), set(pairs[mine, 1].tolist()))
        ways[mine] = [found[int(end)] for end in pairs[mine, 1]]
    each = to_host(distances) + ways[place.reshape(-1)]
    return float((weight * each).sum() / weight.sum())


def weighted_neighbors(grid, codebook, between, neighbors=None):
    """For each unit the pairs (neighbour, distance of the two prototypes)."""
    first, second = grid.neighbor_pairs(neighbors)
    lengths = between(codebook[first] - codebook[second])
    graph = [[] for _ in range(grid.size)]
    for i, j, length in zip(first.tolist(), second.tolist(), lengths.tolist(), strict=True):
        graph[i].append((j, length))
    return graph


def shortest_ways(graph, start, ends):
    """{unit: length of the shortest way}, at least for the `ends`      Dijkstra 1959"""
    found, heap, ends = {}, [(0.0, start)], set(ends)
    while heap and ends:
        length, i = heapq.heappop(heap)
        if i in found:
            continue
        found[i] = length
        ends.discard(i)
        for j, step in graph[i]:
            if j not in found:
                heapq.heappush(heap, (length + step, j))
    return found


def u_matrix(grid, codebook, between, neighbors=None):
    """Each unit's mean distance to its neighbours' prototypes: (rows, columns)

    High values are walls between clusters      Ultsch & Siemon 1990
    """
    xp = namespace([codebook])
    first, second = grid.neighbor_pairs(neighbors)
    first, second = xp.asarray(first), xp.asarray(second)
    lengths = between(codebook[first] - codebook[second]).astype(np.float64)
    count = xp.maximum(xp.bincount(first, minlength=grid.size), 1)
    return (xp.bincount(first, lengths, grid.size) / count).reshape(grid.shape)


def majority(votes):
    """The place of the greatest vote in each row, -1 where there is none: (k, classes) -> (k,)"""
    return namespace([votes]).where(votes.sum(axis=1) > 0, votes.argmax(axis=1), -1)
