"""The command line, run as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_ml as tg
from tinygrad_ml import cli

CHECKOUT = str(Path(tg.__file__).parent.parent)
TINY = [
    *("--dim", "16", "--layers", "1", "--heads", "2", "--context", "16", "--batch-size", "4"),
    *("--steps", "8", "--warmup", "2", "--eval-every", "4", "--save-every", "4"),
    *("--sample-tokens", "8"),
]


def run(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": CHECKOUT, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tinygrad_ml", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text, and a run trained on it; the finished process."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    return folder, run("train", "--data", "text.txt", *TINY, folder=folder)


def test_train_makes_a_run_and_shows_what_it_does(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "before training" in done.stdout
    assert "after training" in done.stdout
    assert re.search(r"loss=\d.*tok/s", done.stderr)
    names = {x.name for x in (folder / "runs" / "1").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "run.toml"}
    assert names >= {"metrics.jsonl", "state"}


def test_generate_goes_on_from_the_prompt_and_a_seed_reproduces(trained):
    folder, _ = trained
    same = [
        run("generate", "runs/1", "--prompt", "the c", "--max-new-tokens", "20", folder=folder)
        for _ in range(2)
    ]
    assert same[0].returncode == 0, same[0].stderr
    assert same[0].stdout == same[1].stdout
    assert same[0].stdout.startswith("the c")


def test_an_existing_run_is_neither_overwritten_nor_doubted(trained):
    folder, _ = trained
    before = (folder / "runs/1/model.safetensors").read_bytes()
    done = run("train", "--data", "text.txt", "--out", "runs/1", *TINY, folder=folder)
    assert done.returncode == 1
    assert "--resume" in done.stderr
    assert "--force" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("train", "--out", "runs/1", "--resume", folder=folder)  # it is finished already
    assert done.returncode == 0, done.stderr
    assert (folder / "runs/1/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "missing.txt"], "missing.txt"),
        (["train", "--dim", "30"], "n_heads"),
        (["train", "--resume"], "--out"),
        (["train", "--out", "nowhere", "--resume"], "run.toml"),
        (["generate", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command():
    done = run("--help", folder=CHECKOUT)
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_prepare_train_finetune_and_generate_with_the_adapter(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat. " * 30 + "<|end|>" + "a dog. " * 60)
    (tmp_path / "small.toml").write_text("dim = 16\nlayers = 1\nheads = 2\nsteps = 40\n")
    line = '{"prompt": "the c", "completion": "ow said moo"}\n'
    (tmp_path / "lines.jsonl").write_text(line * 12)
    for arguments, told in [
        (["prepare", "ids", "--data", "a.txt", "--separator", "<|end|>"], "2 documents, "),
        (["train", "--data", "ids", "--config", "small.toml", "--steps", "8", "--context", "32",
          "--documents", "--out", "base"], "validation loss"),
        (["finetune", "--model", "base", "--data", "lines.jsonl", "--method", "lora",
          "--method-options", "rank=2", "--context", "24", "--epochs", "2", "--out", "tuned"],
         " before\nvalidation loss "),
        (["generate", "base", "--adapter", "tuned", "--prompt", "the c", "--max-new-tokens", "4"],
         "the c"),
        (["eval", "base", "--adapter", "tuned", "--data", "a.txt", "--max-tokens", "100"],
         "perplexity"),
    ]:  # fmt: skip
        done = run(*arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
    assert "steps = 8" in (tmp_path / "base" / "run.toml").read_text()
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()
