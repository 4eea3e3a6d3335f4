"""Token ids against the libraries and the files that define them."""

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_ml.llama import BPETokenizer, load_tokenizer
from tinygrad_ml.llama.vocabularies import LLAMA3

DATA = os.environ.get("TINYGRAD_ML_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="TINYGRAD_ML_DATA names no folder of real data")
FOLDER = Path(DATA or ".")

HARD = [
    "", " ", "   ", "\n\n", "Hello world", " Hello  world ", "0123456789 3.14",
    "😀👩‍👩‍👧 日本語 한국어",
    "café naïve ﬁ Å", "</s><s>[INST]<|eot_id|><0x0A>", "\x00\x01\x7f", "a" * 300, "\u2581x",
    "don't WE'LL I'M", "\r\n\t x", "ﷺ\u200b\ufeff",
]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize("text", HARD)
def test_sentencepiece(text):
    library = pytest.importorskip("sentencepiece")
    file = FOLDER / "llama2-tokenizer/tokenizer.model"
    reference = library.SentencePieceProcessor(model_file=str(file))
    tokenizer = load_tokenizer(file)
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids)


@given(texts)
def test_llama2c_pieces_give_sentencepieces_ids(text):
    pytest.importorskip("sentencepiece")
    model, pieces = (_cached(f"llama2-tokenizer/tokenizer.{kind}") for kind in ("model", "bin"))
    assert pieces.encode(text) == model.encode(text)


@given(texts)
def test_tiktoken(text):
    library = pytest.importorskip("tiktoken")
    lines = (FOLDER / "llama3-tokenizer/tokenizer.model").read_bytes().split(b"\n")
    if "llama3" not in _loaded:
        ranks = {base64.b64decode(t): int(r) for t, _, r in (x.partition(b" ") for x in lines if x)}
        _loaded["llama3"] = library.Encoding(
            "reference", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={}
        )
    ids = _cached("llama3-tokenizer").encode(text)
    assert ids == _loaded["llama3"].encode(text)
    assert _cached("llama3-tokenizer").decode(ids) == text


@given(texts)
def test_gpt2_against_tiktoken(text):
    tokenizers, tiktoken = pytest.importorskip("tokenizers"), pytest.importorskip("tiktoken")
    if "gpt2" not in _loaded:
        files = [str(FOLDER / "gpt2-tokenizer" / name) for name in ("vocab.json", "merges.txt")]
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.add_special_tokens(["<|endoftext|>"])
        ours = _loaded["gpt2"] = BPETokenizer(made)
        ranks = {ours.token_bytes(i): i for i in range(50256)}
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        _loaded["gpt2 reference"] = tiktoken.Encoding(
            "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
    assert _loaded["gpt2"].encode(text) == _loaded["gpt2 reference"].encode(text)


_loaded = {}


def _cached(name):
    if name not in _loaded:
        _loaded[name] = load_tokenizer(FOLDER / name)
    return _loaded[name]
