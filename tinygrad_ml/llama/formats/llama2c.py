"""Files of llama2.c: seven numbers and the weights of all layers, one kind after the other.

    v0        int32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
              (vocab_size < 0: a head of its own follows at the end), then float32
    v1, v2    "ak42", int32 version, the same seven numbers, a byte: is the head shared?;
              for v2 int32 group size; zeros up to 256 bytes; then float32 (v1), or int8 in
              groups with a float32 scale each (v2; the norms stay float32)

RoPE pairs are interleaved in the file; rows of q and k are put into half-rotated order.
https://github.com/karpathy/llama2.c: export.py, run.c
"""

import struct
from dataclasses import replace

import numpy as np

from ...io import replacing
from ...quantized import dense_arrays
from ..config import LlamaConfig
from .bytes import Bytes, half_rotated, interleaved

MAGIC = b"24ka"  # 0x616b3432, little-endian
SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def recognises(path):
    """By content: the magic word of v1 and v2, or seven plausible sizes."""
    if not path.is_file() or path.stat().st_size < 28:
        return False
    with open(path, "rb") as file:
        head = file.read(28)
    if head[:4] == MAGIC:
        return True
    sizes = struct.unpack("<7i", head)
    return all(0 < abs(n) < 2**24 for n in sizes) and all(n > 0 for n in sizes[:5])


def read(path):
    """(LlamaConfig, {our name: float32 array}); v0 and v1 are mapped into memory."""
    file = Bytes(path)
    if bytes(file.data[:4]) != MAGIC:
        config, tied = _config(file, file.numbers("<7i", "the header"))
        return config, _read_v0(file, config, tied)
    file.take(4, "the magic word")
    version = file.number("i", "the version")
    if version not in (1, 2):
        file.fail(f"version {version}, expected 1 or 2")
    sizes, shared = file.numbers("<7i", "the header"), file.number("B", "the head's flag")
    config, _ = _config(file, sizes)
    group = file.number("i", "the group size") if version == 2 else None
    file.take(256 - file.at, "the rest of the header")
    config = replace(config, tie_embeddings=bool(shared))
    if version == 1:
        return config, _read_v1(file, config)
    if group < 1:
        file.fail(f"a group size of {group}")
    return config, _read_v2(file, config, group)


def _config(file, numbers):
    sizes = dict(zip(SIZES, numbers, strict=True))
    tied = sizes["vocab_size"] > 0
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    try:
        config = LlamaConfig(max_length=sizes.pop("seq_len"), tie_embeddings=tied, bos=1,
                             eos=(2,), norm_eps=1e-5, **sizes)  # fmt: skip
    except ValueError as error:
        file.fail(f"the header says {error}")
    return config, tied


def _matrices(config):
    """(our name, rows, columns) of a layer's matrices, in the file's order."""
    c, wide, narrow = config, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return [
        ("attention.wq", wide, c.dim), ("attention.wk", narrow, c.dim),
        ("attention.wv", narrow, c.dim), ("attention.wo", c.dim, wide),
        ("feed_forward.gate", c.hidden_dim, c.dim), ("feed_forward.down", c.dim, c.hidden_dim),
        ("feed_forward.up", c.hidden_dim, c.dim),
    ]  # fmt: skip


def _layers(arrays, config, name, stack):
    """The slices of a (layers, ...) stack under the names of their layers."""
    heads = {"attention.wq": config.n_heads, "attention.wk": config.n_kv_heads}.get(name)
    for i, rows in enumerate(stack):
        arrays[f"layers.{i}.{name}.weight"] = rows if heads is None else half_rotated(rows, heads)


def _read_v0(file, config, tied):
    c, n, arrays = config, config.n_layers, {}
    take = lambda what, *shape: file.array("<f4", shape, what)
    arrays["embedding.weight"] = take("the embedding", c.vocab_size, c.dim)
    _layers(arrays, c, "attention_norm", take("attention_norm", n, c.dim))
    matrices = _matrices(c)
    for name, rows, columns in matrices[:4]:
        _layers(arrays, c, name, take(name, n, rows, columns))
    _layers(arrays, c, "feed_forward_norm", take("feed_forward_norm", n, c.dim))
    for name, rows, columns in matrices[4:]:
        _layers(arrays, c, name, take(name, n, rows, columns))
    arrays["norm.weight"] = take("norm", c.dim)
    take("the RoPE tables", 2, c.max_length, c.head_dim // 2)  # follow from the config
    if not tied:
        arrays["head.weight"] = take("the head", c.vocab_size, c.dim)
    _at_end(file)
    return arrays


def _norms(file, config, arrays):
    """v1 and v2 begin with all the norms."""
    for name in ("attention_norm", "feed_forward_norm"):
        _layers(arrays, config, name, file.array("<f4", (config.n_layers, config.dim), name))
    arrays["norm.weight"] = file.array("<f4", (config.dim,), "norm")


def _read_v1(file, config):
    c, arrays = config, {}
    _norms(file, c, arrays)
    arrays["embedding.weight"] = file.array("<f4", (c.vocab_size, c.dim), "the embedding")
    for name, rows, columns in _matrices(c):
        _layers(arrays, c, name, file.array("<f4", (c.n_layers, rows, columns), name))
    if not c.tie_embeddings:
        arrays["head.weight"] = file.array("<f4", (c.vocab_size, c.dim), "the head")
    _at_end(file)
    return arrays


def _read_v2(file, config, group):
    c, arrays = config, {}
    _norms(file, c, arrays)
    arrays["embedding.weight"] = _int8(file, (c.vocab_size, c.dim), group, "the embedding")
    for name, rows, columns in _matrices(c):
        stack = [_int8(file, (rows, columns), group, name) for _ in range(c.n_layers)]
        _layers(arrays, c, name, stack)
    if not c.tie_embeddings:
        arrays["head.weight"] = _int8(file, (c.vocab_size, c.dim), group, "the head")
    _at_end(file)
    return arrays


def _int8(file, shape, group, what):
    """q s, with a scale s for each group of q."""
    count = shape[0] * shape[1]
    if count % group:
        file.fail(f"{what} has {count} numbers, no multiple of the group size {group}")
    q = file.array("i1", (count // group, group), what)
    scales = file.array("<f4", (count // group, 1), f"the scales of {what}")
    if not np.isfinite(scales).all():
        file.fail(f"a scale of {what} is not finite")
    with np.errstate(over="ignore"):  # a scale near the largest float
        return (q * scales).reshape(shape)


def _at_end(file):
    if file.at != file.size:
        file.fail(f"{file.size - file.at} bytes are left over; is it a llama2.c file?")


# ----------------------------------------------------------------------------------- writing


def write(model, path):
    """Export to v0. ValueError for what the format cannot say."""
    c, arrays = model.config, model.state_dict(copy=False) | dense_arrays(model)
    if c.head_dim * c.n_heads != c.dim or c.rope_scaling or c.attention_bias or c.mlp_bias:
        raise ValueError("llama2.c: has no head_dim of its own, no rope_scaling and no biases")
    if c.rope_theta != 10000.0 or c.norm_eps != 1e-5:
        raise ValueError("llama2.c: rope_theta is 10000 and norm_eps 1e-5 there, "
                         f"here {c.rope_theta} and {c.norm_eps}")  # fmt: skip
    vocab = c.vocab_size if c.tie_embeddings else -c.vocab_size
    layers = lambda name: [arrays[f"layers.{i}.{name}.weight"] for i in range(c.n_layers)]
    matrices = [name for name, _, _ in _matrices(c)]
    angles = np.outer(np.arange(c.max_length),
                      c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim))  # fmt: skip
    with replacing(path) as file:
        file.write(struct.pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                               vocab, c.max_length))  # fmt: skip
        put = lambda array: file.write(np.ascontiguousarray(array, "<f4").tobytes())
        put(arrays["embedding.weight"])
        for name in ("attention_norm", *matrices[:4], "feed_forward_norm", *matrices[4:]):
            heads = {"attention.wq": c.n_heads, "attention.wk": c.n_kv_heads}.get(name)
            for rows in layers(name):
                put(rows if heads is None else interleaved(rows, heads))
        for array in (arrays["norm.weight"], np.cos(angles), np.sin(angles)):
            put(array)
        if not c.tie_embeddings:
            put(arrays["head.weight"])
