"""LLaMA: a decoder-only transformer with RMSNorm, RoPE, grouped-query attention and SwiGLU.

Touvron et al. 2023 (arXiv:2302.13971, 2307.09288); Grattafiori et al. 2024 (arXiv:2407.21783).

Shapes: b batch, t time (tokens of this call), s all tokens that can be seen (past and new),
h heads, g heads of keys and values, k head width, d model, v vocabulary.

Every part is called part(x, *, rng=None, ...) and may be replaced by a module that is called the
same way: layer.attention.wq = LoRA(layer.attention.wq, rank=8, rng=rng).
"""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np

from .. import backend, functional, nn, ops
from .. import quantized as quantized_layers
from ..autograd import GraphError, is_recording
from ..fused import rows_of
from ..quant import Blocks
from ..tensor import array_of
from ..transforms import checkpoint
from . import formats
from .cache import Cache, LayerCache, Slot
from .generate import generate


class Llama(nn.Module):
    """The model: tokens or embeddings in, logits out."""

    def __init__(self, config, *, rng, dtype="float32", device=None):
        place = {"dtype": dtype, "device": device}
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.dim, rng=rng, init=nn.normal(0.02), **place
        )
        self.layers = [Block(config, rng=rng, **place) for _ in range(config.n_layers)]
        self.norm = nn.RMSNorm(config.dim, config.norm_eps, **place)
        self.head = nn.Linear(
            config.dim,
            config.vocab_size,
            rng=None if config.tie_embeddings else rng,
            init=nn.normal(0.02),
            **place,
        )
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._frequencies = rope_frequencies(config)

    def forward(
        self,
        tokens=None,
        *,
        embeddings=None,
        past=None,
        cache=None,
        mask=None,
        positions=None,
        segments=None,
        rng=None,
        last=None,
        recompute=False,
    ):
        """Logits of the token after each one      tokens: (b, t) ints -> (b, t, v)

        embeddings  (b, t, d) in place of tokens
        past        for each layer (k, v): (b or 1, g, p, k), on the tape, seen by every token
        cache       from new_cache(): what earlier calls left, extended by this one; under no_grad
        mask        (b, t) bools, False for padding, which nothing sees; (b, p + t): of a past too
        positions   (t,) or (b, t) ints; None: counted on, padding left out, anew in each segment
        segments    (b, t) ints: attention stays within tokens of one number
        rng         handed down to every part; None is evaluation
        last        logits of the last so many tokens only
        recompute   keep each layer's input only, and run the layer again in the backward pass
        """
        x = self.hidden(
            tokens,
            embeddings=embeddings,
            past=past,
            cache=cache,
            mask=mask,
            positions=positions,
            segments=segments,
            rng=rng,
            recompute=recompute,
        )
        x = x if last is None else x[:, -last:]
        return self.head(x, rng=rng)

    def loss(self, tokens=None, targets=None, *, reduction="mean", rng=None, **context):
        """-log p(target) of each token, reduced      targets: (b, t) ints; -100 is not counted

        The targets are shifted by the caller: targets[:, i] is what should follow tokens[:, i].
        reduction: "mean" over the counted targets, "sum", or "none" for (b, t).
        """
        x = self.hidden(tokens, rng=rng, **context)  # (b, t, d)
        targets = np.asarray(array_of(targets)) if isinstance(targets, list) else array_of(targets)
        if targets is None or targets.shape != x.shape[:2]:
            got = None if targets is None else targets.shape
            raise ValueError(
                f"targets: got shape {got}, expected {x.shape[:2]}, one for each token"
            )
        targets = backend.to_device(targets, x.device)
        if type(self.head) is nn.Linear and self.head.bias is None:  # nobody has wrapped it
            return functional.linear_cross_entropy(
                x, self.head.weight, targets, reduction=reduction
            )
        return functional.cross_entropy(self.head(x, rng=rng), targets, reduction=reduction)

    def hidden(
        self,
        tokens=None,
        *,
        embeddings=None,
        past=None,
        cache=None,
        mask=None,
        positions=None,
        segments=None,
        rng=None,
        recompute=False,
    ):
        """What the head reads: the normed output of the last layer      (b, t) -> (b, t, d)"""
        x, tokens = self._embed(tokens, embeddings, rng)
        b, t, _ = x.shape
        p = 0 if past is None else _length_of_past(self, past, b)
        mask, segments = _checked("mask", mask, b, t, p), _checked("segments", segments, b, t)
        _check_context(self, past, cache, segments, b, t)
        with nullcontext() if cache is None else cache.extending(b, t, tokens, mask, past):
            if isinstance(cache, Slot):
                rotation = Rotation.looked_up(cache.positions, cache.capacity, self._frequencies, x)
                visible = cache.visible
            else:
                seen = _what_is_seen(past, cache, mask, b, t)
                if positions is None:
                    positions = _count_on(seen, segments, t)
                rotation = Rotation.of(positions, self._frequencies, x)
                visible = _visible(seen, segments, t)
                visible = visible if visible is None else backend.to_device(visible, x.device)
            context = {"positions": rotation, "mask": visible, "rng": rng}
            return self._through(x, past, cache, recompute, context)

    def _through(self, x, past, cache, recompute, context):
        """x after all layers, normed. Off the tape the next norm adds up what a layer leaves."""
        more, rng = None, context["rng"]
        for i, layer in enumerate(self.layers):
            context["past"] = None if past is None else past[i]
            context["cache"] = None if cache is None else LayerCache(cache, i)
            if type(layer) is Block and not is_recording():  # nobody has wrapped it
                x, more = layer.summands(x, more, **context)
                continue
            x = x if more is None else x + more
            x, more = (partial(checkpoint, layer) if recompute else layer)(x, **context), None
        if more is None:
            return self.norm(x, rng=rng)
        return nn.add_norm(x, more, self.norm, rng=rng)[1]

    def _embed(self, tokens, embeddings, rng):
        """(b, t, d) embeddings, and the (b, t) array of the tokens, if there are any."""
        if (tokens is None) == (embeddings is None):
            raise ValueError("give either tokens (b, t) or embeddings (b, t, d)")
        if embeddings is not None:
            if embeddings.ndim != 3 or embeddings.shape[-1] != self.config.dim:
                expected = f"(b, t, {self.config.dim})"
                raise ValueError(f"embeddings: got shape {embeddings.shape}, expected {expected}")
            return embeddings, None
        tokens = _ints("tokens", tokens)
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError(f"tokens: got shape {tokens.shape}, expected (b, t), not empty")
        device = next(self.parameters()).device
        return self.embedding(backend.to_device(tokens, device), rng=rng), tokens

    def new_cache(self, b, capacity=0):
        """An empty cache for b rows; it grows, and `capacity` tokens need no growing."""
        weight = next(self.parameters())
        return Cache(self.config, b, capacity, weight.dtype, weight.device)

    generate = generate

    @classmethod
    def from_pretrained(cls, path, dtype="float32", device="cpu", quantized="keep"):
        """The model in a folder or file, told by its content: Hugging Face's or Meta's folder, one
        of our runs, a .gguf, a .bin of llama2.c.

        quantized: "keep" leaves weights in blocks as they are, in a fifth of the memory and twice
        as fast token by token; "dense" makes them into dense ones, which can be trained.

        FormatError (file, tensor, offset) if it is damaged; ValueError lists every missing,
        unexpected and misshapen tensor.
        """
        if quantized not in ("keep", "dense"):
            raise ValueError(f"quantized: got {quantized!r}, expected 'keep' or 'dense'")
        config, arrays = formats.read(path)
        model = cls(config, rng=None, dtype=dtype, device=device)
        taken = quantized_layers.keep_quantized(model, arrays, dtype) if quantized == "keep" else ()
        model.load_state_dict({name: _dense(x) for name, x in arrays.items() if name not in taken})
        return model

    def save_pretrained(self, folder, dtype=None):
        """config.json and model.safetensors as Hugging Face's transformers reads them."""
        formats.write(self, folder, dtype)


def _dense(x):
    return x.dense() if isinstance(x, Blocks) else x


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))      x: (b, t, d)"""

    def __init__(self, config, *, rng, **place):
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps, **place)
        self.attention = Attention(config, rng=rng, **place)
        self.feed_forward_norm = nn.RMSNorm(config.dim, config.norm_eps, **place)
        self.feed_forward = FeedForward(config, rng=rng, **place)

    def forward(self, x, **context):
        x, more = self.summands(x, **context)
        return x + more

    def summands(self, x, more=None, *, rng=None, **context):
        """The two whose sum is the output; the input may be the sum of two as well."""
        if more is None:
            normed = self.attention_norm(x, rng=rng)
        else:
            x, normed = nn.add_norm(x, more, self.attention_norm, rng=rng)
        attended = self.attention(normed, rng=rng, **context)
        x, normed = nn.add_norm(x, attended, self.feed_forward_norm, rng=rng)
        return x, self.feed_forward(normed, rng=rng)


class Attention(nn.Module):
    """Grouped-query attention with rotated queries and keys.

    Ainslie et al. 2023 (arXiv:2305.13245); Su et al. 2021 (arXiv:2104.09864).
    """

    def __init__(self, config, *, rng, **place):
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        inner, shared = (n * config.head_dim for n in (self.n_heads, self.n_kv_heads))
        place["bias"] = config.attention_bias
        self.wq = nn.Linear(config.dim, inner, rng=rng, init=nn.normal(0.02), **place)
        self.wk = nn.Linear(config.dim, shared, rng=rng, init=nn.normal(0.02), **place)
        self.wv = nn.Linear(config.dim, shared, rng=rng, init=nn.normal(0.02), **place)
        self.wo = nn.Linear(inner, config.dim, rng=rng, init=_residual(config), **place)

    def forward(self, x, *, positions, mask=None, past=None, cache=None, rng=None):
        q, k, v = nn.linear_maps(x, self.wq, self.wk, self.wv, rng=rng)
        q = split_heads(q, self.n_heads)  # (b, h, t, k)
        k, v = (split_heads(x, self.n_kv_heads) for x in (k, v))  # (b, g, t, k)
        if cache is not None and past is None:
            q, k, v = cache.turned(positions, q, k, v)  # k, v: (b, g, s, k)
        else:
            q, k = positions.rotate(q), positions.rotate(k)
        if past is not None:
            k, v = (_joined(old, new) for old, new in zip(past, (k, v), strict=True))
            k, v = (k, v) if cache is None else cache(k, v)
        return self.wo(merge_heads(self.attend(q, k, v, mask)), rng=rng)

    def queries(self, x, positions, *, rng=None):
        """(b, t, d) -> (b, h, t, k), rotated"""
        return positions.rotate(split_heads(self.wq(x, rng=rng), self.n_heads))

    def keys(self, x, positions, *, rng=None):
        """(b, t, d) -> (b, g, t, k), rotated"""
        return positions.rotate(split_heads(self.wk(x, rng=rng), self.n_kv_heads))

    def values(self, x, *, rng=None):
        """(b, t, d) -> (b, g, t, k)"""
        return split_heads(self.wv(x, rng=rng), self.n_kv_heads)

    def attend(self, q, k, v, mask=None):
        """softmax(q k^T / sqrt(k)) v      q: (b, h, t, k)  k, v: (b, g, s, k) -> (b, h, t, k)

        mask: (b or 1, 1, t, s) bools, True where q may look; None: the last t of s, causally.
        """
        return functional.attention(q, k, v, mask, causal=mask is None)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))      Shazeer 2020 (arXiv:2002.05202), SwiGLU"""

    def __init__(self, config, *, rng, **place):
        d, wide = config.dim, config.hidden_dim
        place["bias"] = config.mlp_bias
        self.gate = nn.Linear(d, wide, rng=rng, init=nn.normal(0.02), **place)
        self.up = nn.Linear(d, wide, rng=rng, init=nn.normal(0.02), **place)
        self.down = nn.Linear(wide, d, rng=rng, init=_residual(config), **place)

    def forward(self, x, *, rng=None):
        gate, up = nn.linear_maps(x, self.gate, self.up, rng=rng)
        return self.down(functional.swiglu(gate, up), rng=rng)


def _residual(config):
    """Initial values of what is added to x 2 n_layers times, so that x does not grow with them.

    Radford et al. 2019 (GPT-2).
    """
    return nn.normal(0.02 * (2 * config.n_layers) ** -0.5)


def split_heads(x, n):
    """(b, t, n k) -> (b, n, t, k)"""
    b, t, width = x.shape
    return x.reshape(b, t, n, width // n).transpose(0, 2, 1, 3)


def merge_heads(x):
    """(b, n, t, k) -> (b, t, n k)"""
    b, n, t, k = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, n * k)


def _joined(old, new):
    """The past, for every row the same or each its own, before what is new."""
    if old.shape[0] == 1 and new.shape[0] > 1:
        old = ops.broadcast_to(old, shape=(new.shape[0], *old.shape[1:]))
    return ops.concatenate(old, new, axis=-2)


# -------------------------------------------------------------------------------- positions


class Rotation:
    """How RoPE turns the vectors of the tokens, by where these stand.

    cos, sin  (t, k/2), or (b, 1, t, k/2) where the rows of a batch differ
    """

    def __init__(self, cos, sin):
        self.cos, self.sin = cos, sin

    @classmethod
    def of(cls, ids, frequencies, like):
        """At places (t,) or (b, t), ints; for x like (b, t, d)."""
        ids = np.asarray(backend.to_host(_ints("positions", ids)))
        b, t, _ = like.shape
        if ids.shape not in ((t,), (b, t), (1, t)):
            raise ValueError(f"positions: got shape {ids.shape}, expected ({t},) or ({b}, {t})")
        if ids.ndim == 2:
            ids = ids[0] if len(ids) == 1 else ids[:, None]  # (t,) or (b, 1, t)
        return cls(*_turns(ids, frequencies, like))

    @classmethod
    def looked_up(cls, ids, count, frequencies, like):
        """At places below `count`, (1,) or (b, 1) ints, that only a recorded call will know."""
        table = _turns(np.arange(count), frequencies, like)
        if ids.ndim == 2:
            ids = ids[:, None]
        return cls(*(rows_of(x, ids) for x in table))

    def rotate(self, x):
        """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), halves of each head      (b, n, t, k)"""
        if self.cos.ndim == 4 and x.shape[2] == 1:  # a token a row: the rows are as times of a row
            cos, sin = (table[:, 0, 0] for table in (self.cos, self.sin))
            return functional.rope(x.swapaxes(0, 2), cos, sin).swapaxes(0, 2)
        return functional.rope(x, self.cos, self.sin)


def _turns(ids, frequencies, like):
    """[cos, sin] of the angles, made in float64      ids: (...) -> (..., k/2)"""
    angles = ids[..., None] * frequencies
    return [backend.to_device(f(angles).astype(like.dtype), like.device) for f in (np.cos, np.sin)]


def rope_frequencies(config):
    """theta^(-2i/k), i = 0 ... k/2 - 1, scaled for longer contexts      (k/2,) in float64"""
    k, scaling = config.head_dim, config.rope_scaling
    frequencies = config.rope_theta ** (-np.arange(0, k, 2) / k)
    if scaling is None:
        return frequencies
    if scaling["rope_type"] == "linear":  # Chen et al. 2023 (arXiv:2306.15595)
        return frequencies / scaling["factor"]
    return _llama3(frequencies, scaling)


def _llama3(frequencies, scaling):
    """Slow turns are slowed by `factor`, fast ones are kept, between them a smooth passage.

    Grattafiori et al. 2024; as in meta-llama/llama-models, apply_scaling.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)  # 0: slowed, 1: kept
    return frequencies * (smooth + (1 - smooth) / scaling["factor"])


# ---------------------------------------------------------------- who stands where, who sees whom
#
# Worked out on the host, once a call. `seen` is (b, s) bools, or the number s if all is seen.


def _what_is_seen(past, cache, mask, b, t):
    if cache is not None:
        return cache.seen()  # the past went into it
    p = 0 if past is None else past[0][0].shape[-2]
    if mask is None:
        return p + t
    return np.concatenate([np.ones((b, p + t - mask.shape[1]), bool), mask], axis=1)


def _count_on(seen, segments, t):
    """The positions of the last t of the seen: each token's number among what is no padding."""
    if isinstance(seen, int) and segments is None:
        return np.arange(seen - t, seen)
    if isinstance(seen, int):
        seen = np.ones((len(segments), seen), bool)
    ids = np.maximum(seen.cumsum(axis=1) - 1, 0)
    if segments is None:
        return ids[:, -t:]
    first = ids.shape[1] - t  # every segment counts on from the past
    ids = ids[:, -t:]
    begins = np.ones(segments.shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return first + ids - np.maximum.accumulate(np.where(begins, ids, 0), axis=1)


def _visible(seen, segments, t):
    """(b, 1, t, s) bools: True where a token may look; None if that is all up to itself."""
    if isinstance(seen, int) and segments is None:
        return None
    s = seen if isinstance(seen, int) else seen.shape[1]
    own = np.arange(s - t, s)[:, None]  # where each query's own key stands
    visible = np.arange(s) <= own  # (t, s)
    if not isinstance(seen, int):
        visible = visible & seen[:, None, :]
    if segments is not None:
        same = np.ones((len(segments), t, s), bool)
        same[:, :, s - t :] = segments[:, :, None] == segments[:, None, :]
        visible = visible & same
    visible = visible | (np.arange(s) == own)  # padding sees itself: a softmax over nothing is NaN
    return visible[:, None]


def _checked(name, array, b, t, p=0):
    """A (b, t) host array, or None; with a past of p also (b, p + t)."""
    if array is None:
        return None
    array = np.asarray(
        backend.to_host(array_of(array)) if backend.is_array(array_of(array)) else array
    )
    if array.shape not in ((b, t), (b, p + t)):
        raise ValueError(f"{name}: got shape {array.shape}, expected {(b, t)}, this call's tokens")
    if name == "mask" and array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise TypeError(f"mask: got dtype {array.dtype}, expected bools")
        array = array.astype(bool)
    return array


def _ints(name, ids):
    ids = array_of(ids)
    ids = ids if backend.is_array(ids) else np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: got dtype {ids.dtype}, expected integers")
    return ids


def _check_context(model, past, cache, segments, b, t):
    """ValueError or GraphError for a past, a cache or segments that do not fit."""
    if cache is not None and is_recording():
        raise GraphError(
            "cache: its buffers are off the tape: call under tg.no_grad(), or use past"
        )
    if cache is not None and segments is not None:
        raise ValueError("segments: not together with a cache, which holds one text a row")
    if past is not None and cache is not None and cache.length:
        raise ValueError(f"past: the cache holds {cache.length} tokens; the past must come first")


def _length_of_past(model, past, b):
    """p, of (k, v) pairs (b or 1, g, p, k); ValueError if they fit neither model nor batch."""
    config = model.config
    if len(past) != config.n_layers:
        raise ValueError(f"past: got {len(past)} layers, expected {config.n_layers}")
    expected = f"({b} or 1, {config.n_kv_heads}, p, {config.head_dim})"
    p = past[0][0].shape[-2]
    for x in (x for pair in past for x in pair):
        if x.shape not in (
            (b, config.n_kv_heads, p, config.head_dim),
            (1, config.n_kv_heads, p, config.head_dim),
        ):
            raise ValueError(f"past: got shape {x.shape}, expected {expected} in every layer")
    return p
