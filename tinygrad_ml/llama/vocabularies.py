"""The tokenizers that models come with, each through the library that defines it.

    tokenizer.json      Hugging Face's                   tokenizers
    tokenizer.model     sentencepiece (Llama 1, 2)       sentencepiece
    tokenizer.model     ranks in base64 (Llama 3)        tiktoken
    .gguf               the file's own: kind "llama"     sentencepiece
                                        kind "gpt2"      tokenizers
    .bin                llama2.c's pieces and scores     sentencepiece

Which of these a file is, is told by its content.
"""

import base64
import json
import struct
from pathlib import Path

from ..io import FormatError, replacing
from .formats import gguf, llama2c
from .formats.bytes import Bytes
from .tokenizer import BPETokenizer, ByteTokenizer, needed

SPACE = "\u2581"  # what sentencepiece writes for a space
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6  # kinds of pieces, in sentencepiece and GGUF


def load_tokenizer(path):
    """The tokenizer of a model folder, of a .gguf, or in a file of its own.

    FileNotFoundError if there is none; FormatError (a ValueError) if it is damaged.
    """
    file = _find(Path(path))
    with file.open("rb") as opened:
        head = opened.read(64)
    if head[:4] == b"GGUF":
        return from_gguf(file)
    if head.lstrip()[:1] in (b"{", b"["):
        return from_json(file)
    if head[:1] == b"\x0a":  # a protobuf's first field: a piece
        return SentencePiece(file.read_bytes(), where=file)
    if _is_rank(head.split(b"\n")[0]):
        return from_ranks(file)
    return from_llama2c(file)


def _find(path):
    """The file that holds the tokenizer of a model."""
    if path.is_dir():
        found = [path / f"tokenizer.{kind}" for kind in ("json", "model", "bin")]
        found = [file for file in found if file.is_file()]
    elif path.is_file() and not gguf.recognises(path) and llama2c.recognises(path):
        found = sorted(path.parent.glob("tok*.bin"))  # beside the weights
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise FileNotFoundError(
            f"tokenizer: there is no {path / 'tokenizer.json' if path.is_dir() else path}"
            + (" (nor tokenizer.model, tokenizer.bin)" if path.is_dir() else "")
            + (" with a tok*.bin beside it" if path.is_file() else "")
        )
    return found[0]


# --------------------------------------------------------------------------- tokenizer.json


def from_json(file):
    """Hugging Face's tokenizer.json, or {"type": "bytes"}."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"tokenizer: {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"tokenizer: {file} holds no JSON object")
    if content.get("type") == "bytes":
        return ByteTokenizer()
    try:
        tokenizer = needed("tokenizers").Tokenizer.from_str(text)
    except ImportError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise FormatError(f"tokenizer: {file}: {error}") from error
    kind = FallbackTokenizer if (content.get("model") or {}).get("byte_fallback") else BPETokenizer
    found = kind(tokenizer)
    begin = tokenizer.encode("").ids  # what its post-processor puts around every text
    found.bos = begin[0] if len(begin) == 1 else None
    return found


class FallbackTokenizer(BPETokenizer):
    """sentencepiece's pieces in a tokenizer.json: U+2581 for a space, <0x0A> for a byte."""

    def token_bytes(self, token):
        piece = None if int(token) in self._specials else self._tokenizer.id_to_token(int(token))
        return b"" if piece is None else piece_bytes(piece)

    def decode(self, ids):
        return _without_first_space(super().decode(ids))


def piece_bytes(piece):
    """What a piece of sentencepiece stands for."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode("utf-8")


def _without_first_space(text):
    """Encoding put one space before the text."""
    return text.removeprefix(" ")


# ------------------------------------------------------------------------------ sentencepiece


class SentencePiece:
    """A sentencepiece model (Kudo & Richardson 2018), from the bytes of its protobuf."""

    def __init__(self, model, *, where="model"):
        library = needed("sentencepiece")
        try:
            self._model = library.SentencePieceProcessor(model_proto=bytes(model))
            self.vocab_size = self._model.vocab_size()
        except RuntimeError as error:
            raise FormatError(f"tokenizer: {where}: no sentencepiece model: {error}") from None
        self._proto = bytes(model)
        bos, eos = self._model.bos_id(), self._model.eos_id()
        self.bos = bos if bos >= 0 else None
        self.eos = (eos,) if eos >= 0 else ()
        ids = range(self.vocab_size)
        self.specials = {self._model.id_to_piece(i): i for i in ids if self._model.is_control(i)}

    def encode(self, text):
        return self._model.encode(text.encode("utf-8", errors="replace").decode())

    def decode(self, ids):
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return _without_first_space(text)

    def token_bytes(self, token):
        token = int(token)
        if not 0 <= token < self.vocab_size or self._model.is_control(token):
            return b""
        if self._model.is_unknown(token):
            return b" \xe2\x81\x87 "  # as the library writes it
        piece = self._model.id_to_piece(token)
        return piece_bytes(piece) if self._model.is_byte(token) else _spaced(piece)

    def save(self, path):
        with replacing(path) as file:
            file.write(self._proto)


def _spaced(piece):
    return piece.replace(SPACE, " ").encode("utf-8")


def sentencepiece_model(pieces, *, bos=1, eos=2, unknown=0, prefix=True):
    """The protobuf of a BPE model with these (piece, score, kind); pieces are bytes of UTF-8.

    sentencepiece_model.proto: pieces = 1 {piece = 1, score = 2, type = 3}; trainer_spec = 2
    {model_type = 3, byte_fallback = 35, unk_id = 40, bos_id = 41, eos_id = 42, pad_id = 43};
    normalizer_spec = 3 {name = 1, add_dummy_prefix = 3, remove_extra_whitespaces = 4}
    """
    out = bytearray()
    for piece, score, kind in pieces:
        entry = _field(1, piece) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        out += _field(1, entry)
    bytes_too = any(kind == BYTE for *_, kind in pieces)
    spec = _number(3, 2) + _number(35, int(bytes_too))  # 2: BPE
    spec += _number(40, unknown) + _number(41, bos) + _number(42, eos) + _number(43, -1)
    rules = _field(1, b"identity") + _number(3, int(prefix)) + _number(4, 0)
    return bytes(out + _field(2, spec) + _field(3, rules))


def _varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _number(field, n):
    return _varint(field << 3) + _varint(n % 2**64)


def _field(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


# --------------------------------------------------------------------------- llama2.c's .bin


def from_llama2c(path):
    """int32 greatest length; then per token float32 score, int32 length, bytes.

    Ids 0, 1, 2 are unknown, begin, end; 3 to 258 the bytes; spaces are written as such.
    """
    file = Bytes(path)
    longest = file.number("i", "the greatest length")
    if not 0 < longest <= file.size:
        file.fail(f"the greatest length is {longest}; is it a tokenizer?")
    pieces, seen = (
        [(b"<unk>", 0.0, UNKNOWN), (b"<s>", 0.0, CONTROL), (b"</s>", 0.0, CONTROL)],
        set(),
    )
    for i in range(file.size):
        if file.at == file.size:
            break
        score, length = file.numbers("<fi", f"token {i}")
        if not 0 <= length <= longest:
            file.fail(f"token {i} is {length} bytes long, of at most {longest}")
        text = file.take(length, f"token {i}").tobytes()
        if i < 3:
            continue
        if i < 259:
            pieces.append((b"<0x%02X>" % (i - 3), 0.0, BYTE))
            continue
        piece = text.replace(b" ", SPACE.encode())
        if not piece or piece in seen or not _is_utf8(piece):
            file.fail(f"token {i} is {text!r}: empty, there before, or no UTF-8")
        seen.add(piece)
        pieces.append((piece, score, NORMAL))
    if len(pieces) < 259:
        file.fail(f"{len(pieces)} tokens, expected all 256 bytes and three more")
    return SentencePiece(sentencepiece_model(pieces), where=path)


def _is_utf8(raw):
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


# -------------------------------------------------------------------------------- GGUF's own


def from_gguf(path):
    """The vocabulary in a GGUF file: of the kind "llama" (sentencepiece) or "gpt2" (byte-level)."""
    metadata, _ = gguf.read_file(path)
    get = lambda name, default=None: metadata.get(f"tokenizer.ggml.{name}", default)
    kind, tokens = get("model"), get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or not tokens:
        raise FormatError(f"tokenizer: {path}: has no list of texts in tokenizer.ggml.tokens")
    pre = get("pre", "default")
    kinds = _column(path, get("token_type"), len(tokens), NORMAL, "token_type")
    ids = {}
    for name in ("bos", "eos", "unknown"):
        ids[name] = get(f"{name}_token_id")
        if ids[name] is not None and not (type(ids[name]) is int and ids[name] < len(tokens)):
            raise FormatError(f"tokenizer: {path}: {name}_token_id is {ids[name]!r}")
    begins = get("add_bos_token", kind == "llama" or pre in LLAMA3_NAMES)
    if kind == "llama":
        scores = _column(path, get("scores"), len(tokens), 0.0, "scores")
        return _gguf_pieces(path, tokens, scores, kinds, ids, get("add_space_prefix", True), begins)
    if kind == "gpt2":
        return _gguf_merges(path, tokens, kinds, get("merges"), pre, ids, begins)
    raise FormatError(
        f"tokenizer: {path}: tokenizer.ggml.model is {kind!r}, expected llama or gpt2"
    )


def _column(path, numbers, count, default, name):
    if numbers is None:
        return [default] * count
    if not hasattr(numbers, "tolist") or len(numbers) != count:
        raise FormatError(f"tokenizer: {path}: tokenizer.ggml.{name} is not {count} numbers")
    return numbers.tolist()


def _gguf_pieces(path, tokens, scores, kinds, ids, prefix, begins):
    begin, end, unknown = (0 if ids[n] is None else ids[n] for n in ("bos", "eos", "unknown"))
    # the library wants exactly one unknown piece, and bos and eos to be control pieces
    kinds = [NORMAL if k == UNKNOWN else k for k in kinds]
    kinds[begin] = kinds[end] = CONTROL
    kinds[unknown] = UNKNOWN
    pieces = [(t.encode(), s, k) for t, s, k in zip(tokens, scores, kinds, strict=True)]
    model = sentencepiece_model(pieces, bos=begin, eos=end, unknown=unknown, prefix=bool(prefix))
    found = SentencePiece(model, where=path)
    found.bos = ids["bos"] if begins else None
    found.eos = () if ids["eos"] is None else (ids["eos"],)
    return found


LLAMA3_NAMES = ("llama-bpe", "llama-v3", "llama3")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gguf_merges(path, tokens, kinds, merges, pre, ids, begins):
    library = needed("tokenizers")
    pairs = [tuple(m.split(" ")) for m in merges or [] if isinstance(m, str)]
    if not isinstance(merges, list) or any(len(p) != 2 for p in pairs) or len(pairs) < len(merges):
        raise FormatError(f"tokenizer: {path}: tokenizer.ggml.merges is no list of pairs")
    steps, level = library.pre_tokenizers, library.pre_tokenizers.ByteLevel
    if pre in ("default", "gpt-2"):
        cut = level(add_prefix_space=False)
    elif pre == "smollm":
        cut = steps.Sequence([steps.Digits(individual_digits=True), level(add_prefix_space=False)])
    elif pre in LLAMA3_NAMES:
        pattern = steps.Split(library.Regex(LLAMA3), "isolated")
        cut = steps.Sequence([pattern, level(add_prefix_space=False, use_regex=False)])
    else:
        known = "default, gpt-2, smollm, llama-bpe"
        raise FormatError(f"tokenizer: {path}: tokenizer.ggml.pre is {pre!r}, expected {known}")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise FormatError(f"tokenizer: {path}: a token comes twice")
    try:
        model = library.models.BPE(vocab, pairs, ignore_merges=pre in LLAMA3_NAMES)
        tokenizer = library.Tokenizer(model)
    except Exception as error:  # the library raises Exception itself
        raise FormatError(f"tokenizer: {path}: {error}") from None
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, library.decoders.ByteLevel()
    pairs = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([t for t, kind in pairs if kind == CONTROL])
    plain = [t for t, kind in pairs if kind == USER]
    tokenizer.add_tokens([library.AddedToken(t, normalized=False) for t in plain])
    found = BPETokenizer(tokenizer)
    found.bos = ids["bos"] if begins else None
    found.eos = () if ids["eos"] is None else (ids["eos"],)
    return found


# -------------------------------------------------------------------------- ranks (Llama 3)


def _is_rank(line):
    token, _, rank = line.partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.strip().isdigit()
    except ValueError:
        return False


def from_ranks(path):
    """tiktoken's text, a line `base64(bytes) rank` for each token, with Llama 3's pattern."""
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        if not _is_rank(line):
            raise FormatError(
                f"tokenizer: {path}: line {number} is {line[:40]!r}, no token and rank"
            )
        ranks[base64.b64decode(token)] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise FormatError(f"tokenizer: {path}: the ranks are not 0 to {len(ranks) - 1}, each once")
    if any(bytes([b]) not in ranks for b in range(256)):
        raise FormatError(f"tokenizer: {path}: not every single byte is a token")
    return RankTokenizer(ranks)


class RankTokenizer:
    """Byte-pair encoding by ranks, as Llama 3 uses it, and 256 special tokens after them.

    https://github.com/meta-llama/llama-models: llama3/tokenizer.py
    """

    def __init__(self, ranks):
        n = len(ranks)
        self.specials = {name: n + i for i, name in enumerate(llama3_specials())}
        library = needed("tiktoken")
        self._encoding = library.Encoding(
            "llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=self.specials
        )
        self._ranks, self.vocab_size = ranks, n + len(self.specials)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self.bos = self.specials["<|begin_of_text|>"]
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.eos = tuple(self.specials[name] for name in ends)

    def encode(self, text):
        return self._encoding.encode_ordinary(text.encode("utf-8", errors="replace").decode())

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token):
        return self._bytes.get(int(token), b"")

    def save(self, path):
        with replacing(path) as file:
            for token, rank in sorted(self._ranks.items(), key=lambda pair: pair[1]):
                file.write(base64.b64encode(token) + b" %d\n" % rank)


def llama3_specials():
    """The 256 special tokens of Llama 3.1 in order; the named ones have the ids of Llama 3."""
    named = {
        0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>", 7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>",
        10: "<|python_tag|>",
    }  # fmt: skip
    spare = iter(range(256))
    return [
        named[i] if i in named else f"<|reserved_special_token_{next(spare)}|>" for i in range(256)
    ]
