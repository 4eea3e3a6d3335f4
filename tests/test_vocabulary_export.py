"""An exported GGUF is a whole model: its vocabulary cuts texts as the tokenizer that went in."""

import os
from pathlib import Path

import pytest

from tinygrad_ml.llama import BPETokenizer, ByteTokenizer, Llama, LlamaConfig, load_tokenizer
from tinygrad_ml.llama.formats.export import write_gguf

DATA = os.environ.get("TINYGRAD_ML_DATA")
real = pytest.mark.skipif(not DATA, reason="TINYGRAD_ML_DATA is not set")
HARD = [
    "Hello world", "  two  spaces\n\n\ttab", "12345 + 67.89", "na\u00efve caf\u00e9",
    "\u6f22\u5b57 \U0001f999\U0001f680", "don't I'll", "def f(x):\n    return x",
    "<|endoftext|> <s> </s>", "", "\u00a0\u2028x", "ALLCAPS lower",
]  # fmt: skip


def exported(tokenizer, path, **more):
    """The tokenizer that is read from a small model's file."""
    config = LlamaConfig(tokenizer.vocab_size, 8, 1, 1, 8)
    write_gguf(Llama(config, rng=None), path, "F16", tokenizer=tokenizer, **more)
    return load_tokenizer(path)


def assert_alike(tokenizer, again):
    assert (again.vocab_size, again.bos) == (tokenizer.vocab_size, tokenizer.bos)
    assert again.eos == tokenizer.eos[:1]  # GGUF names one
    for text in HARD:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids, text
        assert again.decode(ids) == tokenizer.decode(ids)


def test_bytes(tmp_path):
    pytest.importorskip("tokenizers")
    again = exported(ByteTokenizer(), tmp_path / "x.gguf")
    assert_alike(ByteTokenizer(), again)


def test_learnt_merges(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = BPETokenizer.train(["the cat sat on the mat, the hat" * 9, *HARD], 320)
    assert_alike(tokenizer, exported(tokenizer, tmp_path / "x.gguf"))


@real
@pytest.mark.parametrize("library, name", [
    ("sentencepiece", "llama2-tokenizer/tokenizer.model"),
    ("tiktoken", "llama3-tokenizer/tokenizer.model"),
    ("sentencepiece", "stories260K/tok512.bin"),
])  # fmt: skip
def test_real_ones(tmp_path, library, name):
    pytest.importorskip(library), pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(Path(DATA) / name)
    assert_alike(tokenizer, exported(tokenizer, tmp_path / "x.gguf"))


def test_others_read_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    exported(ByteTokenizer(), tmp_path / "x.gguf", chat_template="{{ messages[0].content }}")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    read = lambda name: fields[name].contents()
    assert read("tokenizer.ggml.model") == "gpt2" and len(read("tokenizer.ggml.tokens")) == 257
    assert read("tokenizer.ggml.token_type")[-1] == gguf.TokenType.CONTROL
    assert read("tokenizer.ggml.eos_token_id") == 256
    assert read("tokenizer.ggml.add_bos_token") is False
    assert read("tokenizer.chat_template") == "{{ messages[0].content }}"


def test_refusals_leave_no_file(tmp_path):
    model = Llama(LlamaConfig(100, 8, 1, 1, 8), rng=None)
    with pytest.raises(ValueError, match="tokenizer: has 257 tokens, the model 100"):
        write_gguf(model, tmp_path / "x.gguf", tokenizer=ByteTokenizer())
    with pytest.raises(ValueError, match="GGUF has no words for a Unheard"):
        write_gguf(model, tmp_path / "x.gguf", tokenizer=Unheard())
    assert list(tmp_path.iterdir()) == []


class Unheard:
    vocab_size, bos, eos = 1, None, ()
