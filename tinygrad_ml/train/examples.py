"""Examples to fine-tune on: lines of JSON, made into ids of which some are learnt.

{"prompt": text, "completion": text}         the completion is learnt
{"messages": [{"role": ..., "content": ...}]}   what the assistant says is learnt
{"prompt": text or messages, "chosen": text, "rejected": text}     for preferences
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..llama import chat
from .data import read_text

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """ids (n,) and loss_mask (n,): whether each is learnt; the prompt's are not."""

    ids: np.ndarray
    loss_mask: np.ndarray

    def shifted(self):
        """Tokens (n - 1,) and the targets, one token further, -100 where nothing is learnt."""
        return self.ids[:-1], np.where(self.loss_mask[1:], self.ids[1:], IGNORED)


def read_lines(path, kind):
    """The lines of a .jsonl file through `kind`, which takes a dict; ValueError names the line."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(kind(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            told = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, line {number}: {told}") from error
    if len(found) < 2:
        raise ValueError(f"{path}: got {len(found)} examples, expected 2 at least: one held out")
    return found


class Writer:
    """Makes ids of examples, by a tokenizer and the model's chat template."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = Path(model), tokenizer

    @cached_property
    def template(self):
        """The model's; looked for when there is a conversation, since plain text needs none."""
        return chat.template_of(self.model, self.tokenizer)

    def supervised(self, line):
        """An Example of a line with messages, or with prompt and completion."""
        if "messages" in line:
            return self.conversation(line["messages"])
        return self.answered(line["prompt"], line["completion"])

    def answered(self, prompt, answer):
        """prompt, answer, end token; prompt is text or messages."""
        if not isinstance(answer, str):
            raise TypeError(f"answer: got {type(answer).__name__}, expected text")
        if not isinstance(prompt, str):
            return self.conversation([*prompt, {"role": "assistant", "content": answer}])
        begin = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        before = begin + self.tokenizer.encode(prompt) or list(self.tokenizer.eos[:1])
        after = self.tokenizer.encode(answer) + list(self.tokenizer.eos[:1])
        return _example(before + after, [(len(before), len(before) + len(after))])

    def conversation(self, messages):
        """Learnt are the assistant's turns, each to the token that ends it."""
        ids, spans = [], []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = chat.encode(messages[:i], self.template, self.tokenizer)
            whole = chat.encode(messages[: i + 1], self.template, self.tokenizer)
            if whole[: len(start)] != start or start[: len(ids)] != ids:
                raise ValueError("messages: the chat template rewrites earlier turns")
            ids = whole[: self._end_of_turn(whole, len(start))]
            spans.append((len(start), len(ids)))
        if not spans:
            raise ValueError("messages: no turn of the assistant, nothing to learn")
        return _example(ids, spans)

    def preference(self, line):
        """(chosen, rejected) Examples. The end token, which both have, is not counted.

        Grattafiori et al. 2024, section 4.1.4: counted in both it is pulled two ways at once.
        """
        pair = [self.answered(line["prompt"], line[name]) for name in ("chosen", "rejected")]
        for example in pair:
            example.loss_mask[-1] = False
            if not example.loss_mask.any():
                raise ValueError("an answer is empty")
        return tuple(pair)

    def _end_of_turn(self, ids, start):
        special = set(self.tokenizer.specials.values())
        for i in range(start, len(ids)):
            if ids[i] in special:
                return i + 1
        raise ValueError("messages: the chat template ends a turn with no special token")


def _example(ids, spans):
    mask = np.zeros(len(ids), bool)
    for start, end in spans:
        mask[start:end] = True
    return Example(np.array(ids), mask)


# --------------------------------------------------------------------------------- into batches


def padded(examples, context):
    """{"tokens", "targets", "mask"}, each (b, t): one example a row, padded on the right."""
    rows = [_cut(example, context).shifted() for example in examples]
    t = max(len(tokens) for tokens, _ in rows)
    fill = lambda x, value: np.pad(x, (0, t - len(x)), constant_values=value)
    return {
        "tokens": np.stack([fill(tokens, 0) for tokens, _ in rows]),
        "targets": np.stack([fill(targets, IGNORED) for _, targets in rows]),
        "mask": np.stack([fill(np.ones(len(tokens), bool), False) for tokens, _ in rows]),
    }


def pack(examples, context):
    """{"tokens", "targets", "segments"}, each (n, context): short examples share a row.

    Each goes into the first row that has room; attention stays within its segment.
    """
    rows: list[list] = []
    room: list[int] = []
    for example in examples:
        tokens, targets = _cut(example, context).shifted()
        at = next((i for i, left in enumerate(room) if left >= len(tokens)), None)
        if at is None:
            at = len(rows)
            rows.append([])
            room.append(context)
        rows[at].append((tokens, targets))
        room[at] -= len(tokens)
    return {
        "tokens": np.stack([_joined([x for x, _ in row], context, 0) for row in rows]),
        "targets": np.stack([_joined([y for _, y in row], context, IGNORED) for row in rows]),
        "segments": np.stack(
            [_joined([np.full(len(x), i) for i, (x, _) in enumerate(row)], context, -1)
             for row in rows]
        ),
    }  # fmt: skip


def _joined(parts, length, fill):
    joined = np.concatenate(parts)
    return np.pad(joined, (0, length - len(joined)), constant_values=fill)


def _cut(example, context):
    """The first context + 1 ids; ValueError if nothing that is learnt is among them."""
    if len(example.ids) <= context + 1:
        return example
    if not example.loss_mask[: context + 1].any():
        raise ValueError(f"an example's prompt fills the context of {context}; give more --context")
    return Example(example.ids[: context + 1], example.loss_mask[: context + 1])
