"""`tinygrad-ml eval`: the perplexity of a model on a text, with a sliding context."""

import math
from dataclasses import dataclass

import numpy as np

from ..autograd import no_grad
from .pull import resolve


@dataclass(frozen=True)
class Score:
    """nll: -log p of the text in nats; tokens: how many were predicted; characters of the text."""

    nll: float
    tokens: int
    characters: int

    @property
    def perplexity(self):
        """exp of the mean -log p of a token"""
        return math.exp(self.nll / self.tokens)

    @property
    def bits_per_character(self):
        """-log2 p of the text, over its length"""
        return self.nll / math.log(2) / self.characters


def perplexity(model, tokens, context=None, stride=None, progress=lambda windows: windows):
    """(nll in nats, number predicted) of a text of ids      tokens: (n,)

    The text is read in windows of `context` tokens, each `stride` after the last, and each token
    is predicted once: but for the first window's from at least context - stride tokens before it.
    """
    context = model.config.max_length if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if context < 1 or not 1 <= stride <= context:
        raise ValueError(f"stride: got {stride}, expected 1 to context, which is {context}")
    if len(tokens) < 2:
        raise ValueError(f"tokens: got {len(tokens)}, expected at least 2: one predicts the other")
    tokens = np.asarray(tokens)
    nll, done = 0.0, 1  # the first token is predicted from nothing
    ends = range(min(context + 1, len(tokens)), len(tokens) + stride, stride)
    with no_grad():
        for end in progress([min(end, len(tokens)) for end in ends]):
            if end <= done:
                continue
            window = tokens[max(0, end - context - 1) : end]
            targets = window[1:].copy()
            targets[: len(targets) - (end - done)] = -100  # predicted before, with less to go by
            found = model.loss(window[None, :-1], targets[None], reduction="sum")
            nll, done = nll + found.item(), end
    return nll, len(tokens) - 1


def add_arguments(parser):
    add = parser.add_argument
    add("model", help="path, or a pulled name")
    add("--data", required=True, help="text file")
    add("--tokenizer", help="its file, if it is not in or beside the model")
    add("--context", type=int, help="tokens in a window (default: at most 1024)")
    add("--stride", type=int, help="how far apart windows are (default: half the context)")
    add("--max-tokens", type=int, help="the first so many tokens of the text only")
    add("--device", default="cpu", help="cpu or cuda")


def run(model, data, tokenizer, context, stride, max_tokens, device, adapt):
    """Print the scores of the model that `adapt` makes of the loaded one."""
    from pathlib import Path

    from tqdm import tqdm

    from .model import Llama
    from .vocabularies import load_tokenizer

    path = resolve(model)
    text = Path(data).read_text(encoding="utf-8")
    tokenizer = load_tokenizer(tokenizer or path)
    ids = tokenizer.encode(text)
    if max_tokens is not None and len(ids) > max_tokens:
        ids = ids[:max_tokens]
        text = tokenizer.decode(ids)
    begin = [tokenizer.bos] if tokenizer.bos is not None else []
    model = adapt(Llama.from_pretrained(path, device=device))
    context = min(1024, model.config.max_length) if context is None else context
    nll, count = perplexity(model, [*begin, *ids], context, stride, tqdm)
    score = Score(nll, count, len(text))
    print(f"{score.tokens:,} tokens: {score.nll / score.tokens:.4f} nats per token")
    print(f"perplexity {score.perplexity:.4f}, {score.bits_per_character:.4f} bits per character")
