"""Vocabularies: each kind is told by its content, comes back from its ids, and refuses damage."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygrad_ml.io import FormatError
from tinygrad_ml.llama import StreamDecoder, load_tokenizer
from tinygrad_ml.llama.vocabularies import CONTROL, NORMAL, UNKNOWN

DATA = os.environ.get("TINYGRAD_ML_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="TINYGRAD_ML_DATA names no folder of real data")
pytest.importorskip("sentencepiece")
pytest.importorskip("tiktoken")
pytest.importorskip("tokenizers")

FILES = [
    "llama2-tokenizer/tokenizer.model",
    "llama2-tokenizer/tokenizer.bin",
    "stories260K/stories260K.bin",  # finds tok512.bin beside it
    "llama3-tokenizer",
]
HARD = "  Hello  world 2024 \n\n\tnaïve 😀 日本語 </s><|eot_id|> \x00 "


def text_of(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_file(path, **entries):
    """A GGUF file without tensors: texts, numbers, and lists of them."""
    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    kinds = {str: 8, int: 4, float: 6}
    codes = {int: "<I", float: "<f"}
    pack = lambda x: text_of(x) if isinstance(x, str) else struct.pack(codes[type(x)], x)
    for key, value in entries.items():
        out += text_of(f"tokenizer.ggml.{key}")
        if isinstance(value, list):
            out += struct.pack("<IIQ", 9, kinds[type(value[0])], len(value))
            out += b"".join(map(pack, value))
        else:
            out += struct.pack("<I", kinds[type(value)]) + pack(value)
    path.write_bytes(out + bytes(-len(out) % 32))
    return path


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_a_text_comes_back_from_its_ids(name):
    tokenizer = load_tokenizer(Path(DATA) / name)
    assert tokenizer.decode(tokenizer.encode(HARD)) == HARD


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_streaming_never_gives_half_a_character(name):
    tokenizer = load_tokenizer(Path(DATA) / name)
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer.encode(HARD)]
    assert all("�" not in piece for piece in pieces)
    text = "".join(pieces) + decoder.finish()
    assert text.lstrip() == HARD.lstrip()  # sentencepiece puts a space before a text


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_special_tokens_in_a_text_stay_text(name):
    tokenizer = load_tokenizer(Path(DATA) / name)
    ids = tokenizer.encode("".join(tokenizer.specials))
    assert tokenizer.specials
    assert not set(ids) & set(tokenizer.specials.values())


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_saved_and_loaded_it_gives_the_same_ids(tmp_path, name):
    tokenizer = load_tokenizer(Path(DATA) / name)
    tokenizer.save(tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path).encode(HARD) == tokenizer.encode(HARD)


@needs_data
def test_llama_3_has_256_special_tokens_after_its_ranks():
    tokenizer = load_tokenizer(Path(DATA) / "llama3-tokenizer")
    assert tokenizer.vocab_size == 128256
    assert tokenizer.specials["<|eot_id|>"] == 128009
    assert tokenizer.specials["<|reserved_special_token_247|>"] == 128255
    assert tokenizer.eos == (128001, 128008, 128009)


def test_pieces_in_a_gguf_file(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "ab"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * 4]
    path = gguf_file(
        tmp_path / "x.gguf", model="llama", tokens=tokens, token_type=kinds,
        scores=[0.0] * 259 + [-1.0, -2.0, -3.0, -4.0], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("ab é") == [259, 262, 259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (1, (2,), 263)


def merges_file(path, pre, **changes):
    letters = ["<|end|>", *"abc123", "Ġ", "12", "ab"]
    entries = {"model": "gpt2", "pre": pre, "tokens": letters, "token_type": [3] + [1] * 9,
               "merges": ["1 2", "a b"], "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    return gguf_file(path, **entries | changes)


@pytest.mark.parametrize(("pre", "ids"), [("smollm", [4, 5, 6, 7, 9]), ("gpt-2", [8, 6, 7, 9])])
def test_merges_in_a_gguf_file_are_cut_as_it_says(tmp_path, pre, ids):
    tokenizer = load_tokenizer(merges_file(tmp_path / "x.gguf", pre))
    assert tokenizer.encode("123 ab") == ids  # smollm: every digit by itself
    assert tokenizer.decode(ids) == "123 ab"
    assert (tokenizer.specials, tokenizer.bos, tokenizer.eos) == ({"<|end|>": 0}, None, (0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "qwen2"}, "pre is 'qwen2'"),
        ({"model": "bert"}, "model is 'bert'"),
        ({"merges": ["1 2 3"]}, "no list of pairs"),
        ({"merges": ["z q"]}, "x.gguf"),
        ({"token_type": [1]}, "is not 10 numbers"),
        ({"eos_token_id": 99}, "eos_token_id is 99"),
        ({"tokens": 7}, "no list of texts"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path, changes, message):
    path = merges_file(tmp_path / "x.gguf", **{"pre": "smollm"} | changes)
    with pytest.raises(FormatError, match=message):
        load_tokenizer(path)


@needs_data
@given(cut=st.integers(0, 6226), at=st.integers(0, 6226), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_llama2c_vocabulary_is_read_or_refused(tmp_path, cut, at, byte):
    raw = bytearray((Path(DATA) / "stories260K/tok512.bin").read_bytes())
    raw[at % len(raw)] = byte
    (tmp_path / "tok.bin").write_bytes(raw[: len(raw) - cut % len(raw)])
    try:
        assert load_tokenizer(tmp_path / "tok.bin").encode("once") is not None
    except FormatError as error:
        assert "tok.bin" in str(error)  # noqa: PT017


def test_ranks_with_a_hole_are_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"AA== 0\nAQ== 2\n")
    with pytest.raises(FormatError, match="not 0 to 1"):
        load_tokenizer(tmp_path)
