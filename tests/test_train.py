"""Training: it learns, reproduces, resumes to the same bits, refuses bad text before it writes."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from tinygrad_ml import io
from tinygrad_ml.llama import ByteTokenizer, Llama, load_tokenizer
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


def test_a_finished_run_is_taken_up_with_its_validation_loss(settings, tmp_path):
    loss = Trainer(settings(), tmp_path / "run").train()
    again = Trainer(settings(), tmp_path / "run", resume=True)
    assert again.train() == loss  # there is no step left to make


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
    named = r"step 1: .* made the first NaN.*begin at tokens \[\d+.*step-0"
    with pytest.raises(FloatingPointError, match=named):
        trainer.train_step()
    assert_same_bits(weights(tmp_path / "run"), good)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_half_types_and_averages_go_on_to_the_same_bits_too(settings, tmp_path, dtype, ema):
    changes = {"dtype": dtype, "ema": ema, "accumulate": 2}
    Trainer(settings(**changes), tmp_path / "whole").train()
    stopped = Trainer(settings(**changes), tmp_path / "stopped")
    stopped.steps = 5  # and it is gone
    stopped.train()
    (tmp_path / "stopped" / "state" / "latest").write_text("step-4")
    resumed = Trainer(settings(**changes), tmp_path / "stopped", resume=True)
    assert resumed.step == 4
    resumed.train()
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def gradients(trainer, batch):
    loss = trainer.gradients(batch)
    found = {name: p.grad.numpy().copy() for name, p in trainer.named.items()}
    trainer.optimizer.zero_grad()
    return loss, found


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(settings, tmp_path, parts):
    whole = Trainer(settings(batch_size=5, documents=True), tmp_path / "whole")
    split = Trainer(settings(batch_size=5, documents=True, accumulate=parts), tmp_path / "split")
    batch = whole.draw()
    batch["targets"] = batch["targets"].copy()
    batch["targets"][1, 3:] = -100  # parts that count unequally
    batch["targets"][4] = -100
    (loss, expected), (same, found) = gradients(whole, batch), gradients(split, batch)
    assert same == pytest.approx(loss, rel=1e-6)
    for name, g in expected.items():
        bound = 1e-6 * abs(g).max()  # 8 roundings: the sum over the rows is in another order
        np.testing.assert_allclose(found[name], g, rtol=0, atol=bound, err_msg=name)


def test_layers_that_are_run_again_give_the_same_bits(settings, tmp_path):
    kept = Trainer(settings(layers=3), tmp_path / "kept")
    again = Trainer(settings(layers=3, recompute=True), tmp_path / "again")
    batch = kept.draw()
    (loss, expected), (same, found) = gradients(kept, batch), gradients(again, batch)
    assert loss == same
    assert_same_bits(expected, found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_follow_the_curve_of_float32(settings, tmp_path, dtype):
    losses = {}
    for name in ("float32", dtype):
        trainer = Trainer(settings(dtype=name, steps=150, lr=5e-3, layers=2), tmp_path / name)
        trainer.train()
        losses[name] = np.array([x["loss"] for x in read_metrics(tmp_path / name)])
        masters = trainer.optimizer.state["norm.weight"]
        assert ("master" in masters) == (name != "float32")
    smooth = lambda x: np.convolve(x, np.ones(25) / 25, "valid")
    assert np.abs(smooth(losses[dtype]) / smooth(losses["float32"]) - 1).max() < 0.01


def test_float16_tries_a_smaller_scale_where_the_gradient_overflows(settings, tmp_path):
    runs = []
    for name, scale in (("large", 2.0**40), ("usual", 2.0**15)):
        trainer = Trainer(settings(dtype="float16"), tmp_path / name)
        trainer.scale.scale = scale
        loss, norm, _ = trainer.train_step()
        runs.append((loss, norm, trainer.scale.scale, trainer.rng.bit_generator.state))
    (loss, norm, scale, rng), (expected_loss, expected_norm, usual, expected_rng) = runs
    assert usual == 2.0**15 < scale < 2.0**30  # the first as large as float16 lets it be
    assert (loss, rng) == (expected_loss, expected_rng)  # the same batch, the same numbers drawn
    # a scale is a power of 2, so only what vanishes below float16's least number differs
    assert norm == pytest.approx(expected_norm, rel=2**-11)


def test_layers_that_are_run_again_keep_less_in_memory(settings, tmp_path):
    peaks = {}
    for recompute in (False, True):
        made = settings(layers=6, context=64, batch_size=8, recompute=recompute)
        trainer = Trainer(made, tmp_path / str(recompute))
        batch = trainer.draw()
        tracemalloc.start()
        trainer.gradients(batch)
        peaks[recompute] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[True] < peaks[False] / 2  # one layer's activations and six inputs, not six layers'


def test_the_ema_is_the_recurrence(settings, tmp_path):
    trainer = Trainer(settings(ema=0.5), tmp_path / "run")
    p = trainer.named["norm.weight"]
    expected = p.numpy().astype(np.float64)
    for n in range(1, 6):
        trainer.train_step()
        trainer.step += 1
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * p.numpy()
    np.testing.assert_allclose(trainer.ema.arrays["norm.weight"], expected, rtol=1e-6)
    own = p.numpy().copy()
    trainer.save()
    np.testing.assert_array_equal(p.numpy(), own)
    exported = weights(tmp_path / "run")["model.norm.weight"]
    np.testing.assert_array_equal(exported, trainer.ema.arrays["norm.weight"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [  # after the warm-up's 4 steps of 20, by the formulas in float64
        ("cosine", lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2),
        ("linear", lambda t: 1 - 0.9 * t),
        ("constant", lambda t: 1.0),
        ("wsd", lambda t: 1 - 0.9 * max(0.0, (16 * t + 4 - 15) / 5)),
    ],
)
def test_the_rate_follows_its_schedule(settings, tmp_path, schedule, expected):
    made = settings(schedule=schedule, steps=20, decay=0.25, lr=0.01)
    Trainer(made, tmp_path / "run").train()
    rates = [x["lr"] for x in read_metrics(tmp_path / "run")]
    np.testing.assert_allclose(rates[:4], 0.01 * np.arange(1, 5) / 4)
    np.testing.assert_allclose(rates[4:], [0.01 * expected((n - 4) / 16) for n in range(4, 20)])


def test_a_prepared_folder_trains_to_the_same_bits_as_its_text(settings, tmp_path):
    text = settings().data
    ids = data.tokenize([data.read_text(text)], ByteTokenizer())
    assert data.prepare(tmp_path / "ids", [data.read_text(text)], ByteTokenizer()) == len(ids)
    found = data.read_prepared(tmp_path / "ids", 257)
    assert isinstance(found, np.memmap)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, ids)
    Trainer(settings(), tmp_path / "a").train()
    Trainer(settings(data=str(tmp_path / "ids")), tmp_path / "b").train()
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_damaged_prepared_folder_is_named(tmp_path):
    data.prepare(tmp_path, ["some text"], ByteTokenizer())
    file = tmp_path / "tokens.npy"
    whole = file.read_bytes()
    for broken in (whole[:-5], whole[:20], b"", b"text"):
        file.write_bytes(broken)
        with pytest.raises(io.FormatError, match=r"tokens\.npy"):
            data.read_prepared(tmp_path, 257)
    file.write_bytes(whole)
    with pytest.raises(io.FormatError, match="token 256"):
        data.read_prepared(tmp_path, 100)
    with pytest.raises(FileNotFoundError, match="prepare"):
        data.read_prepared(tmp_path / "none", 257)


def test_documents_come_from_separators_and_from_lines_of_json(tmp_path):
    (tmp_path / "a.txt").write_text("one\n<|end|>\ntwo\n\nmore\n<|end|>\n")
    assert data.documents_of(tmp_path / "a.txt", "<|end|>") == ["one", "two\n\nmore"]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert data.documents_of(tmp_path / "a.jsonl") == ["x", "y"]
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2"):
        data.documents_of(tmp_path / "b.jsonl")


def test_a_document_learns_nothing_from_the_one_before(settings, tmp_path):
    trainer = Trainer(settings(documents=True), tmp_path / "run")
    end = trainer.tokenizer.eos[0]
    one = np.array([[5, 6, 7, end, 8, 9, 10, 11]])
    two = np.array([[9, 9, 1, end, 8, 9, 10, 11]])
    numbers = [data.segments(x, [end]) for x in (one, two)]
    np.testing.assert_array_equal(numbers[0], [[0, 0, 0, 1, 1, 1, 1, 1]])
    logits = [
        trainer.model(x, segments=n).numpy() for x, n in zip((one, two), numbers, strict=True)
    ]
    np.testing.assert_array_equal(logits[0][:, 3:], logits[1][:, 3:])
    alone = trainer.model(one[:, 3:]).numpy()  # sums of float32 in another order
    np.testing.assert_allclose(logits[0][:, 3:], alone, rtol=1e-5, atol=1e-6)


def test_a_file_of_settings_is_read_and_flags_go_before_it(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text("dim = 32\nheads = 2\nlr = 1\n")
    assert Settings.from_toml(file, heads=4) == Settings(dim=32, heads=4, lr=1.0)
    file.write_text('dim = "wide"\n')
    with pytest.raises(ValueError, match="dim is 'wide', expected int"):
        Settings.from_toml(file)
    file.write_text("width = 3\n")
    with pytest.raises(ValueError, match="unknown settings width"):
        Settings.from_toml(file)


def test_tensorboard_gets_what_the_metrics_say(settings, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event

    Trainer(settings(tensorboard=True), tmp_path / "run").train()
    (file,) = (tmp_path / "run").glob("events.*")
    raw, at, found = file.read_bytes(), 0, {}
    while at < len(raw):  # records: length (8 bytes), its checksum (4), the event, its checksum
        length = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        at += 16 + length
    for record in read_metrics(tmp_path / "run"):
        for name in record.keys() - {"step"}:
            assert found[record["step"], name] == pytest.approx(record[name], rel=1e-6)


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
    draw = lambda ids, n, seed: data.batch_at(
        ids, data.draw_starts(ids, n, 8, np.random.default_rng(seed)), 8
    )
    tokens, targets = draw(ids, 5, 0)
    np.testing.assert_array_equal(targets, tokens + 1)
    np.testing.assert_array_equal(np.diff(tokens, axis=1), 1)
    last = {int(draw(ids[:10], 1, seed)[1][0, -1]) for seed in range(20)}
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
