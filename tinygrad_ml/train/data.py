"""Text to learn from, as one long line of token ids; a prepared folder holds such a line.

tokens.npy  tokenizer.json      the ids, memory-mapped when they are read, and what made them
"""

import json
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

from ..io import FormatError, replacing

STANDARD_LIBRARY_BYTES = 4_000_000


def read_corpus(path=None):
    """The documents of a corpus, a list of texts: a text file's one, or the standard library's."""
    return [read_text(path)] if path else standard_library()


def standard_library(limit=STANDARD_LIBRARY_BYTES):
    """Sources of the running Python's standard library, up to `limit` bytes: always the same.

    The modules themselves, without tests and without the tables of the encodings.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "__pycache__"}
    files = [
        file
        for file in sorted(root.rglob("*.py"))
        if not skipped.intersection(file.relative_to(root).parts)
    ]
    order = np.random.default_rng(0).permutation(len(files))  # the end is as mixed as the start
    documents, size = [], 0
    for i in order:
        try:
            text = files[i].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        documents.append(text)
        size += len(text)
        if size >= limit:
            break
    if not documents:
        raise FileNotFoundError(f"data: no sources of the standard library in {root}; use --data")
    return documents


def read_text(path):
    """A UTF-8 text file; ValueError for one that is empty or binary."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}")
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"data: {path} is empty")
    if b"\0" in raw:
        raise ValueError(f"data: {path} is binary (byte 0 at offset {raw.index(0)}), not text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is not UTF-8 text: {error}") from error


def documents_of(path, separator=None):
    """The documents of a file: a .jsonl's "text" fields, a text's parts between separators."""
    text = read_text(path)
    if Path(path).suffix == ".jsonl":
        return [_field(path, n, line) for n, line in enumerate(text.splitlines(), 1) if line]
    parts = text.split(separator) if separator else [text]
    return [part.strip("\n") for part in parts if part.strip()]


def _field(path, number, line):
    try:
        return json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: {error!r}; expected a 'text' field") from error


def prepare(folder, documents, tokenizer, progress=lambda documents: documents):
    """Write tokens.npy and tokenizer.json; returns the number of tokens.

    Each document ends with the tokenizer's end token. The ids of one are in memory at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    with tempfile.TemporaryFile(dir=folder) as raw:
        for document in progress(documents):
            raw.write(tokenize([document], tokenizer).astype(dtype).tobytes())
        raw.flush()
        if not raw.tell():
            raise ValueError("data: no documents")
        ids = np.memmap(raw, dtype, mode="r")
        with replacing(folder / "tokens.npy") as file:
            np.save(file, ids)
    tokenizer.save(folder / "tokenizer.json")
    return len(ids)


def read_prepared(folder, vocab_size):
    """The ids of a prepared folder, memory-mapped; FormatError if they are none."""
    file = Path(folder) / "tokens.npy"
    if not file.is_file():
        raise FileNotFoundError(f"data: {folder} has no tokens.npy; tinygrad-ml prepare makes one")
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"data: {file} is damaged: {error}") from error
    if ids.ndim != 1 or ids.dtype.kind != "u":
        raise FormatError(f"data: {file} holds {ids.dtype} {ids.shape}, expected token ids (n,)")
    if ids.size and ids.max() >= vocab_size:
        raise FormatError(f"data: {file} has token {ids.max()}, its tokenizer {vocab_size} tokens")
    return ids


def segments(tokens, ends):
    """(b, t) numbers of the documents: an end token opens the next one, as its first token."""
    return np.cumsum(np.isin(tokens, ends), axis=1)


def tokenize(documents, tokenizer):
    """(n,) ids: the documents one after the other, each with its end token."""
    end = list(tokenizer.eos[:1])
    parts = [np.array(tokenizer.encode(text) + end, np.int32) for text in documents]
    return np.concatenate(parts)


def split(ids, context, fraction):
    """(training ids, validation ids): the last `fraction` is held out, a context at least."""
    held_out = max(int(len(ids) * fraction), context + 1)
    if len(ids) - held_out < context + 1:
        raise ValueError(
            f"data: {len(ids)} tokens are too few for a context of {context}: expected at least "
            f"{2 * (context + 1)}; give more text or a smaller --context"
        )
    return ids[:-held_out], ids[-held_out:]


def draw_starts(ids, batch_size, context, rng):
    """(b,) random places that have a context's tokens and one more."""
    return rng.integers(0, len(ids) - context, batch_size)


def batch_at(ids, starts, context):
    """Tokens (b, t) that begin at `starts`, and the targets, one token further."""
    windows = ids[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


def in_order(ids, batch_size, context, limit):
    """The first `limit` batches of (tokens, targets) that cover the ids side by side, in order."""
    count = (len(ids) - 1) // context
    for i in range(0, min(count, limit * batch_size), batch_size):
        places = np.arange(i, min(i + batch_size, count))[:, None] * context
        windows = ids[places + np.arange(context + 1)].astype(np.int64)
        yield windows[:, :-1], windows[:, 1:]
