"""Model files: what is written is read, one model in every format, and damage is an error."""

import json
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import io as files
from tinygrad_ml.io import FormatError
from tinygrad_ml.llama import Llama, LlamaConfig, formats
from tinygrad_ml.llama.formats import gguf, llama2c, meta
from tinygrad_ml.llama.formats.bytes import half_rotated, interleaved
from tinygrad_ml.llama.formats.export import write_gguf
from tinygrad_ml.quant import Blocks
from tinygrad_ml.quantized import QuantizedEmbedding, QuantizedLinear

DATA = os.environ.get("TINYGRAD_ML_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="TINYGRAD_ML_DATA names no folder of real data")
damage = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small(**changes):
    sizes = {"vocab_size": 20, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
             "n_kv_heads": 2, "max_length": 16, "bos": 1, "eos": (2,)}  # fmt: skip
    model = Llama(LlamaConfig(**sizes | changes), rng=np.random.default_rng(0))
    for p in model.parameters():
        p.assign_(p.data * 8 if p.ndim == 2 else p.data)
    return model


def logits(model):
    with tg.no_grad():
        return model(np.arange(12).reshape(2, 6)).numpy()


# ------------------------------------------------------------------------------- round trips

WRITERS = {
    "model": lambda model, path: model.save_pretrained(path),
    "model.bin": llama2c.write,
    "f32.gguf": lambda model, path: write_gguf(model, path, "F32"),
    "f16.gguf": lambda model, path: write_gguf(model, path, "F16"),
    "q8.gguf": lambda model, path: write_gguf(model, path, "Q8_0"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["model", "model.bin", "f32.gguf"])
def test_what_is_written_is_read(tmp_path, name, tied):
    model = small(tie_embeddings=tied)
    WRITERS[name](model, tmp_path / name)
    again = Llama.from_pretrained(tmp_path / name)
    # equal weights; GGUF keeps eps as a float32
    np.testing.assert_allclose(logits(again), logits(model), rtol=1e-5, atol=1e-6)
    assert (again.config.n_kv_heads, again.config.max_length) == (2, 16)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_gguf_keeps_the_scaling_and_a_head_width_of_its_own(tmp_path, scaling):
    model = small(rope_scaling=scaling, head_dim=16, rope_theta=500000.0)
    write_gguf(model, tmp_path / "x.gguf", "F32")
    assert Llama.from_pretrained(tmp_path / "x.gguf").config.rope_scaling == scaling


def told_by_llama2c(path, count):
    """Greedy ids by llama2.c's own way, in float64: interleaved pairs, one token after another."""
    sizes = np.fromfile(path, "<i4", 7)
    dim, wide, layers, heads, shared, vocab, _ = map(int, sizes)
    k, weights, at = dim // heads, np.fromfile(path, "<f4", offset=28).astype("float64"), 0

    def take(*shape):
        nonlocal at
        at += math.prod(shape)
        return weights[at - math.prod(shape) : at].reshape(shape)

    table, norm1 = take(vocab, dim), take(layers, dim)
    wq, wk, wv = (take(layers, n * k, dim) for n in (heads, shared, shared))
    wo, norm2 = take(layers, dim, dim), take(layers, dim)
    w1, w2, w3 = take(layers, wide, dim), take(layers, dim, wide), take(layers, wide, dim)
    last = take(dim)
    normed = lambda x, w: x / np.sqrt((x * x).mean() + 1e-5) * w

    def turned(x, position):
        pairs = x.reshape(-1, k // 2, 2) @ np.array([1, 1j])  # each pair a complex number
        pairs *= np.exp(1j * position * 10000.0 ** (-np.arange(0, k, 2) / k))
        return np.stack([pairs.real, pairs.imag], -1).reshape(-1, k)

    ids, past = [1], [([], []) for _ in range(layers)]
    for position in range(count):
        x = table[ids[-1]]
        for i, (keys, values) in enumerate(past):
            y = normed(x, norm1[i])
            q = turned(wq[i] @ y, position)
            keys.append(turned(wk[i] @ y, position))
            values.append((wv[i] @ y).reshape(-1, k))
            together = heads // shared
            of_head = [np.array([each[h // together] for each in keys]) for h in range(heads)]
            scores = [key @ q[h] / np.sqrt(k) for h, key in enumerate(of_head)]
            shares = [np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in scores]
            of_head = [np.array([each[h // together] for each in values]) for h in range(heads)]
            x = x + wo[i] @ np.concatenate([p @ v for p, v in zip(shares, of_head, strict=True)])
            y = normed(x, norm2[i])
            gate = w1[i] @ y
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ y))
        ids.append(int(np.argmax(table @ normed(x, last))))
    return ids


@needs_data
def test_stories_are_those_of_llama2c():
    path = Path(DATA) / "stories260K/stories260K.bin"
    found = Llama.from_pretrained(path).generate([[1]], 200, eos=[])
    assert found[0].tolist() == told_by_llama2c(path, 200)


@needs_data
@pytest.mark.parametrize("name", WRITERS)
def test_stories_are_told_the_same_from_every_format(tmp_path, name):
    source = Path(DATA) / "stories260K/stories260K.bin"
    model = Llama.from_pretrained(source)
    expected = model.generate([[1]], 200, eos=[])
    WRITERS[name](model, tmp_path / name)
    again = Llama.from_pretrained(tmp_path / name)
    length = 10 if name == "q8.gguf" else 200  # its 8 bits change a word some time
    found = again.generate([[1]], length, eos=[])
    np.testing.assert_array_equal(found, expected[:, : length + 1])


def test_rows_go_into_halves_and_back():
    rows = np.arange(24).reshape(12, 2)
    assert half_rotated(rows, 2)[:6, 0].tolist() == [0, 4, 8, 2, 6, 10]
    np.testing.assert_array_equal(interleaved(half_rotated(rows, 3), 3), rows)


def llama2c_later(model, path, group=None):
    """Version 1 of llama2.c (2, with a group size): a header of 256 bytes, the norms first."""
    c, arrays = model.config, model.state_dict()
    sizes = [getattr(c, name) for name in llama2c.SIZES[:-1]]
    head = b"24ka" + struct.pack("<i7i?", 2 if group else 1, *sizes, c.max_length, c.tie_embeddings)
    head += struct.pack("<i", group) if group else b""
    matrix = (lambda x: int8(x, group)) if group else (lambda x: x.tobytes())
    norms = ["attention_norm", "feed_forward_norm"]
    names = [f"layers.{i}.{name}.weight" for name in norms for i in range(c.n_layers)]
    out = [head.ljust(256, b"\0"), *(arrays[name].tobytes() for name in [*names, "norm.weight"])]
    out.append(matrix(arrays["embedding.weight"]))
    for name, *_ in llama2c._matrices(c):
        heads = {"attention.wq": c.n_heads, "attention.wk": c.n_kv_heads}.get(name)
        for i in range(c.n_layers):
            rows = arrays[f"layers.{i}.{name}.weight"]
            out.append(matrix(interleaved(rows, heads) if heads else rows))
    out += [] if c.tie_embeddings else [matrix(arrays["head.weight"])]
    path.write_bytes(b"".join(out))


def int8(x, group):
    """Groups of numbers as int8, the largest at 127; then the scales."""
    groups = x.reshape(-1, group)
    scales = np.abs(groups).max(axis=1, keepdims=True).astype("float32") / 127
    return np.rint(groups / scales).astype("int8").tobytes() + scales.tobytes()


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_version_1(tmp_path, tied):
    model = small(tie_embeddings=tied)
    llama2c_later(model, tmp_path / "x.bin")
    np.testing.assert_array_equal(logits(Llama.from_pretrained(tmp_path / "x.bin")), logits(model))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_version_2(tmp_path, tied):
    model = small(tie_embeddings=tied)
    llama2c_later(model, tmp_path / "x.bin", group=8)
    again = Llama.from_pretrained(tmp_path / "x.bin")
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        if p.ndim == 1:
            np.testing.assert_array_equal(p.data, q.data)
            continue
        heads = {"wq": 4, "wk": 2}.get(name.split(".")[-2])  # groups lie as the rows do in the file
        p, q = (interleaved(x.data, heads) if heads else x.data for x in (p, q))
        step = np.abs(p.reshape(-1, 8)).max(axis=1) / 127
        error = np.abs(p - q).reshape(-1, 8).max(axis=1)
        assert (error <= 0.5001 * step).all()  # half a step, and rounding


def test_llama2c_version_2_with_groups_that_do_not_fit(tmp_path):
    llama2c_later(small(), tmp_path / "x.bin", group=8)
    raw = bytearray((tmp_path / "x.bin").read_bytes())
    raw[37:41] = struct.pack("<i", 7)
    (tmp_path / "x.bin").write_bytes(raw)
    with pytest.raises(FormatError, match=r"x.bin.*no multiple of the group size 7"):
        Llama.from_pretrained(tmp_path / "x.bin")


# --------------------------------------------------------------------------- quantised layers


def quantised(tmp_path, **changes):
    write_gguf(small(**changes), tmp_path / "x.gguf", "Q8_0")
    return [Llama.from_pretrained(tmp_path / "x.gguf", quantized=q) for q in ("keep", "dense")]


@pytest.mark.parametrize("tied", [True, False])
def test_kept_blocks_compute_what_dense_ones_do(tmp_path, tied):
    kept, dense = quantised(tmp_path, tie_embeddings=tied)
    assert isinstance(kept.head, QuantizedLinear)
    assert isinstance(kept.embedding, QuantizedEmbedding)
    assert sum(p.size for p in kept.parameters()) == 5 * 32  # the norms
    np.testing.assert_array_equal(logits(kept), logits(dense))


def test_gradients_flow_through_blocks_to_x(tmp_path):
    kept, dense = quantised(tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 3, 32)).astype("float32")
    both = []
    for model in (kept, dense):
        leaf = tg.tensor(x, requires_grad=True)
        model.loss(embeddings=leaf, targets=np.array([[1, 2, 3]])).backward()
        both.append(leaf.grad.numpy())
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-6)  # sums in another order


def test_a_quantised_model_is_saved_dense(tmp_path):
    kept, dense = quantised(tmp_path, tie_embeddings=True)
    kept.save_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(logits(Llama.from_pretrained(tmp_path / "model")), logits(dense))


def test_a_quantised_layer_says_what_it_was_given():
    blocks = Blocks(np.zeros((4, 34), np.uint8), "Q8_0")
    with pytest.raises(ValueError, match=r"x is \(2, 3\), weight \(4, 32\)"):
        QuantizedLinear(blocks)(tg.tensor(np.ones((2, 3))))
    with pytest.raises(IndexError, match="got 0 to 4, expected 0 to 3"):
        QuantizedEmbedding(blocks)(np.array([0, 4]))
    with pytest.raises(TypeError, match="expected quant.Blocks of a matrix"):
        QuantizedLinear(np.zeros((4, 34)))


# ------------------------------------------------------------------------------------ damage


def opened(path):
    """The model's numbers, read to the last one; None for a file that is refused."""
    try:
        config, arrays = formats.read(path)
        model = Llama(config, rng=None)
    except FormatError as error:
        assert path.name in str(error)  # noqa: PT017
        return None
    dense = {n: x.dense() if isinstance(x, Blocks) else x.copy() for n, x in arrays.items()}
    with suppress(ValueError):  # names or shapes that do not fit
        model.load_state_dict(dense)
    return arrays


HOSTILE = [0, 1, 2, 31, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def mutations(draw):
    """A function of bytes: cut it short, or write something hostile somewhere."""
    kind, share = draw(st.sampled_from(["cut", "byte", "number", "number"])), draw(st.floats(0, 1))
    if kind == "cut":
        return lambda raw: raw[: int(share * (len(raw) - 1))]
    new = bytes([draw(st.integers(0, 255))])
    if kind == "number":
        new = struct.pack("<Q", draw(st.sampled_from(HOSTILE)))[: draw(st.sampled_from([4, 8]))]

    def overwritten(raw):
        at = int(share**4 * (len(raw) - len(new)))  # most often in the header
        return raw[:at] + new + raw[at + len(new) :]

    return overwritten


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    llama2c.write(small(n_layers=1), folder / "v0.bin")
    llama2c_later(small(n_layers=1), folder / "v1.bin")
    llama2c_later(small(n_layers=1), folder / "v2.bin", group=4)
    write_gguf(small(n_layers=1), folder / "q8.gguf", "Q8_0")
    write_gguf(small(n_layers=1), folder / "f16.gguf", "F16")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["v0.bin", "v1.bin", "v2.bin", "q8.gguf", "f16.gguf"])
@given(mutate=mutations())
@damage
def test_a_damaged_file_is_read_or_refused(tmp_path, originals, name, mutate):
    path = tmp_path / name
    path.write_bytes(mutate(originals[name]))
    opened(path)


@pytest.mark.parametrize("name", ["v0.bin", "v1.bin", "v2.bin", "q8.gguf", "f16.gguf"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, originals, name):
    raw, path = originals[name], tmp_path / name
    for length in [*range(0, 700, 7), *range(700, len(raw), 997)]:
        path.write_bytes(raw[:length])
        assert opened(path) is None


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, struct.pack("<I", 9), "version 9"),
        (8, struct.pack("<Q", 2**62), "tensors are promised"),
        (16, struct.pack("<Q", 2**62), "metadata are promised"),
        (24, struct.pack("<Q", 2**62), "a key takes"),
    ],
)
def test_gguf_says_where_it_is_wrong(tmp_path, originals, at, value, message):
    raw = originals["f16.gguf"]
    (tmp_path / "x.gguf").write_bytes(raw[:at] + value + raw[at + len(value) :])
    with pytest.raises(FormatError, match=rf"x.gguf: at offset \d+: .*{message}"):
        gguf.read(tmp_path / "x.gguf")


def test_llama2c_with_bytes_left_over_is_refused(tmp_path, originals):
    (tmp_path / "x.bin").write_bytes(originals["v0.bin"] + b"more")
    with pytest.raises(FormatError, match="4 bytes are left over"):
        formats.read(tmp_path / "x.bin")


def test_what_is_wrong_with_the_tensors_is_said_all_at_once(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    arrays = {n: x.copy() for n, x in files.load(tmp_path / "model.safetensors").items()}
    del arrays["model.norm.weight"]
    arrays["lm_head.weight"] = arrays["lm_head.weight"].T.copy()
    arrays["extra"] = np.zeros(3, "float32")
    files.save(tmp_path / "model.safetensors", arrays)
    with pytest.raises(
        ValueError, match=r"(?s)extra.*head.weight.*transposed.*norm.weight.*missing"
    ):
        Llama.from_pretrained(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "x").write_text("a poem, of some length, about nothing")
    with pytest.raises(FormatError, match="not a model"):
        formats.read(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="there is no"):
        formats.read(tmp_path / "y")


# --------------------------------------------------------------------------------- Meta's pth


class Torch:
    """Writes what torch.save would: pickle and storages in a zip that compresses nothing."""

    def __init__(self, arrays):
        self.arrays = arrays

    def table(self):
        rebuild, kind = (
            _global("torch._utils", "_rebuild_tensor_v2"),
            _global("torch", "FloatStorage"),
        )
        out = b"\x80\x02" + _global("collections", "OrderedDict") + b")R("
        for i, (name, x) in enumerate(self.arrays.items()):
            strides = [s // x.itemsize for s in x.strides]
            storage = b"(" + _string("storage") + kind + _string(str(i)) + _string("cpu")
            out += _string(name) + rebuild + b"(" + storage + _int(x.size) + b"tQ" + _int(0)
            out += _tuple(x.shape) + _tuple(strides) + b"\x89"
            out += _global("collections", "OrderedDict") + b")RtR"
        return out + b"u."

    def save(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", self.table())
            for i, x in enumerate(self.arrays.values()):
                archive.writestr(f"x/data/{i}", x.tobytes())


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _string(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _int(n):
    return b"J" + struct.pack("<i", n)


def _tuple(numbers):
    return b"(" + b"".join(map(_int, numbers)) + b"t"


def meta_folder(folder, model):
    c, out = model.config, {}
    theirs = {ours: name for name, (ours, _) in meta.NAMES.items()}
    for name, x in model.state_dict().items():
        prefix, stem = "", name.removesuffix(".weight")
        if stem.startswith("layers."):
            _, i, stem = stem.split(".", 2)
            prefix = f"layers.{i}."
        heads = {"attention.wq": c.n_heads, "attention.wk": c.n_kv_heads}.get(stem)
        out[f"{prefix}{theirs[stem]}.weight"] = interleaved(x, heads) if heads else x
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps")
    params = {name: getattr(c, name) for name in names}
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    Torch(out).save(folder / "consolidated.00.pth")
    return folder


def test_a_folder_of_meta_is_read(tmp_path):
    model = small()
    again = Llama.from_pretrained(meta_folder(tmp_path / "meta", model))
    np.testing.assert_array_equal(logits(again), logits(model))


@given(mutate=mutations(), where=st.sampled_from(["file", "pickle"]))
@damage
def test_a_damaged_pth_is_read_or_refused(tmp_path, where, mutate):
    path = tmp_path / "x.pth"
    torch = Torch({"a": np.ones((3, 4), "f4"), "b": np.arange(5, dtype="f4")})
    if where == "pickle":
        table = torch.table()
        torch.table = lambda: mutate(table)
    torch.save(path)
    if where == "file":
        path.write_bytes(mutate(path.read_bytes()))
    try:
        for x in meta.read_pth(path).values():
            x.copy()  # to its last byte
    except FormatError as error:
        assert "x.pth" in str(error)  # noqa: PT017


@pytest.mark.parametrize("params", ["{", "[]", '{"dim": "x"}', '{"dim": 8, "n_heads": 0}', "null"])
def test_params_that_cannot_be_are_refused(tmp_path, params):
    folder = meta_folder(tmp_path / "meta", small())
    (folder / "params.json").write_text(params)
    with pytest.raises(FormatError, match="meta"):
        formats.read(folder)


def test_a_pickle_can_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(OrderedDict(a=Evil())))
    with pytest.raises(FormatError, match="system is no tensor"):
        meta.read_pth(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()
