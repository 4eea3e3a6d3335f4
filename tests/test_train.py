"""Training: it learns, reproduces, resumes to the same bits, refuses bad text before it writes."""

import json
import math

import numpy as np
import pytest

from tinygrad_ml import io
from tinygrad_ml.llama import Llama, load_tokenizer
from tinygrad_ml.train import Settings, Trainer, data, read_metrics

TINY = {
    "dim": 16,
    "layers": 1,
    "heads": 2,
    "context": 16,
    "batch_size": 4,
    "steps": 12,
    "warmup": 4,
    "eval_every": 6,
    "save_every": 4,
    "sample_tokens": 4,
}


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 40)
    return lambda **changes: Settings(**{"data": str(text)} | TINY | changes)


def weights(run):
    return {name: x.copy() for name, x in io.load(run / "model.safetensors").items()}


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_it_learns_the_text(settings, tmp_path):
    trainer = Trainer(settings(steps=150, lr=1e-2, save_every=150), tmp_path / "run")
    before = trainer.evaluate()
    assert before == pytest.approx(math.log(257), abs=0.1)  # it knows nothing yet
    assert trainer.train() < 1.5
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert len(losses) == 150
    assert losses[-1] < losses[0] / 3


def test_the_run_folder_is_a_model_folder(settings, tmp_path):
    trainer = Trainer(settings(), tmp_path / "run")
    trainer.train()
    model, tokenizer = Llama.from_pretrained(tmp_path / "run"), load_tokenizer(tmp_path / "run")
    ids = [tokenizer.encode("the cat")]
    np.testing.assert_array_equal(model(ids).numpy(), trainer.model(ids).numpy())
    assert Settings.from_toml(tmp_path / "run" / "run.toml") == settings()


def test_a_seed_reproduces_a_run(settings, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Trainer(settings(seed=seed), tmp_path / name).train()
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    name = "model.norm.weight"
    assert (weights(tmp_path / "a")[name] != weights(tmp_path / "c")[name]).any()


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 7, 11])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(settings, tmp_path, after):
    Trainer(settings(), tmp_path / "whole").train()
    stopped = Trainer(settings(), tmp_path / "stopped")
    step = stopped.train_step

    def until_then():
        if stopped.step == after:
            raise Stop
        return step()

    stopped.train_step = until_then
    with pytest.raises(Stop):
        stopped.train()
    resumed = Trainer(settings(), tmp_path / "stopped", resume=True)
    assert resumed.step == after // 4 * 4
    resumed.train()
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    losses = [
        [(x["step"], x["loss"], x.get("val_loss")) for x in read_metrics(tmp_path / name)]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def test_only_the_last_two_states_are_kept(settings, tmp_path):
    Trainer(settings(), tmp_path / "run").train()
    state = tmp_path / "run" / "state"
    assert sorted(x.name for x in state.iterdir()) == ["latest", "step-12", "step-8"]
    assert (state / "latest").read_text() == "step-12"


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_keeps_the_state(settings, tmp_path):
    trainer = Trainer(settings(), tmp_path / "run")
    trainer.train_step()
    good = weights(tmp_path / "run")
    p = next(trainer.model.parameters())
    p.assign_(np.full(p.shape, np.nan, p.dtype))
    with pytest.raises(FloatingPointError, match=r"step 1.*step-0"):
        trainer.train_step()
    assert_same_bits(weights(tmp_path / "run"), good)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"abc\0def", "binary"),
        (b"\xff\xfe" * 50, "UTF-8"),
        (b"short", "too few"),
    ],
)
def test_bad_text_is_refused_before_anything_is_written(settings, tmp_path, content, message):
    file = tmp_path / "bad"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Trainer(settings(data=str(file)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_standard_library_is_always_the_same_text():
    one, two = (data.standard_library(limit=300_000) for _ in range(2))
    assert one == two
    assert 300_000 <= sum(map(len, one)) < 2_000_000
    assert any('"""' in text and "def " in text for text in one)


def test_batches_are_pieces_of_the_text_and_targets_are_one_further():
    ids = np.arange(100)
    tokens, targets = data.draw_batch(ids, 5, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)
    last = {
        int(data.draw_batch(ids[:10], 1, 8, np.random.default_rng(i))[1][0, -1]) for i in range(20)
    }
    assert last == {8, 9}  # every place is drawn, the last one too


def test_validation_covers_the_text_once_and_in_order():
    batches = list(data.in_order(np.arange(50), 2, 8, limit=100))
    np.testing.assert_array_equal(np.concatenate([x.ravel() for x, _ in batches]), np.arange(48))
    np.testing.assert_array_equal(np.concatenate([y.ravel() for _, y in batches]), np.arange(1, 49))


def test_a_metrics_line_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="n_heads"):
        Settings(dim=30, heads=4)
    with pytest.raises(ValueError, match="steps"):
        Settings(steps=0)
    with pytest.raises(ValueError, match="tokenizer"):
        Settings(tokenizer="words")
