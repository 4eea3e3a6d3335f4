"""Generation: greedy, sampling, beam search and speculative decoding over a cache.

All of it reaches the model through model(tokens, cache=, mask=, last=) and model.new_cache(b), so
an adapted model generates the same way. On a GPU one more token is a recorded call (recorded.py).
Choosing a token is numpy on the host, in float64; the likeliest one is found where the logits are.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..autograd import no_grad, widen
from ..backend import is_array, to_host
from ..tensor import array_of
from .recorded import Recorded
from .tokenizer import StreamDecoder


def generate(
    model,
    tokens,
    max_new_tokens,
    *,
    mask=None,
    temperature=0.0,
    top_k=None,
    top_p=None,
    min_p=None,
    repetition_penalty=1.0,
    num_beams=1,
    length_penalty=1.0,
    eos=None,
    stop=None,
    tokenizer=None,
    cache=None,
    draft=None,
    rng=None,
    stream=None,
    return_logprobs=False,
    window=None,
):
    """The prompts and what follows them: ids (b, t + new), a numpy array.

    tokens      (b, t) ids; or a list of lists of unequal lengths, which are padded on the left
    mask        (b, t) bools, False for padding, which stands on the left
    temperature 0: always the most likely token; else the logits are divided by it
    top_k       only the k most likely tokens
    top_p       only the fewest tokens whose probabilities add up to top_p (Holtzman et al. 2020)
    min_p       only tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    repetition_penalty  logits of tokens seen are divided by it, or multiplied below 0
                (Keskar et al. 2019)
    num_beams, length_penalty  beam search for the greatest log-probability / length^penalty
    eos         ids that end a row; None: the config's. A row that has ended is padded with eos
    stop        texts that end a row once they appear in what is new; needs the tokenizer
    cache       from model.new_cache(b): what it holds of the prompt's beginning is not computed
                again, and afterwards it holds all but the last token, for the next call
    draft       a smaller model that guesses ahead; the distribution stays the model's
                (Leviathan et al. 2023), one prompt at a time
    stream      called with each new token: an int for one prompt, else an array (b,)
    return_logprobs  also (b, new): log-probabilities of the chosen tokens under the model itself
                (temperature 1, nothing excluded), 0 after a row's end
    window      never show the model more tokens than this: when they are reached it begins again
                with the last half of them (not for beams and drafts). None: no limit
    """
    tokens, mask = _prompts(tokens, mask)
    rules = Rules(temperature, top_k, top_p, min_p, repetition_penalty)
    rules.check(rng)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected 0 or more")
    ending = _Ending(len(tokens), _end_tokens(model, eos), stop, tokenizer)
    job = Job(model, tokens, mask, max_new_tokens, rules, ending, cache, rng, stream, window,
              return_logprobs)  # fmt: skip
    with no_grad():
        if num_beams > 1:
            _refuse(
                "num_beams",
                temperature=temperature,
                stop=stop,
                stream=stream,
                draft=draft,
                cache=cache,
            )
            found, logprobs = _beams(job, num_beams, length_penalty)
        elif draft is not None:
            found, logprobs = _speculate(job, draft)
        else:
            found, logprobs = _one_by_one(job)
    ids = np.concatenate([tokens, found], axis=1)
    return (ids, logprobs) if return_logprobs else ids


@dataclass
class Job:
    """What one call of generate has to do."""

    model: object
    tokens: np.ndarray
    mask: np.ndarray
    count: int
    rules: "Rules"
    ending: "_Ending"
    cache: object
    rng: np.random.Generator | None
    stream: object
    window: int | None
    with_logprobs: bool

    def __post_init__(self):
        if self.cache is None:
            b, t = self.tokens.shape
            self.cache = self.model.new_cache(b, t + self.count)

    def emit(self, chosen):
        """Hand the new tokens (b,) to the user."""
        if self.stream is not None:
            self.stream(int(chosen[0]) if len(chosen) == 1 else chosen)


def _read(model, cache, tokens, mask, last=1):
    """Logits after these texts (b, t), of which the cache may hold the beginning: (b, last, v)"""
    known = min(_common(cache, tokens, mask), tokens.shape[1] - last)
    cache.truncate(known)
    new = None if mask.all() else mask[:, known:]
    return model(tokens[:, known:], cache=cache, mask=new, last=last)


def _common(cache, tokens, mask):
    """How many places from the left the cache and the texts have in common, in every row."""
    n = min(cache.length, tokens.shape[1])
    same = (cache.tokens[:, :n] == tokens[:, :n]) & (cache.mask[:, :n] == mask[:, :n])
    differs = ~same.all(axis=0)
    return int(differs.argmax()) if differs.any() else n


def _one_by_one(job):
    """Token after token, a row each."""
    chosen, logprobs, ending = [], [], job.ending
    seen = _sets(job.tokens, job.mask)
    after = _after(job)
    for step in range(job.count):
        if step == 0:
            logits = _read(job.model, job.cache, job.tokens, job.mask)[:, -1]
        elif job.window is not None and job.cache.length >= job.window:
            logits = _begin_again(job, chosen)
        else:
            logits = after(chosen[-1])
        picked = job.rules.pick(logits, seen, job.rng)
        picked = np.where(ending.ended, ending.filler, picked)
        chosen.append(picked)
        if job.with_logprobs:
            found = _at(_log_softmax(logits.numpy()), picked)
            logprobs.append(np.where(ending.ended, 0.0, found))
        job.emit(picked)
        for ids, token in zip(seen, picked.tolist(), strict=True):
            ids.add(token)
        if ending.after(picked):
            break
    return _columns(job, chosen, np.int64), _columns(job, logprobs, np.float64)


FEW = 4  # tokens; a recording costs the time of two


def _after(job):
    """The function that reads one more token (b,) a row and gives the logits (b, v) after it."""
    if job.count > FEW and Recorded.fits(job.model, job.cache):
        return Recorded(job.model, job.cache)
    return lambda tokens: job.model(tokens[:, None], cache=job.cache)[:, -1]


def _begin_again(job, chosen):
    """Logits (b, v) after the last half window of what there is, with the cache emptied."""
    new = np.stack(chosen, axis=1)
    tokens = np.concatenate([job.tokens, new], axis=1)[:, -max(1, job.window // 2) :]
    mask = np.concatenate([job.mask, np.ones(new.shape, bool)], axis=1)[:, -tokens.shape[1] :]
    job.cache.truncate(0)
    return _read(job.model, job.cache, tokens, mask)[:, -1]


def _sets(tokens, mask):
    return [set(row[kept].tolist()) for row, kept in zip(tokens, mask, strict=True)]


def _columns(job, columns, dtype):
    return np.stack(columns, axis=1) if columns else np.zeros((len(job.tokens), 0), dtype)


# ---------------------------------------------------------------------------- choosing a token


@dataclass
class Rules:
    """How logits become the distribution that the next token is drawn from."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def check(self, rng):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: got {self.top_k}, expected 1 or more")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name}: got {share}, expected more than 0, at most 1")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty: got {self.repetition_penalty}, expected above 0")
        if self.temperature and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng: got {type(rng).__name__}; sampling needs numpy.random.default_rng(seed)"
            )

    def penalised(self, logits, seen):
        """(b, v) float64 logits after the repetition penalty; seen: each row's set of tokens."""
        logits = logits.astype(np.float64)
        if self.repetition_penalty == 1:
            return logits
        weaker = np.where(
            logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty
        )
        table = np.zeros(logits.shape, bool)
        for line, ids in zip(table, seen, strict=True):
            line[list(ids)] = True
        return np.where(table, weaker, logits)

    def probabilities(self, logits, seen):
        """(b, v) logits -> (b, v) probabilities of being chosen."""
        logits = self.penalised(logits, seen)
        if self.temperature == 0:
            return np.eye(logits.shape[1])[logits.argmax(axis=1)]
        p = _softmax(logits / self.temperature)
        for keep, limit in ((_top_k, self.top_k), (_top_p, self.top_p), (_min_p, self.min_p)):
            if limit is not None:
                p = np.where(keep(p, limit), p, 0.0)
                p /= p.sum(axis=1, keepdims=True)
        return p

    def pick(self, logits, seen, rng):
        """(b, v) logits, a Tensor -> (b,) chosen ids."""
        if self.temperature == 0 and self.repetition_penalty == 1:  # where the logits are
            return to_host(widen(logits.data).argmax(axis=1))
        logits = logits.numpy()
        if self.temperature == 0:
            return self.penalised(logits, seen).argmax(axis=1)
        return draw(self.probabilities(logits, seen), rng)


def draw(p, rng):
    """One index a row, by the inverse of the distribution function      p: (b, v) -> (b,)"""
    heights = p.cumsum(axis=1)
    u = rng.random((len(p), 1)) * heights[:, -1:]
    return (heights <= u).sum(axis=1)  # never one of probability 0


def _top_k(p, k):
    """The k greatest of each row; at a tie the first ones."""
    return _rank(p) < k


def _top_p(p, share):
    """The fewest that add up to `share`, the likeliest first."""
    order = np.argsort(-p, axis=1, kind="stable")
    ordered = np.take_along_axis(p, order, axis=1)
    before = ordered.cumsum(axis=1) - ordered  # what the likelier ones add up to
    keep = np.empty(p.shape, bool)
    np.put_along_axis(keep, order, before < share, axis=1)
    return keep


def _min_p(p, share):
    return p >= share * p.max(axis=1, keepdims=True)


def _rank(p):
    """The place of each entry in its row's order, from the greatest."""
    order = np.argsort(-p, axis=1, kind="stable")
    rank = np.empty(p.shape, int)
    np.put_along_axis(rank, order, np.arange(p.shape[1])[None], axis=1)
    return rank


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _at(table, chosen):
    """table[i, chosen[i]] of each row      table: (b, v)  chosen: (b,)"""
    return np.take_along_axis(table, chosen[:, None], axis=1)[:, 0]


class _Ending:
    """Which rows have ended: by an end token, or by a text in what is new."""

    def __init__(self, b, eos, stop, tokenizer):
        self.eos, self.filler = eos, eos[0] if eos else 0
        self.ended = np.zeros(b, bool)
        self.stop = [stop] if isinstance(stop, str) else list(stop or ())
        if self.stop and tokenizer is None:
            raise ValueError("stop: texts can only be found with the tokenizer: tokenizer=...")
        if "" in self.stop:
            raise ValueError("stop: an empty text ends everything; expected at least a character")
        self.decoders = [StreamDecoder(tokenizer) for _ in range(b)] if self.stop else []
        self.tails = [""] * b

    def after(self, chosen):
        """Take note of the new tokens (b,); True when every row has ended."""
        for i, decoder in enumerate(self.decoders):
            if not self.ended[i]:
                self.ended[i] = self._has_stopped(i, decoder.push(chosen[i]))
        self.ended |= [token in self.eos for token in chosen.tolist()]
        return self.ended.all()

    def _has_stopped(self, i, piece):
        text = self.tails[i] + piece
        self.tails[i] = text[-max(map(len, self.stop)) :]
        return any(stop in text for stop in self.stop)


# --------------------------------------------------------------------------------- beam search


def _beams(job, n, length_penalty):
    """Beam search, a prompt at a time; the results padded to one length."""
    found = [
        _beam_search(job, row[kept], n, length_penalty)
        for row, kept in zip(job.tokens, job.mask, strict=True)
    ]
    longest = max(len(ids) for ids, _ in found)
    ids = np.full((len(found), longest), job.ending.filler)
    logprobs = np.zeros((len(found), longest))
    for i, (row, steps) in enumerate(found):
        ids[i, : len(row)], logprobs[i, : len(row)] = row, steps
    return ids, logprobs


@dataclass
class _Beams:
    """n texts of one length: ids (n, t), the log p of each id (n, t), and of each text (n,)."""

    ids: np.ndarray
    steps: np.ndarray
    scores: np.ndarray

    def __getitem__(self, rows):
        return _Beams(self.ids[rows], self.steps[rows], self.scores[rows])

    def grown(self, logits, rules, prompt):
        """The 2n best continuations by one token, best first, and which text each continues."""
        seen = [prompt | set(text.tolist()) for text in self.ids]
        scores = self.scores[:, None] + _log_softmax(rules.penalised(logits, seen))  # (n, v)
        best = np.argsort(-scores, axis=None, kind="stable")[: 2 * len(scores)]
        parents, picked = np.unravel_index(best, scores.shape)
        own = _log_softmax(logits)[parents, picked]
        ids = np.concatenate([self.ids[parents], picked[:, None]], axis=1)
        steps = np.concatenate([self.steps[parents], own[:, None]], axis=1)
        return _Beams(ids, steps, scores[parents, picked]), parents


def _beam_search(job, prompt, n, length_penalty):
    """The continuation with the greatest log p / length^length_penalty among those looked at.

    Of the 2n best continuations of n unfinished texts those that end are put aside, and the n best
    others go on, until none of these can win any more: log p only falls.
    """
    texts = np.tile(prompt, (n, 1))
    cache = job.model.new_cache(n, len(prompt) + job.count)
    first = np.array([0.0] + [-math.inf] * (n - 1))  # all n are the same text yet
    beams = _Beams(np.zeros((n, 0), np.int64), np.zeros((n, 0)), first)
    finished = [(-math.inf, beams.ids[0], beams.steps[0])]
    for length in range(1, job.count + 1):
        logits = _read(job.model, cache, texts, np.ones(texts.shape, bool))[:, -1]
        beams, parents = beams.grown(logits.numpy(), job.rules, set(prompt.tolist()))
        over = np.isin(beams.ids[:, -1], job.ending.eos) | (length == job.count)
        worth = beams.scores / length**length_penalty
        finished += [(worth[i], beams.ids[i], beams.steps[i]) for i in np.flatnonzero(over[:n])]
        finished = sorted(finished, key=lambda one: -one[0])[:n]
        kept = np.flatnonzero(~over)[:n]
        hope = max(
            (_hope(s, length, job.count, length_penalty) for s in beams.scores[kept]), default=0
        )
        if not len(kept) or (len(finished) == n and finished[-1][0] >= hope):
            break
        padded = np.resize(kept, n)  # fewer than n can be left: the rest are copies out of the race
        beams = beams[padded]
        beams.scores[len(kept) :] = -math.inf
        cache = cache.fork(parents[padded])
        texts = np.concatenate([np.tile(prompt, (n, 1)), beams.ids], axis=1)
    return finished[0][1:]


def _hope(score, length, count, length_penalty):
    """What an unfinished text can be worth at best: if it ended at the next or the last place."""
    return max(score / n**length_penalty for n in (min(length + 1, count), count))


# ------------------------------------------------------------------------- speculative decoding

GUESSES = 4  # tokens that the draft is ahead


def _speculate(job, draft):
    """The draft guesses some tokens, the model judges them all in one call.

    A guess x from the draft's q is kept with probability min(1, p(x) / q(x)); the first one that
    is not is replaced by a draw from max(p - q, 0), normed. What comes out is distributed as p.
    Leviathan, Kalman & Matias 2023 (arXiv:2211.17192), algorithm 1.
    """
    if len(job.tokens) != 1:
        raise ValueError(f"draft: one prompt at a time, got {len(job.tokens)}")
    rng = job.rng or np.random.default_rng(0)  # greedy decoding draws nothing that matters
    text = job.tokens[0][job.mask[0]].tolist()
    begin, logprobs = len(text), []
    draft_cache = draft.new_cache(1, len(text) + job.count)
    while len(text) - begin < job.count and not job.ending.ended.all():
        ahead = min(GUESSES, job.count - (len(text) - begin) - 1)
        guesses, q = _guess(draft, draft_cache, text, ahead, job.rules, rng)
        logits = _read_text(job.model, job.cache, text + guesses, last=ahead + 1)
        p = [
            job.rules.probabilities(logits[i : i + 1], [set(text + guesses[:i])])[0]
            for i in range(ahead + 1)
        ]
        for i, token in enumerate(_judged(guesses, q, p, rng)):
            text.append(token)
            chosen = np.array([token])
            logprobs.append(_at(_log_softmax(logits[i : i + 1]), chosen)[0])
            job.emit(chosen)
            if job.ending.after(chosen):
                break
        job.cache.truncate(min(job.cache.length, len(text) - 1))
    return np.array([text[begin:]], np.int64).reshape(1, -1), np.array([logprobs]).reshape(1, -1)


def _guess(draft, cache, text, count, rules, rng):
    """`count` tokens that the draft would choose, and the distributions they were drawn from."""
    guesses, q = [], []
    for _ in range(count):
        logits = _read_text(draft, cache, text + guesses, last=1)
        q.append(rules.probabilities(logits, [set(text + guesses)])[0])
        guesses.append(int(draw(q[-1][None], rng)[0]))
    return guesses, q


def _judged(guesses, q, p, rng):
    """The guesses up to the first that is refused, then one token drawn by the model itself."""
    for i, token in enumerate(guesses):
        if rng.random() * q[i][token] >= p[i][token]:
            rest = np.maximum(p[i] - q[i], 0.0)
            return [*guesses[:i], int(draw(rest[None], rng)[0])]
    return [*guesses, int(draw(p[-1][None], rng)[0])]


def _read_text(model, cache, text, last):
    """Logits (last, v) after one text."""
    tokens = np.array([text])
    return _read(model, cache, tokens, np.ones(tokens.shape, bool), last)[0].numpy()


# ------------------------------------------------------------------------------------ arguments


def _prompts(tokens, mask):
    """(b, t) ids and (b, t) bools; a list of lists is padded on the left."""
    if isinstance(tokens, list | tuple) and tokens and isinstance(tokens[0], list | tuple):
        if mask is not None:
            raise ValueError("mask: a list of lists needs none")
        t = max(map(len, tokens))
        mask = np.array([[False] * (t - len(row)) + [True] * len(row) for row in tokens])
        tokens = np.array([[0] * (t - len(row)) + list(row) for row in tokens])
    tokens = np.asarray(to_host(array_of(tokens)) if is_array(array_of(tokens)) else tokens)
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        got = f"shape {tokens.shape}, dtype {tokens.dtype}"
        raise ValueError(f"tokens: got {got}, expected whole numbers (b, t), at least one a row")
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    if mask.shape != tokens.shape:
        raise ValueError(f"mask: got shape {mask.shape}, expected {tokens.shape}")
    if not mask[:, -1].all() or (np.diff(mask.astype(int), axis=1) < 0).any():
        raise ValueError("mask: padding must stand on the left, and every row hold a token")
    return tokens, mask


def _end_tokens(model, eos):
    if eos is None:
        return list(model.config.eos)
    return [int(eos)] if isinstance(eos, int | np.integer) else list(eos)


def _refuse(what, **others):
    """ValueError if any of these is given: it does not go together with `what`."""
    given = [name for name, value in others.items() if value not in (None, 0, 0.0)]
    if given:
        raise ValueError(f"{what}: does not go together with {', '.join(given)}")
