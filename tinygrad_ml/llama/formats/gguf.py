"""GGUF, the files of llama.cpp: metadata, tokenizer and weights in one, often in quantised blocks.

    "GGUF", uint32 version, uint64 number of tensors, uint64 number of metadata
    metadata:  key, uint32 type, value;  a text is uint64 length and UTF-8 bytes
    tensors:   name, uint32 number of axes, uint64 sizes (the last axis first), uint32 type,
               uint64 offset
    padding to `general.alignment`, from where the offsets count; then the weights

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, length and offset is
checked here, against the size of the file, before it is used. Pairs of q and k are interleaved
in a LLaMA's file; their rows, quantised ones too, are put into half-rotated order.
"""

import math

import numpy as np

from ... import dtypes
from ...io import FormatError
from ...quant import FORMATS, Blocks
from ..config import LlamaConfig
from .bytes import Bytes, aligned, half_rotated

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
BOOL, TEXT, ARRAY = 7, 8, 9
TYPES = {0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
         12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}  # fmt: skip
DENSE = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": dtypes.bfloat16}
NAMES = {
    "token_embd": "embedding", "output_norm": "norm", "output": "head",
    "attn_norm": "attention_norm", "ffn_norm": "feed_forward_norm",
    "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
    "attn_output": "attention.wo", "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up", "ffn_down": "feed_forward.down",
}  # fmt: skip


def recognises(path):
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def read(path):
    """(LlamaConfig, {our name: array or Blocks}), mapped into memory."""
    metadata, tensors = read_file(path)
    config = _config(path, metadata, tensors)
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    arrays = {}
    for name, found in tensors.items():
        stem, _, last = name.rpartition(".")
        kind = stem.split(".")[-1]
        if stem == "rope_freqs":  # the llama3 scaling, as factors
            continue
        if kind in heads:
            found = _permuted(path, name, found, heads[kind])
        arrays[_our_name(stem, kind, last)] = found
    return config, arrays


def _our_name(stem, kind, last):
    ours = NAMES.get(kind, stem)
    if stem.startswith("blk."):
        ours = f"layers.{stem.split('.')[1]}.{ours}"
    return f"{ours}.{last}"


def _permuted(path, name, found, heads):
    rows = found.data if isinstance(found, Blocks) else found
    if rows.shape[0] % (2 * heads):
        raise FormatError(f"{path}: {name!r} has {rows.shape[0]} rows for {heads} heads")
    rows = half_rotated(rows, heads)
    return Blocks(rows, found.format) if isinstance(found, Blocks) else rows


# ---------------------------------------------------------------------------------- the file


def read_file(path):
    """({key: value}, {name: array or Blocks}) of any GGUF file whose types are known."""
    file = Bytes(path)
    if file.take(4, "the magic word").tobytes() != b"GGUF":
        raise FormatError(f"{path}: at offset 0: not a GGUF file")
    version = file.number("I", "the version")
    if version not in (2, 3):
        file.fail(f"GGUF version {version}, expected 2 or 3 (little-endian)")
    tensors, count = file.numbers("<2Q", "the counts")
    _check_count(file, tensors, 24, "tensors")
    _check_count(file, count, 13, "metadata")
    metadata = {}
    for _ in range(count):
        key = _text(file, "a key")
        if key in metadata:
            file.fail(f"the key {key!r} comes twice")
        metadata[key] = _value(file, file.number("I", f"the type of {key!r}"), key)
    infos = [_tensor_info(file) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        file.fail(f"general.alignment is {alignment!r}, expected a multiple of 8")
    start = -(-file.at // alignment) * alignment
    found = {}
    for name, shape, kind, offset in infos:
        if name in found:
            file.fail(f"the tensor {name!r} comes twice")
        if offset % alignment:
            file.fail(f"{name!r}: offset {offset} is no multiple of {alignment}")
        file.at = start + offset
        found[name] = _tensor(file, name, shape, kind)
    return metadata, found


def _check_count(file, count, least, what):
    if count * least > file.size - file.at:
        file.fail(f"{count} {what} are promised, {file.size - file.at} bytes are left")


def _text(file, what):
    length = file.number("Q", f"the length of {what}")
    raw = file.take(length, what).tobytes()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        file.fail(f"{what} is no UTF-8: {raw[:40]!r}")


def _value(file, kind, key, depth=0):
    what = f"the value of {key!r}"
    if kind == TEXT:
        return _text(file, what)
    if kind == ARRAY:
        item, count = file.numbers("<IQ", what)
        if depth > 3:
            file.fail(f"{what}: arrays within arrays within arrays")
        if item in NUMBERS:
            numbers = file.array("<" + NUMBERS[item], (count,), what)
            return numbers.astype(bool) if item == BOOL else numbers
        _check_count(file, count, 8, f"entries of {key!r}")
        return [_value(file, item, key, depth + 1) for _ in range(count)]
    if kind not in NUMBERS:
        file.fail(f"{what} is of type {kind}, which GGUF does not have")
    number = file.number(NUMBERS[kind], what)
    return bool(number) if kind == BOOL else number


def _tensor_info(file):
    """(name, shape, type, offset)"""
    name = _text(file, "a tensor's name")
    axes = file.number("I", f"the axes of {name!r}")
    if not 1 <= axes <= 4:
        file.fail(f"{name!r} has {axes} axes, expected 1 to 4")
    shape = file.numbers(f"<{axes}Q", f"the shape of {name!r}")[::-1]
    kind, offset = file.numbers("<IQ", f"the type and offset of {name!r}")
    if kind not in TYPES:
        file.fail(f"{name!r} is of type {kind}, expected one of {', '.join(TYPES.values())}")
    if offset > file.size:
        file.fail(f"{name!r}: offset {offset} lies beyond the file's {file.size} bytes")
    return name, shape, TYPES[kind], offset


def _tensor(file, name, shape, kind):
    if kind in DENSE:
        dtype = DENSE[kind] or dtypes.as_dtype("bfloat16")
        raw = file.take(math.prod(shape) * dtype.itemsize, f"{name!r} {shape} {kind}")
        return aligned(raw, dtype).reshape(shape)
    form = FORMATS[kind]
    if shape[-1] % form.length:
        file.fail(f"{name!r}: rows of {shape[-1]} numbers are no whole blocks of {form.length}")
    row = shape[-1] // form.length * form.size
    raw = file.take(math.prod(shape[:-1]) * row, f"{name!r} {shape} {kind}")
    return Blocks(np.asarray(raw).reshape(*shape[:-1], row), kind)


# -------------------------------------------------------------------------------- the config


def _config(path, metadata, tensors):
    family = metadata.get("general.architecture")
    if family != "llama":
        raise FormatError(f"{path}: general.architecture is {family!r}, expected 'llama'")
    get = lambda name, default=None: metadata.get(f"llama.{name}", default)
    scaling = None
    if get("rope.scaling.type") == "linear":
        scaling = {"rope_type": "linear", "factor": float(get("rope.scaling.factor", 1.0))}
    elif "rope_freqs.weight" in tensors:
        scaling = _llama3_scaling(path, metadata, tensors["rope_freqs.weight"])
    needed = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length")
    missing = [f"llama.{name}" for name in needed if not isinstance(get(name), int)]
    if missing or "token_embd.weight" not in tensors:
        raise FormatError(f"{path}: lacks {', '.join(missing) or 'token_embd.weight'}")
    embedding = tensors["token_embd.weight"]
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    try:
        return LlamaConfig(
            vocab_size=embedding.shape[0],
            dim=get("embedding_length"),
            n_layers=get("block_count"),
            n_heads=get("attention.head_count"),
            hidden_dim=get("feed_forward_length"),
            n_kv_heads=get("attention.head_count_kv"),
            head_dim=get("attention.key_length"),
            max_length=get("context_length", 2048),
            norm_eps=float(get("attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=float(get("rope.freq_base", 10000.0)),
            rope_scaling=scaling,
            tie_embeddings="output.weight" not in tensors,
            bos=metadata.get("tokenizer.ggml.bos_token_id"),
            eos=() if eos is None else (eos,),
        )
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error


def _llama3_scaling(path, metadata, factors):
    """The factors of Llama 3.1 say which of its two known scalings they came from."""
    greatest = float(np.max(factors))
    if greatest <= 1 or factors.ndim != 1:
        raise FormatError(f"{path}: rope_freqs.weight is no llama3 scaling")
    return {"rope_type": "llama3", "factor": greatest, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
