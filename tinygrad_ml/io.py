"""Arrays in safetensors files: written whole or not at all, read by mapping them into memory.

    8 bytes   n, the header's length, little-endian
    n bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
              and, optionally, "__metadata__": {text: text}
    the rest  the arrays' bytes, little-endian, in C order; offsets count from here

https://huggingface.co/docs/safetensors: nothing in such a file can run, so one from a stranger
is safe to open. A header is believed only after every number in it was checked.
"""

import json
import math
import os
import re
import secrets
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import backend, dtypes
from .tensor import Tensor

DTYPES = {  # "<": a file is little-endian, whatever this machine is
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": dtypes.bfloat16,
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items() if dtype is not None}
MAX_HEADER = 100_000_000  # bytes; the safetensors package refuses more
# what `replacing` calls a file until it is whole
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class FormatError(ValueError):
    """A file that is not what it claims to be: says which file, which tensor and which offset."""


# ------------------------------------------------------------------------------------ writing


def save(path, arrays, metadata=None):
    """Write {name: array, Tensor or number} and {text: text} to a safetensors file.

    The file appears whole or not at all; one that was there before is replaced at that moment.
    Python floats are written as float64, ints as int64. TypeError or ValueError, before anything
    is written, for a name or a dtype that the format does not have.
    """
    arrays = {_check_text("name", name): _to_write(name, x) for name, x in arrays.items()}
    if "__metadata__" in arrays:
        raise ValueError("name: '__metadata__' is reserved by the format")
    # the widest first: then every array starts at a multiple of its own item size
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header = {}
    if metadata:
        header["__metadata__"] = {
            _check_text("metadata", k): _check_text(f"metadata {k!r}", v)
            for k, v in metadata.items()
        }
    end = 0
    for name in order:
        x = arrays[name]
        start, end = end, end + x.nbytes
        header[name] = {"dtype": NAMES[x.dtype], "shape": x.shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"arrays: their header takes {len(text)} bytes, at most {MAX_HEADER} may")
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view(np.uint8))


@contextmanager
def replacing(path):
    """`with replacing(path) as file:` a binary file that takes path's place when all went well.

    It is written under another name in the same folder, forced to the disk and then renamed: who
    opens `path` finds the old file or the new one, even after a power cut. On an error the old
    one stays and nothing else is left.
    """
    path = Path(os.path.realpath(path))  # of a link, what it points to is replaced
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the renaming itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder):
    """Remove what `replacing` left under a folder in processes that were killed within it."""
    for file in Path(folder).rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink()


def _to_write(name, x):
    """x as a C-ordered little-endian array on the host."""
    x = x.data if isinstance(x, Tensor) else x
    x = backend.to_host(x) if backend.is_array(x) else np.asarray(x)
    if x.dtype == dtypes.bfloat16:
        return np.asarray(x, order="C")
    dtype = x.dtype.newbyteorder("<")
    if dtype not in NAMES:
        known = ", ".join(sorted(d.name for d in NAMES))
        raise TypeError(f"save: {name!r} has dtype {x.dtype}, expected one of {known}")
    return np.asarray(x, dtype=dtype, order="C")


def _check_text(what, text):
    if not isinstance(text, str):
        raise TypeError(f"{what}: got {type(text).__name__}, expected text (str)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what}: {text!r} has no UTF-8 form") from None
    return text


# ------------------------------------------------------------------------------------ reading


def load(path):
    """{name: array} of a safetensors file, read-only, in the order of their places in it.

    The file is mapped into memory: an array's bytes are read when they are first looked at.
    FormatError, before any of that, if the file is not well-formed.
    """
    with Path(path).open("rb") as file:
        header, start = _read_header(path, file)
        layout = _check_layout(path, header, os.fstat(file.fileno()).st_size - start)
        data = np.asarray(np.memmap(file, np.uint8, "r"))[start:]
    return {name: _view(path, name, data, *entry) for name, *entry in layout}


def load_metadata(path):
    """{text: text} that was saved beside the arrays, without reading them."""
    with Path(path).open("rb") as file:
        header, _ = _read_header(path, file)
    return header.get("__metadata__", {})


def _read_header(path, file):
    """(the header as a dict, where the data start)."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise FormatError(f"{path}: {size} bytes, too short for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER):
        raise FormatError(
            f"{path}: offset 0: the header is said to take {length} bytes, of {size - 8} that "
            f"follow (and at most {MAX_HEADER}); is it a safetensors file?"
        )
    text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # a JSON or UTF-8 error is a ValueError
        raise FormatError(f"{path}: offset 8: the header is no valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: offset 8: the header is {type(header).__name__}, not a dict")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(x) is not str for x in metadata.values()):
        raise FormatError(f"{path}: offset 8: __metadata__ is not a dict of texts")
    return header, 8 + length


def _without_duplicates(pairs):
    found = {}
    for name, x in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} comes twice")
        found[name] = x
    return found


def _check_layout(path, header, size):
    """[(name, dtype, shape, begin, end)] by place; together they fill the data, once and wholly."""
    layout = [
        (name, *_check_entry(path, name, entry, size))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    layout.sort(key=lambda entry: entry[-2:])
    reached = 0
    for name, *_, begin, end in layout:
        if begin != reached:
            what = "overlaps what comes before it" if begin < reached else "leaves a hole before it"
            raise FormatError(f"{path}: {name!r} at offset {begin} {what}, which ends at {reached}")
        reached = end
    if reached != size:
        raise FormatError(f"{path}: the last tensor ends at offset {reached}, the data at {size}")
    return layout


def _check_entry(path, name, entry, size):
    """(dtype, shape, begin, end) of one tensor, each of them possible in itself."""
    where = f"{path}: {name!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: {str(entry)[:80]} has not just dtype, shape, data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise FormatError(f"{where}: dtype {str(kind)[:80]!r}, expected one of {', '.join(DTYPES)}")
    dtype = dtypes.as_dtype("bfloat16") if kind == "BF16" else DTYPES[kind]
    if not _are_counts(shape) or len(shape) > 32:
        raise FormatError(f"{where}: shape {str(shape)[:80]} is no list of counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets {str(offsets)[:80]} are not two counts")
    begin, end = offsets
    if not begin <= end <= size:
        raise FormatError(f"{where}: offsets {begin} to {end} do not lie in {size} bytes of data")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise FormatError(
            f"{where} at offset {begin}: {end - begin} bytes, but {kind} of shape {tuple(shape)} "
            f"takes {math.prod(shape) * dtype.itemsize}"
        )
    return dtype, tuple(shape), begin, end


def _are_counts(numbers):
    """Whether this is a list of whole numbers from 0 on that numpy can count to."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _view(path, name, data, dtype, shape, begin, end):
    """One array in the mapped bytes; a copy where they are not aligned for its dtype."""
    raw = data[begin:end]
    if dtype == np.bool and raw.size and raw.max() > 1:
        at = begin + int((raw > 1).argmax())
        raise FormatError(f"{path}: {name!r} at offset {at}: byte {data[at]} is neither 0 nor 1")
    try:
        array = raw.view(dtype).reshape(shape)
    except ValueError as error:  # no entries, but too many of them along the other axes
        raise FormatError(f"{path}: {name!r} at offset {begin}: {error}") from None
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array
