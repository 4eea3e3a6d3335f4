"""Reading a binary file of which nothing is believed: every count and offset against its size."""

import math
import struct
from pathlib import Path

import numpy as np

from ...io import FormatError


class Bytes:
    """A file mapped into memory, and a place in it; all numbers are little-endian."""

    def __init__(self, path):
        self.path, self.at = Path(path), 0
        size = self.path.stat().st_size
        self.data = np.memmap(self.path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        self.size = size

    def take(self, count, what):
        """The next `count` bytes; FormatError naming the place if they are not all there."""
        if not 0 <= count <= self.size - self.at:
            self.fail(f"{what} takes {count} bytes, {self.size - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code, what):
        """The next number, by its struct code ("I" uint32, "f" float32, ...)."""
        return self.numbers("<" + code, what)[0]

    def numbers(self, layout, what):
        """The next numbers, by a struct layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what).tobytes())

    def array(self, dtype, shape, what):
        """The next numbers as a read-only array in the file's own memory."""
        dtype = np.dtype(dtype)
        raw = self.take(math.prod(shape) * dtype.itemsize, f"{what} {tuple(shape)} {dtype}")
        return aligned(raw, dtype).reshape(shape)

    def fail(self, message):
        raise FormatError(f"{self.path}: at offset {self.at}: {message}")


def aligned(raw, dtype):
    """Bytes as numbers: a view, or a copy where the place in the file does not suit the dtype."""
    array = np.asarray(raw).view(dtype)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


def half_rotated(rows, heads):
    """Rows of q or k from interleaved pairs (2i, 2i + 1) to Hugging Face's order (i, i + k/2).

    rows: (heads k, ...), also of quantised blocks, which lie within a row.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def interleaved(rows, heads):
    """The other way: from Hugging Face's order to interleaved pairs."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
