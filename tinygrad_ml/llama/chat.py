"""`tinygrad-ml chat`: a conversation, by the template that the model was trained with.

A conversation is a list of {"role": "system" | "user" | "assistant", "content": text}. A template
writes it as one text in which special tokens mark the turns. Only the template's special tokens
count: what somebody typed stays text, though it may look like one.
"""

import json
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from .formats import gguf
from .pull import resolve
from .tokenizer import StreamDecoder

# ------------------------------------------------------------------------------------ templates
#
# template(messages, specials) -> text that ends where the assistant's answer begins


def llama2(messages):
    """Llama 2: <s>[INST] <<SYS>> ... question [/INST] answer </s>      Touvron et al. 2023"""
    messages, system = list(messages), ""
    if messages and messages[0]["role"] == "system":
        system = f"<<SYS>>\n{messages.pop(0)['content'].strip()}\n<</SYS>>\n\n"
    text = ""
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "user":
            text += f"<s>[INST] {system}{content} [/INST]"
            system = ""
        else:
            text += f" {content} </s>"
    return text


def llama3(messages):
    """Llama 3 and 3.1: a header with the role, the content, <|eot_id|>."""
    turn = "<|start_header_id|>{}<|end_header_id|>\n\n{}"
    turns = [turn.format(m["role"], m["content"].strip()) + "<|eot_id|>" for m in messages]
    return "<|begin_of_text|>" + "".join(turns) + turn.format("assistant", "")


def chatml(messages):
    """ChatML: <|im_start|>role, the content, <|im_end|>."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def jinja(source, bos="", eos=""):
    """The template in a model's file, in jinja2's sandbox: it can write text and nothing else."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError(
            "the model's chat template needs jinja2: pip install 'tinygrad_ml[text]'"
        ) from error

    def refuse(message):
        raise TemplateError(message)

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    world.globals["raise_exception"] = refuse

    def template(messages):
        try:
            return world.from_string(source).render(
                messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
            )
        except TemplateError as error:
            raise ValueError(f"chat template: {error}") from error

    return template


def template_of(path, tokenizer):
    """The model's own template, or the one that its special tokens speak of.

    ValueError if nothing tells how to talk with it.
    """
    source = _own_template(Path(path))
    if source is not None:
        return jinja(source, *_ends(Path(path), tokenizer))
    if "<|start_header_id|>" in tokenizer.specials:
        return llama3
    if "<|im_start|>" in tokenizer.specials:
        return chatml
    if {"<s>", "</s>"} <= tokenizer.specials.keys() and tokenizer.vocab_size >= 32000:
        return llama2
    raise ValueError(
        f"chat: {path} has no chat template and no token that marks a turn; was it trained to "
        "talk? tinygrad-ml generate goes on with a text"
    )


def _ends(path, tokenizer):
    """How bos and eos are written."""
    settings = _settings(path)
    names = {i: name for name, i in tokenizer.specials.items()}
    found = []
    for key, token in (
        ("bos_token", tokenizer.bos),
        ("eos_token", next(iter(tokenizer.eos), None)),
    ):
        told = settings.get(key)
        told = told.get("content") if isinstance(told, dict) else told
        found.append(told if isinstance(told, str) else names.get(token, ""))
    return found


def _settings(path):
    """tokenizer_config.json, if there is one."""
    file = path / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _own_template(path):
    """The text of the Jinja template in the model's files, or None."""
    if gguf.recognises(path):
        found = gguf.read_file(path)[0].get("tokenizer.chat_template")
    elif (path / "chat_template.jinja").is_file():
        found = (path / "chat_template.jinja").read_text(encoding="utf-8")
    else:
        found = _settings(path).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {x.get("name"): x.get("template") for x in found if isinstance(x, dict)}
            found = named.get("default")
    return found if isinstance(found, str) else None


def encode(messages, template, tokenizer):
    """The ids of a conversation, up to where the answer begins.

    The contents are marked inside whatever looks like a special token in them, so that the marks
    tell the template's tokens from what somebody typed; then the marks go.
    """
    names = sorted((n for n in tokenizer.specials if n), key=len, reverse=True)
    typed = "".join(m["content"] for m in messages)
    mark = next(chr(c) for c in range(0xFDD0, 0xFDF0) if chr(c) not in typed)  # no characters
    pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")
    masked = lambda text: pattern.sub(lambda m: m[0][:1] + mark + m[0][1:], text)
    text = template([m | {"content": masked(m["content"])} for m in messages])
    ids, at = [], 0
    for found in pattern.finditer(text):
        ids += _plain(text[at : found.start()], mark, tokenizer)
        ids.append(tokenizer.specials[found[0]])
        at = found.end()
    ids += _plain(text[at:], mark, tokenizer)
    begins = tokenizer.bos is not None and ids[:1] != [tokenizer.bos]
    return [tokenizer.bos, *ids] if begins and template is llama2 else ids


def _plain(text, mark, tokenizer):
    text = text.replace(mark, "")
    return tokenizer.encode(text) if text else []


# --------------------------------------------------------------------------------- conversation


class Conversation:
    """What was said so far, and the cache of it: an answer costs its own and the new question's
    tokens only."""

    def __init__(self, model, tokenizer, template, system=None):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.messages = [{"role": "system", "content": system}] if system else []
        self._cache = model.new_cache(1)

    def ask(self, text, max_new_tokens=512, *, show=lambda piece: None, **rules):
        """The answer to a text, both added to the messages; show gets it piece by piece.

        A KeyboardInterrupt ends the answer where it is, and what was said of it stays.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = encode(asked, self.template, self.tokenizer)
        room = self.model.config.max_length - len(ids)
        if room < 1:
            raise ValueError(
                f"chat: {len(ids)} tokens, the model's context has {self.model.config.max_length}"
            )
        ends = {*self.tokenizer.eos, *self.model.config.eos}
        decoder, said = StreamDecoder(self.tokenizer), []

        def hear(token):
            if token not in ends:
                said.append(decoder.push(token))
                show(said[-1])

        try:
            self.model.generate(
                [ids],
                min(max_new_tokens, room),
                eos=sorted(ends),
                cache=self._cache,
                stream=hear,
                **rules,
            )
        except KeyboardInterrupt:
            self._cache = self.model.new_cache(1)  # it may have been stopped half-way in a layer
        said.append(decoder.finish())
        show(said[-1])
        answer = "".join(said)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer


# ------------------------------------------------------------------------------ the command line


def add_arguments(parser):
    add = parser.add_argument
    add("model", nargs="?", default="smollm2", help="path, or a pulled name (default: smollm2)")
    add("--tokenizer", help="its file, if it is not in or beside the model")
    add("--system", help="what the model is told before the conversation")
    add("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    add("--temperature", type=float, default=0.2, help="0: the likeliest token (default: 0.2)")
    add("--top-p", type=float, default=0.9, help="only tokens that add up to this (default: 0.9)")
    add("--repetition-penalty", type=float, default=1.1, help="above 1: repeat less (default: 1.1)")
    add("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add(
        "--quantized",
        choices=["keep", "dense"],
        default="keep",
        help="dense: five times the memory, half the speed",
    )
    add("--device", default="cpu", help="cpu or cuda")


def run(model, tokenizer, system, seed, quantized, device, adapt, **rules):
    """Talk with the model that `adapt` makes of the loaded one."""
    import numpy as np

    from .model import Llama
    from .vocabularies import load_tokenizer

    path = resolve(model)
    tokenizer = load_tokenizer(tokenizer or path)
    template = template_of(path, tokenizer)
    loaded = adapt(Llama.from_pretrained(path, device=device, quantized=quantized))
    conversation = Conversation(loaded, tokenizer, template, system)
    print("Ctrl-C stops an answer, Ctrl-D ends the conversation, /new begins another.")
    talk(conversation, rng=np.random.default_rng(seed), **rules)


def talk(conversation, **rules):
    """Question and answer in the terminal until the end of the input."""
    _line_editing()
    system = [m for m in conversation.messages if m["role"] == "system"]
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # of a line that was begun
            print()
            continue
        if text == "/new":
            conversation.messages = system
        elif text:
            conversation.ask(text, show=lambda piece: print(piece, end="", flush=True), **rules)
            print()


def _line_editing():
    """Arrow keys and a history of what was typed, where Python has readline."""
    with suppress(ImportError):
        import_module("readline")
