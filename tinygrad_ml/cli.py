"""tinygrad-ml: prepare, train, finetune, generate, chat, pull, eval, estimate, gradcheck.

A command is a function that adds its flags to a parser and returns what to run on them.
"""

import argparse
import ctypes
import sys
from dataclasses import fields
from pathlib import Path

COMMANDS: dict = {}


def command(describe):
    """Decorator: `def name(parser): ...; return run` becomes `tinygrad-ml name`."""

    def register(prepare):
        COMMANDS[prepare.__name__] = (describe, prepare)
        return prepare

    return register


def main(argv=None):
    """Run a command; an error that a user can mend is printed as one message, no traceback."""
    parser = argparse.ArgumentParser(prog="tinygrad-ml", description="LLaMA on numpy or cupy.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (describe, prepare) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=describe, description=describe)
        sub.set_defaults(run=prepare(sub))
    arguments = vars(parser.parse_args(argv))
    arguments.pop("command")
    run = arguments.pop("run")
    _keep_freed_memory()
    try:
        return run(**arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        print(f"tinygrad-ml: {error}", file=sys.stderr)
        sys.exit(1)


def _keep_freed_memory():
    """Ask glibc to keep freed memory: giving it back and fetching it costs a third of a step.

    Only for a process that is ours: the library itself leaves malloc alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: arrays up to 1 GB come from the heap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: of which nothing is given back


# ------------------------------------------------------------------------------------- train


@command("make token ids of texts, once, for train --data")
def prepare(parser):
    add = parser.add_argument
    add("out", metavar="FOLDER", help="where tokens.npy and tokenizer.json go")
    add("--data", required=True, nargs="+", help="text files, or .jsonl with a text field")
    add("--separator", help="what stands between the documents of a text file")
    add("--tokenizer", default="bytes", help="bytes, bpe, or a tokenizer's file or folder")
    add("--vocab-size", type=int, default=2048, help="tokens of --tokenizer bpe (default: 2048)")
    return _prepare


def _prepare(out, data, separator, tokenizer, vocab_size):
    from tqdm import tqdm

    from .llama import BPETokenizer, ByteTokenizer, load_tokenizer
    from .train import data as texts

    documents = [text for file in data for text in texts.documents_of(file, separator)]
    if tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    elif tokenizer == "bpe":
        tokenizer = BPETokenizer.train(documents, vocab_size)
    else:
        tokenizer = load_tokenizer(tokenizer)
    count = texts.prepare(out, documents, tokenizer, lambda x: tqdm(x, unit="document"))
    print(f"{len(documents):,} documents, {count:,} tokens; now: tinygrad-ml train --data {out}")


@command("train a LLaMA from scratch")
def train(parser):
    from .train import Settings

    return _add_run(parser, Settings, _train)


@command("go on training a model on examples or preferences, whole or by an adapter")
def finetune(parser):
    from .train import FinetuneSettings

    return _add_run(parser, FinetuneSettings, _finetune)


def _add_run(parser, kind, work):
    """The flags of a run folder, and one for each field of its settings."""
    parser.add_argument("--out", help="run folder (default: the next free runs/N)")
    parser.add_argument("--resume", action="store_true", help="go on with --out as it was set up")
    parser.add_argument("--force", action="store_true", help="write over what is in --out")
    parser.add_argument("--config", help="TOML file of settings; flags go before it")
    for setting in fields(kind):
        _add_setting(parser, setting)
    return work


def _add_setting(parser, setting):
    """A flag for a field of the settings; absent unless it is given."""
    flag, text = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
    if "default" not in text:
        text += f" (default: {setting.default})"
    if setting.type is bool:
        form = {"action": argparse.BooleanOptionalAction}
    else:
        form = {"type": setting.type, "metavar": setting.type.__name__.upper()}
    parser.add_argument(flag, default=argparse.SUPPRESS, help=text, **form)


def _settings(kind, run, resume, config, given):
    """From the flags, over a file's; or those that the run was begun with."""
    if not resume:
        return kind.from_toml(config, **given) if config else kind(**given)
    if given or config:
        given = sorted(given) or ["config"]
        raise ValueError(f"resume: {run}/run.toml sets {', '.join(given)} already")
    return kind.from_toml(run / "run.toml")


def _train(out, resume, force, config, **given):
    from .train import Settings, Trainer

    run = _run_folder(out, resume, force)
    trainer = Trainer(_settings(Settings, run, resume, config, given), run, resume=resume)
    size = sum(p.size for p in trainer.model.parameters())
    print(f"{size:,} parameters, {len(trainer.train_ids):,} tokens to learn from, into {run}")
    if not resume:
        _show_sample("before", trainer)
    loss = _with_bar(trainer)
    _show_sample("after", trainer)
    _say_where(trainer, f"validation loss {loss:.4f} nats per token")
    prompt = "" if trainer.settings.data else ' --prompt "def "'
    print(f"now try: tinygrad-ml generate {run}{prompt}")


def _finetune(out, resume, force, config, **given):
    from .train import Finetuner, FinetuneSettings

    run = _run_folder(out, resume, force)
    tuner = Finetuner(_settings(FinetuneSettings, run, resume, config, given), run, resume=resume)
    size = sum(p.size for p in tuner.named.values())
    print(f"{size:,} parameters trained, {len(tuner.rows):,} rows of examples, into {run}")
    if not resume:
        print(f"validation loss {tuner.evaluate():.4f} before")
    loss = _with_bar(tuner)
    _say_where(tuner, f"validation loss {loss:.4f}")


def _with_bar(run):
    from tqdm import tqdm

    with tqdm(total=run.steps, initial=run.step, unit="step", mininterval=0.5) as bar:
        return run.train(bar)


def _say_where(run, result):
    drawn = run.plot()
    print(f"{result}; loss curve: ", end="")
    print(run.folder / "loss.png" if drawn else "pip install 'tinygrad_ml[plot]' to have one drawn")


def _run_folder(out, resume, force):
    """Where the run goes; ValueError if something is there that must not be lost."""
    if out is None:
        if resume:
            raise ValueError("resume: which run? give --out FOLDER")
        number = 1
        while (Path("runs") / str(number)).exists():
            number += 1
        return Path("runs") / str(number)
    run = Path(out)
    if resume:
        if not (run / "run.toml").is_file():
            raise ValueError(f"resume: {run} is no run folder: it has no run.toml")
    elif run.exists() and not run.is_dir():
        raise ValueError(f"out: {run} is a file")
    elif run.is_dir() and any(run.iterdir()) and not force:
        raise ValueError(
            f"out: {run} is not empty; --resume goes on with it, --force writes over it"
        )
    return run


def _show_sample(when, trainer):
    prompt, text = trainer.sample()
    print(f"--- {when} training: {prompt!r} goes on")
    print(text)
    print("---")


# ---------------------------------------------------------------------------------- generate


@command("continue a text with a trained model")
def generate(parser):
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, model folder or file, or a pulled name")
    add("--tokenizer", help="its file, if it is not in or beside the model")
    add("--prompt", default="", help="the text to go on from")
    add("--max-new-tokens", type=int, default=200, help="how many tokens (default: 200)")
    add("--temperature", type=float, default=0.8, help="0: the likeliest token (default: 0.8)")
    add("--top-k", type=int, help="only the k likeliest tokens")
    add("--top-p", type=float, default=0.95, help="only tokens that add up to this (default: 0.95)")
    add("--min-p", type=float, help="only tokens this likely, relative to the likeliest")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less")
    add("--stop", action="append", help="text to stop at; may be given several times")
    add("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    add("--device", default="cpu", help="cpu or cuda")
    return _add_adapter(parser, _generate)


def _add_adapter(parser, work):
    """A flag for an adapter; `work` gets as `adapt` what puts it on the model."""
    parser.add_argument("--adapter", help="folder of an adapter, as finetune --method writes it")

    def run(adapter, **arguments):
        from . import peft

        adapt = (lambda model: peft.load(model, adapter)) if adapter else (lambda model: model)
        return work(adapt=adapt, **arguments)

    return run


def _generate(model, tokenizer, prompt, max_new_tokens, seed, device, adapt, **rules):
    import numpy as np

    from .llama import Llama, StreamDecoder, load_tokenizer
    from .llama.pull import resolve

    model = resolve(model)
    tokenizer = load_tokenizer(tokenizer or model)
    model = adapt(Llama.from_pretrained(model, device=device))
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    ids = begin + tokenizer.encode(prompt) or _beginning(tokenizer)
    decoder = StreamDecoder(tokenizer)
    print(prompt, end="", flush=True)
    model.generate(
        [ids],
        max_new_tokens,
        tokenizer=tokenizer,
        rng=np.random.default_rng(seed),
        stream=lambda token: print(decoder.push(token), end="", flush=True),
        window=model.config.max_length,
        **rules,
    )
    print(decoder.finish())


def _beginning(tokenizer):
    """What stands before a text that has no prompt and begins with nothing: an id."""
    return list(tokenizer.eos[:1]) or [0]


# ------------------------------------------------------------------------------ chat, pull, eval


@command("talk with a model in the terminal")
def chat(parser):
    from .llama import chat

    chat.add_arguments(parser)
    return _add_adapter(parser, chat.run)


@command("download a small chat model")
def pull(parser):
    from .llama import pull

    pull.add_arguments(parser)
    return pull.run


@command("measure a model's perplexity on a text")
def eval(parser):
    from .llama import evaluate

    evaluate.add_arguments(parser)
    return _add_adapter(parser, evaluate.run)


# ---------------------------------------------------------------------------------- estimate


@command("say what memory a training step takes, before it is spent")
def estimate(parser):
    from .peft import memory

    memory.add_arguments(parser)
    return memory.run


# --------------------------------------------------------------------------------- gradcheck


@command("check the gradients of the engine's operations")
def gradcheck(parser):
    parser.add_argument("ops", nargs="*", metavar="OP", help="which ones (default: all)")
    return _gradcheck


def _gradcheck(ops):
    from .testing import gradcheck

    sys.exit(gradcheck.main(ops))
