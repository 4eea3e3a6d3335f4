"""What a user calls a model: a path, a model that was pulled, or a name on the hub."""

import sys

import pytest

from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.llama.pull import resolve


def test_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "1").mkdir(parents=True)
    assert resolve("runs/1") == (tmp_path / "runs" / "1").relative_to(tmp_path)
    assert str(resolve("a model.gguf")) == "a model.gguf"  # the reader says that it is not there


def test_a_model_that_was_not_pulled_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tinygrad-ml pull smollm2"):
        resolve("smollm2")


def test_without_the_hub_s_library_a_name_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface-hub"):
        resolve("someone/some-model")


def test_a_name_on_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "0" * 40
    repository = tmp_path / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    model = Llama(LlamaConfig(20, 8, 1, 1, 8), rng=None)
    model.save_pretrained(repository / "snapshots" / revision)
    found = resolve("someone/some-model")
    assert Llama.from_pretrained(found).config == Llama.from_pretrained(
        repository / "snapshots" / revision).config  # fmt: skip


def test_a_name_that_nobody_has(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="model: there is no runs/9 here, and the Hugging"):
        resolve("runs/9")
