"""Meta's own folders: params.json and consolidated.00.pth, .01.pth, ...

A .pth is a zip file of PyTorch: a pickle that describes tensors, and their bytes beside it. The
pickle is read by an unpickler that knows tensors and nothing else: what it does not know is an
error, so nothing in the file can run. A model in several files was cut for tensor parallelism;
the cuts are joined. Pairs of q and k are interleaved, and put into half-rotated order here.
https://github.com/meta-llama/llama: model.py; https://github.com/meta-llama/llama-models
"""

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ... import dtypes
from ...io import FormatError
from ..config import LlamaConfig
from .bytes import aligned, half_rotated

STORAGES = {
    "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": dtypes.bfloat16, "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
}  # fmt: skip
# Meta's name: (ours, the axis along which it was cut; None: every file has the whole)
NAMES = {
    "attention.wq": ("attention.wq", 0), "attention.wk": ("attention.wk", 0),
    "attention.wv": ("attention.wv", 0), "attention.wo": ("attention.wo", 1),
    "feed_forward.w1": ("feed_forward.gate", 0), "feed_forward.w2": ("feed_forward.down", 1),
    "feed_forward.w3": ("feed_forward.up", 0), "attention_norm": ("attention_norm", None),
    "ffn_norm": ("feed_forward_norm", None), "norm": ("norm", None), "output": ("head", 0),
    "tok_embeddings": ("embedding", 1),
}  # fmt: skip
MAX_PICKLE = 64 << 20


def recognises(path):
    return path.is_dir() and (path / "params.json").is_file()


def read(folder):
    """(LlamaConfig, {our name: array})."""
    try:
        params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
        dim, n_heads = int(params["dim"]), int(params["n_heads"])
        n_kv_heads = int(params.get("n_kv_heads") or n_heads)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"{folder / 'params.json'}: no sizes of a LLaMA: {error!r}") from None
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise FormatError(f"{folder}: has params.json, but no consolidated.00.pth")
    shards = [read_pth(file) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())
            raise FormatError(f"{file}: does not hold the tensors of {files[0].name}: {odd[:5]}")
    arrays = {}
    for name in shards[0]:
        if name == "rope.freqs" or name.endswith("inner_attention.rope.freqs"):
            continue
        ours, array = _joined(files[0], name, [shard[name] for shard in shards], dim)
        heads = {"wq": n_heads, "wk": n_kv_heads}.get(ours.split(".")[-2])
        if heads is not None and (heads < 1 or array.shape[:1] == () or len(array) % (2 * heads)):
            raise FormatError(f"{files[0]}: {name!r} is {array.shape}, for {heads} heads")
        arrays[ours] = array if heads is None else half_rotated(array, heads)
    return _config(folder, params, arrays, n_heads, n_kv_heads), arrays


def _joined(file, name, parts, dim):
    stem, _, last = name.rpartition(".")
    prefix = ""
    if stem.startswith("layers."):
        _, number, stem = stem.split(".", 2)
        prefix = f"layers.{number}."
    if stem not in NAMES:
        raise FormatError(f"{file}: {name!r} is no tensor of a LLaMA")
    ours, axis = NAMES[stem]
    if stem == "tok_embeddings" and parts[0].shape[1:] == (dim,):
        axis = 0  # since Llama 3 the embedding is cut by tokens
    try:
        joined = parts[0] if axis is None or len(parts) == 1 else np.concatenate(parts, axis)
    except ValueError as error:
        raise FormatError(f"{file}: {name!r}: the files' parts do not fit: {error}") from None
    return f"{prefix}{ours}.{last}", joined


def _config(folder, params, arrays, n_heads, n_kv_heads):
    try:
        layer = arrays["layers.0.feed_forward.gate.weight"]
        scaled = params.get("use_scaled_rope", False)
        scaling = {"rope_type": "llama3", "factor": float(params.get("rope_scaling_factor", 8)),
                   "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}  # fmt: skip
        return LlamaConfig(
            vocab_size=arrays["embedding.weight"].shape[0],
            dim=params["dim"],
            n_layers=params["n_layers"],
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            hidden_dim=layer.shape[0],
            norm_eps=float(params.get("norm_eps", 1e-5)),
            rope_theta=float(params.get("rope_theta", 10000.0)),
            rope_scaling=scaling if scaled else None,
            max_length=int(params.get("max_seq_len", 131072 if scaled else 4096)),
            tie_embeddings="head.weight" not in arrays,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: {error}") from error


# ----------------------------------------------------------------------------------- a .pth


def read_pth(path):
    """{name: array} of a PyTorch zip checkpoint that holds tensors only, mapped into memory."""
    path = Path(path)
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        with zipfile.ZipFile(path) as archive:
            places = {i.filename: _place(path, data, i) for i in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: no PyTorch zip file: {error}") from None
    pickles = [name for name in places if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"{path}: holds {len(pickles)} data.pkl, expected one")
    begin, size = places[pickles[0]]
    if size > MAX_PICKLE:
        raise FormatError(f"{path}: at offset {begin}: a pickle of {size} bytes")
    found = _unpickled(path, data[begin : begin + size].tobytes())
    if not isinstance(found, dict) or not all(isinstance(x, _Tensor) for x in found.values()):
        raise FormatError(f"{path}: does not hold a table of tensors")
    folder = pickles[0].removesuffix("data.pkl")
    return {str(n): _array(path, data, places, folder, n, x) for n, x in found.items()}


def _place(path, data, info):
    """(where an entry's bytes begin, how many); they are stored, not compressed."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise FormatError(f"{path}: {info.filename!r} is compressed or encrypted")
    head = data[info.header_offset : info.header_offset + 30]
    if len(head) < 30 or head[:4].tobytes() != b"PK\x03\x04":
        raise FormatError(f"{path}: at offset {info.header_offset}: no entry of a zip file")
    names, extra = (int(n) for n in head[26:30].view("<u2"))
    begin = info.header_offset + 30 + names + extra
    if begin + info.file_size > len(data):
        raise FormatError(f"{path}: {info.filename!r} at offset {begin} runs past the end")
    return begin, info.file_size


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def _rebuild(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts and tensors; anything else that a pickle names is refused."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, entry):
        kind, storage, key, *_ = entry
        if kind != "storage" or storage not in STORAGES:
            raise pickle.UnpicklingError(f"{entry!r:.60} is no storage of a tensor")
        return _Storage(STORAGES[storage] or dtypes.as_dtype("bfloat16"), str(key))


def _unpickled(path, text):
    try:
        return _Unpickler(BytesIO(text)).load()
    except Exception as error:  # a broken pickle can raise almost anything
        raise FormatError(
            f"{path}: data.pkl holds more than tensors, or is broken: {error}"
        ) from None


def _array(path, data, places, folder, name, tensor):
    """A tensor's array: a view of the file where it lies contiguously."""
    storage, offset, shape, strides = tensor
    entry = f"{folder}data/{storage.key}" if isinstance(storage, _Storage) else None
    whole = (offset, *shape, *strides)
    if (
        entry not in places
        or len(shape) != len(strides)
        or not all(type(n) is int and 0 <= n < 2**48 for n in whole)
    ):
        raise FormatError(f"{path}: {name!r} has no storage, or an impossible shape {shape}")
    begin, size = places[entry]
    itemsize, count = storage.dtype.itemsize, math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else 0
    if count and (last + 1) * itemsize > size:
        raise FormatError(f"{path}: {name!r} {shape} at offset {begin} runs past its storage")
    numbers = aligned(data[begin : begin + size // itemsize * itemsize], storage.dtype)
    steps = tuple(s * itemsize for s in strides)
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
    return np.ascontiguousarray(view) if not view.flags.c_contiguous else view
