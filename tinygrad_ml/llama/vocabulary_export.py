"""A tokenizer as the vocabulary in a GGUF file, in the words of the GGUF specification.

"llama"   pieces with scores and kinds          of sentencepiece
"gpt2"    byte-level tokens and their merges    of tokenizers, of tiktoken's ranks, of bytes
"""

import json

import numpy as np

from .tokenizer import LETTERS, BPETokenizer, ByteTokenizer
from .vocabularies import (
    BYTE,
    CONTROL,
    LLAMA3,
    NORMAL,
    UNKNOWN,
    USER,
    FallbackTokenizer,
    RankTokenizer,
    SentencePiece,
)


def vocabulary(tokenizer):
    """{key below tokenizer.ggml: value}; ValueError for a tokenizer that GGUF has no words for."""
    for kind, describe in (
        (SentencePiece, _pieces),
        (RankTokenizer, _ranks),
        (ByteTokenizer, _bytes),
        (BPETokenizer, _merges),
    ):
        if isinstance(tokenizer, kind) and not isinstance(tokenizer, FallbackTokenizer):
            found = describe(tokenizer)
            break
    else:
        raise ValueError(
            f"tokenizer: GGUF has no words for a {type(tokenizer).__name__}; "
            "load the sentencepiece tokenizer.model that it was made from"
        )
    ends = {"bos": tokenizer.bos, "eos": next(iter(tokenizer.eos), None)}
    found |= {f"{name}_token_id": i for name, i in ends.items() if i is not None}
    return found | {"add_bos_token": tokenizer.bos is not None}


def _pieces(tokenizer):
    model, ids = tokenizer._model, range(tokenizer.vocab_size)
    kinds = [
        UNKNOWN if model.is_unknown(i)
        else CONTROL if model.is_control(i)
        else BYTE if model.is_byte(i)
        else NORMAL
        for i in ids
    ]  # fmt: skip
    return {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": np.array([model.get_score(i) for i in ids], "<f4"),
        "token_type": np.array(kinds, "<i4"),
        "unknown_token_id": model.unk_id(),
    }


def _byte_level(tokens, merges, kinds, pre):
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges,
            "token_type": np.array(kinds, "<i4")}  # fmt: skip


def _bytes(tokenizer):
    """Every byte a token, and one that ends a text."""
    special = sorted(tokenizer.specials, key=tokenizer.specials.get)
    kinds = [NORMAL] * 256 + [CONTROL] * len(special)
    return _byte_level([*LETTERS, *special], [], kinds, "gpt-2")


def _merges(tokenizer):
    content = json.loads(tokenizer._tokenizer.to_str())
    tokens = {i: token for token, i in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER
    if sorted(tokens) != list(range(len(tokens))):
        raise ValueError("tokenizer: its ids have gaps, which a GGUF's list of tokens cannot have")
    pairs = content["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    order = range(len(tokens))
    return _byte_level([tokens[i] for i in order], merges, [kinds[i] for i in order],
                       _way_of_cutting(content["pre_tokenizer"]))  # fmt: skip


def _way_of_cutting(pre):
    """The name that llama.cpp has for what cuts a text into words."""
    steps = [step["type"] for step in pre.get("pretokenizers", [pre])]
    if steps == ["ByteLevel"]:
        return "gpt-2"
    if steps == ["Digits", "ByteLevel"]:
        return "smollm"
    if steps == ["Split", "ByteLevel"] and pre["pretokenizers"][0]["pattern"] == {"Regex": LLAMA3}:
        return "llama-bpe"
    raise ValueError(f"tokenizer: GGUF has no name for cutting texts by {', '.join(steps)}")


def _ranks(tokenizer):
    """tiktoken merges any two neighbours that make a token, the one of least rank first.

    So the merges are all ways to cut a token into two, in the order of the tokens.
    """
    ranks, letters = tokenizer._ranks, lambda token: "".join(LETTERS[b] for b in token)
    ordered = sorted(ranks, key=ranks.get)
    merges = [f"{letters(a)} {letters(b)}" for token in ordered for a, b in _halves(token, ranks)]
    special = sorted(tokenizer.specials, key=tokenizer.specials.get)
    kinds = [NORMAL] * len(ordered) + [CONTROL] * len(special)
    return _byte_level([*map(letters, ordered), *special], merges, kinds, "llama-bpe")


def _halves(token, ranks):
    cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
    return sorted(
        (cut for cut in cuts if cut[0] in ranks and cut[1] in ranks),
        key=lambda cut: (ranks[cut[0]], ranks[cut[1]]),
    )
