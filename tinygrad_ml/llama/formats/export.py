"""Writing GGUF: sizes, weights in float16 or in Q8_0 blocks (the norms in float32), vocabulary."""

import struct
from dataclasses import replace

import numpy as np

from ...io import replacing
from ...quant import quantize_q8_0
from ...quantized import dense_arrays
from .bytes import interleaved
from .gguf import ARRAY, BOOL, NAMES, TEXT, TYPES

_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
_KINDS = {name: number for number, name in TYPES.items()}
_ALIGNMENT = 32


def write_gguf(model, path, format="F16", *, tokenizer=None, chat_template=None):
    """Write a model as "F32", "F16" or "Q8_0"; ValueError for what a LLaMA's GGUF cannot say.

    tokenizer      makes the file a whole model; without one a tokenizer goes beside the file
    chat_template  the Jinja text that turns a conversation into a prompt
    """
    if format not in ("F32", "F16", "Q8_0"):
        raise ValueError(f"format: got {format!r}, expected 'F32', 'F16' or 'Q8_0'")
    config = model.config
    if config.attention_bias or config.mlp_bias:
        raise ValueError("gguf: a LLaMA has no biases there")
    arrays = model.state_dict(copy=False) | dense_arrays(model)
    if config.tie_embeddings:
        arrays.pop("head.weight", None)
    tensors = {}
    for name, array in arrays.items():
        heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
        array = array if heads is None else interleaved(array, heads)
        tensors[_their_name(name)] = (array.shape, *_encoded(array.astype("float32"), format))
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        factors = _llama3_factors(config)
        tensors["rope_freqs.weight"] = (factors.shape, "F32", factors.tobytes())
    metadata = _metadata(config, scaling)
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(f"tokenizer: has {tokenizer.vocab_size} tokens, the model "
                             f"{config.vocab_size}")  # fmt: skip
        metadata |= {f"tokenizer.ggml.{k}": v for k, v in _vocabulary(tokenizer).items()}
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    with replacing(path) as file:
        _write(file, metadata, tensors)


def _vocabulary(tokenizer):
    from ..vocabulary_export import vocabulary  # which knows of all tokenizers, these of formats

    return vocabulary(tokenizer)


def _their_name(name):
    stem, _, last = name.rpartition(".")
    layer = ""
    if stem.startswith("layers."):
        _, number, stem = stem.split(".", 2)
        layer = f"blk.{number}."
    if stem not in _THEIRS:
        raise ValueError(f"gguf: {name} is no weight of a LLaMA; merge the adapter first")
    return f"{layer}{_THEIRS[stem]}.{last}"


def _encoded(array, format):
    """(type, bytes); vectors stay float32, rows that are no whole blocks float16."""
    if array.ndim == 1 or format == "F32":
        return "F32", array.astype("<f4").tobytes()
    if format == "Q8_0" and array.shape[-1] % 32 == 0:
        return "Q8_0", quantize_q8_0(array).tobytes()
    return "F16", array.astype("<f2").tobytes()


def _llama3_factors(config):
    """By what each frequency is divided      (head_dim / 2,) float32"""
    from ..model import rope_frequencies

    plain = rope_frequencies(replace(config, rope_scaling=None))
    return (plain / rope_frequencies(config)).astype("<f4")


def _metadata(config, scaling):
    sizes = {
        "context_length": config.max_length,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rope_theta),
    }
    if scaling.get("rope_type") == "linear":
        sizes |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    found = {"general.architecture": "llama", "general.alignment": _ALIGNMENT}
    found |= {f"llama.{name}": value for name, value in sizes.items()}
    ends = {"bos": config.bos, "eos": next(iter(config.eos), None)}
    return found | {f"tokenizer.ggml.{n}_token_id": i for n, i in ends.items() if i is not None}


def _write(file, metadata, tensors):
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, packed = _value(value)
        file.write(_text(key) + struct.pack("<I", kind) + packed)
    offset = 0
    for name, (shape, kind, raw) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        file.write(_text(name) + axes + struct.pack("<IQ", _KINDS[kind], offset))
        offset += len(raw) + -len(raw) % _ALIGNMENT
    file.write(bytes(-file.tell() % _ALIGNMENT))
    for _, _, raw in tensors.values():
        file.write(raw + bytes(-len(raw) % _ALIGNMENT))


def _value(value):
    """(type, bytes) of a value in the metadata."""
    if isinstance(value, list):
        return ARRAY, struct.pack("<IQ", TEXT, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        number = {"<f4": 6, "<i4": 5}[value.dtype.str]
        return ARRAY, struct.pack("<IQ", number, value.size) + value.tobytes()
    if isinstance(value, str):
        return TEXT, _text(value)
    kind, code = {bool: (BOOL, "<?"), int: (4, "<I"), float: (6, "<f")}[type(value)]
    return kind, struct.pack(code, value)


def _text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()
