"""Text to token ids and back: bytes, or a byte-pair encoding by the `tokenizers` library.

Every tokenizer has

    encode(text) -> list of ids       what is special stays text: a user cannot smuggle in an id
    decode(ids) -> text
    token_bytes(id) -> bytes          of one token; b"" for a special one
    specials                          {text: id} of the special tokens
    vocab_size  bos  eos              bos: what every text begins with, or None;
                                      eos: a tuple of ids that end a text
    save(path)
"""

import codecs
import json
from importlib import import_module

from ..io import replacing

END_OF_TEXT = "<|endoftext|>"


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token, and 256 ends a text."""

    vocab_size = 257
    bos = None
    eos = (256,)

    def __init__(self):
        self.specials = {END_OF_TEXT: 256}

    def encode(self, text):
        return list(text.encode("utf-8", errors="surrogatepass"))

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token):
        return bytes([token]) if 0 <= token < 256 else b""

    def save(self, path):
        with replacing(path) as file:
            file.write(json.dumps({"type": "bytes"}).encode())


class BPETokenizer:
    """A byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019)."""

    def __init__(self, tokenizer):
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a user's text stays text
        self._tokenizer = tokenizer
        self._specials = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        self.specials = {name: i for i, name in self._specials.items()}
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos = None
        self.eos = tuple(i for i, name in self._specials.items() if name == END_OF_TEXT)

    @classmethod
    def train(cls, texts, vocab_size):
        """Learn merges from texts, until there are vocab_size tokens."""
        if vocab_size < 257:
            raise ValueError(f"vocab_size: got {vocab_size}, expected 257 (all bytes) or more")
        library = needed("tokenizers")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(_BYTE_OF),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return cls(tokenizer)

    def encode(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token):
        token = int(token)
        piece = None if token in self._specials else self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if all(letter in _BYTE_OF for letter in piece):
            return bytes(_BYTE_OF[letter] for letter in piece)
        return piece.encode("utf-8")  # an added token, kept as it is written

    def save(self, path):
        with replacing(path) as file:
            file.write(self._tokenizer.to_str().encode("utf-8"))


def _byte_alphabet():
    """{letter: byte} of GPT-2's byte-level vocabulary: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    return letters | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
LETTERS = sorted(_BYTE_OF, key=_BYTE_OF.get)  # LETTERS[b] stands for byte b


def needed(name):
    """The library of that name; ImportError says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this tokenizer needs the {name} library: pip install 'tinygrad_ml[text]'"
        ) from error


class StreamDecoder:
    """Text as its tokens arrive: a character is given out once its last byte is there.

    decoder = StreamDecoder(tokenizer)
    for token in tokens:
        print(decoder.push(token), end="")
    print(decoder.finish())
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token):
        """The text that this token completes; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(int(token)))

    def finish(self):
        """What is left: a replacement character if the last character was never completed."""
        return self._decoder.decode(b"", final=True)
