"""Fine-tuning: what is learnt, packing, DPO against its formula, runs that learn and resume."""

import json
import math

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml.llama import ByteTokenizer, Llama, LlamaConfig
from tinygrad_ml.train import Finetuner, FinetuneSettings, examples, preference, read_metrics

ANSWERS = {"red": "stop", "green": "go", "blue": "swim", "white": "read", "black": "sleep"}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def base(tmp_path):
    """A small model that knows nothing."""
    config = LlamaConfig(
        vocab_size=257, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_length=64, eos=(256,)
    )
    folder = tmp_path / "base"
    Llama(config, rng=np.random.default_rng(0)).save_pretrained(folder)
    ByteTokenizer().save(folder / "tokenizer.json")
    return folder


@pytest.fixture
def settings(base, tmp_path):
    rows = [{"prompt": f"{x}? ", "completion": y} for x, y in ANSWERS.items()] * 8
    data = lines(tmp_path / "colours.jsonl", rows)
    pairs = [
        {"prompt": f"{x}? ", "chosen": y, "rejected": ANSWERS["black" if x != "black" else "red"]}
        for x, y in ANSWERS.items()
    ] * 8
    liked = lines(tmp_path / "pairs.jsonl", pairs)
    given = {"model": str(base), "data": data, "context": 32, "batch_size": 8, "lr": 5e-3}

    def make(**changes):
        if changes.get("objective") == "dpo":
            changes = {"data": liked, **changes}
        return FinetuneSettings(**given | changes)

    return make


# ------------------------------------------------------------------------------------ examples


def test_the_prompt_is_not_learnt_and_the_end_is(base):
    tokenizer = ByteTokenizer()
    example = examples.Writer(base, tokenizer).answered("ab", "cd")
    assert example.ids.tolist() == [*b"abcd", 256]
    tokens, targets = example.shifted()
    assert tokens.tolist() == [*b"abcd"]
    assert targets.tolist() == [-100, *b"cd", 256]


class Talking(ByteTokenizer):
    """Bytes and ChatML's two tokens."""

    def __init__(self):
        super().__init__()
        self.specials = {"<|im_start|>": 257, "<|im_end|>": 258}
        self.vocab_size = 259


def test_of_a_conversation_the_assistants_turns_are_learnt(tmp_path):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "<|im_end|>"},  # typed: stays text
        {"role": "assistant", "content": "hey"},
    ]
    example = examples.Writer(tmp_path, Talking()).conversation(messages)
    ids, start, end = example.ids.tolist(), 257, 258
    assert ids == [
        *(start, *b"user\nhi", end, *b"\n", start, *b"assistant\nho", end, *b"\n"),
        *(start, *b"user\n<|im_end|>", end, *b"\n", start, *b"assistant\nhey", end),
    ]
    assert example.ids[example.loss_mask].tolist() == [*b"ho", end, *b"hey", end]


def test_a_preference_counts_neither_header_nor_end(tmp_path):
    line = {"prompt": [{"role": "user", "content": "?"}], "chosen": "yes", "rejected": "no"}
    chosen, rejected = examples.Writer(tmp_path, Talking()).preference(line)
    assert chosen.ids[chosen.loss_mask].tolist() == [*b"yes"]
    assert rejected.ids[rejected.loss_mask].tolist() == [*b"no"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"prompt": "x"}', "no 'completion'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no turn of the assistant|template"),
        ('{"prompt": "x", "completion": 3}', "got int, expected text"),
        ("[]", "line 2"),
    ],
)
def test_a_line_that_is_no_example_is_named_and_nothing_is_written(
    settings, tmp_path, line, message
):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        Finetuner(settings(data=str(file)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packed_rows_give_each_example_what_it_has_alone(base):
    model, rng = Llama.from_pretrained(base, dtype="float64"), np.random.default_rng(0)
    found = []
    for n in (5, 9, 3, 12, 7, 2):
        learnt = np.arange(n) >= n // 2
        found.append(examples.Example(rng.integers(0, 256, n), learnt))
    packed = examples.pack(found, 16)
    assert len(packed["tokens"]) < len(found)
    assert (packed["targets"] != -100).sum() == sum(x.loss_mask[1:].sum() for x in found)
    joined = model.loss(
        packed["tokens"], packed["targets"], segments=packed["segments"], reduction="sum"
    )
    padded = examples.padded(found, 16)
    apart = model.loss(padded["tokens"], padded["targets"], mask=padded["mask"], reduction="sum")
    alone = sum(
        model.loss(*(part[None] for part in x.shifted()), reduction="sum").item() for x in found
    )
    assert joined.item() == pytest.approx(alone, rel=1e-12)
    assert apart.item() == pytest.approx(alone, rel=1e-12)


def test_what_is_longer_than_the_context_is_cut_and_a_prompt_that_fills_it_refused():
    long = examples.Example(np.arange(20), np.arange(20) >= 5)
    assert examples.padded([long], 8)["tokens"].tolist() == [[*range(8)]]
    with pytest.raises(ValueError, match="context of 4"):
        examples.padded([long], 4)


# ------------------------------------------------------------------------------------------ dpo


def test_dpo_is_its_formula_and_falls_where_the_chosen_gains():
    rng = np.random.default_rng(0)
    logs = rng.normal(-20, 10, (4, 6))
    loss = preference.dpo_loss(*map(tg.tensor, logs), beta=0.3)
    c, r, rc, rr = logs
    margin = 0.3 * ((c - rc) - (r - rr))
    expected = -np.mean([math.log(1 / (1 + math.exp(-m))) for m in margin])
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    chosen = tg.tensor(c, requires_grad=True)
    preference.dpo_loss(chosen, *map(tg.tensor, logs[1:])).backward()
    assert (chosen.grad.numpy() < 0).all()
    same = preference.dpo_loss(*map(tg.tensor, (c, r, c, r)))
    assert same.item() == pytest.approx(math.log(2), rel=1e-12)


def test_the_preference_loss_is_the_formula_on_the_models_own_probabilities(base):
    model, writer = (
        Llama.from_pretrained(base, dtype="float64"),
        examples.Writer(base, ByteTokenizer()),
    )
    pairs = [
        writer.preference({"prompt": p, "chosen": c, "rejected": r})
        for p, c, r in [("a", "bcd", "e"), ("fg", "h", "ijkl")]
    ]
    sides = [examples.padded([pair[i] for pair in pairs], 32) for i in (0, 1)]
    references = np.array([[-20.0, -7.0], [-3.0, -25.0]])
    found = preference.preference_loss(model, *sides, references, beta=0.2, nll=0.5).item()

    def log_p(example):  # by the logits, one text at a time
        logits = model(example.ids[None, :-1]).numpy()[0]
        every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = every[np.arange(len(logits)), example.ids[1:]]
        return picked[example.loss_mask[1:]].sum()

    expected = 0.0
    for (chosen, rejected), (rc, rr) in zip(pairs, references, strict=True):
        margin = (log_p(chosen) - rc) - (log_p(rejected) - rr)
        nll = -log_p(chosen) / chosen.loss_mask.sum()
        expected += (math.log1p(math.exp(-0.2 * margin)) + 0.5 * nll) / 2
    assert found == pytest.approx(expected, rel=1e-10)


# ----------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("packed", "batch_size"), [(False, 8), (True, 3)])
def test_it_learns_the_answers(settings, tmp_path, packed, batch_size):
    made = settings(epochs=40, packed=packed, batch_size=batch_size)
    tuner = Finetuner(made, tmp_path / "run")
    before = tuner.evaluate()
    assert tuner.train() < 0.1 < before
    model, tokenizer = Llama.from_pretrained(tmp_path / "run"), ByteTokenizer()
    for colour, answer in ANSWERS.items():
        prompt = tokenizer.encode(f"{colour}? ")
        ids = model.generate([prompt], 8, eos=(256,))[0, len(prompt) :].tolist()
        assert tokenizer.decode([x for x in ids if x != 256]) == answer


def test_an_adapter_learns_with_the_base_untouched_and_is_loaded_from_its_folder(
    settings, tmp_path
):
    others = dict(zip(ANSWERS, [*list(ANSWERS.values())[1:], ANSWERS["red"]], strict=True))
    rows = [{"prompt": f"{x}? ", "completion": y} for x, y in others.items()] * 8
    data, base = lines(tmp_path / "others.jsonl", rows), tmp_path / "taught"
    Finetuner(settings(data=data, epochs=20), base).train()  # it gives wrong answers
    before = (base / "model.safetensors").read_bytes()
    made = settings(model=str(base), method="lora", method_options="rank=4 alpha=8", lr=2e-2)
    tuner = Finetuner(made, tmp_path / "run")
    first = tuner.evaluate()
    assert tuner.train() < 0.5 * first
    assert sum(p.size for p in tuner.named.values()) < 6000
    assert (base / "model.safetensors").read_bytes() == before
    frozen = Llama.from_pretrained(base).state_dict()
    for path, x in tuner.model.detach().state_dict().items():
        np.testing.assert_array_equal(x, frozen[path], err_msg=path)
    tokens = np.array([[*b"red? "]])
    again = tg.peft.load(Llama.from_pretrained(base), tmp_path / "run")
    third = Finetuner(made, tmp_path / "run", resume=True)  # at its end
    np.testing.assert_array_equal(again(tokens).numpy(), third.model(tokens).numpy())


@pytest.mark.parametrize("method", tg.peft.METHODS)
def test_every_adapter_is_trained_stopped_resumed_and_loaded(settings, base, tmp_path, method):
    made = settings(method=method, epochs=2, save_every=5, lr=1e-2)
    whole = Finetuner(made, tmp_path / "run")
    first = whole.evaluate()
    whole.train()
    assert whole.evaluate() < first
    (tmp_path / "run" / "state" / "latest").write_text("step-5")
    resumed = Finetuner(made, tmp_path / "run", resume=True)
    resumed.train()
    tokens = np.array([[*b"red? "]])
    expected = whole.model(tokens).numpy()
    np.testing.assert_array_equal(resumed.model(tokens).numpy(), expected)
    loaded = tg.peft.load(Llama.from_pretrained(base), tmp_path / "run")
    np.testing.assert_array_equal(loaded(tokens).numpy(), expected)


def test_preferences_move_the_model_towards_the_chosen(settings, tmp_path):
    tuner = Finetuner(settings(objective="dpo", epochs=4, lr=1e-3), tmp_path / "run")
    with tg.no_grad():
        (batch, *_) = tuner.validation()
        at_first = tuner.loss(batch, evaluating=True).item()
        nll, count = preference.answer_log_probabilities(tuner.model, batch)
        own = 0.2 * float((-nll.numpy() / count).mean())
    assert at_first == pytest.approx(math.log(2) + own, rel=1e-6)  # it is its own reference
    assert tuner.train() < 0.9 * at_first


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packed": True, "accumulate": 3},
        {"objective": "dpo", "accumulate": 2},
        {"method": "lora", "method_options": "dropout=0.1"},
        {"method": "prefix", "method_options": "length=4"},
        {"method": "lora", "quantize": "q8_0"},
        {"dtype": "bfloat16"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())) or "full",
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(settings, tmp_path, changes):
    made = settings(epochs=2, save_every=3, **changes)
    whole = Finetuner(made, tmp_path / "whole")
    whole.train()
    stopped = Finetuner(made, tmp_path / "stopped")
    stopped.steps = 4
    stopped.train()
    (tmp_path / "stopped" / "state" / "latest").write_text("step-3")
    resumed = Finetuner(made, tmp_path / "stopped", resume=True)
    assert resumed.step == 3
    resumed.train()
    for name, p in whole.named.items():
        np.testing.assert_array_equal(resumed.named[name].numpy(), p.numpy(), err_msg=name)
    losses = [[x["loss"] for x in read_metrics(tmp_path / n)] for n in ("whole", "stopped")]
    assert losses[0] == losses[1]


def test_parts_of_a_batch_of_preferences_have_the_gradients_of_the_whole(settings, tmp_path):
    found = []
    for parts in (1, 3):
        made = settings(objective="dpo", accumulate=parts)
        tuner = Finetuner(made, tmp_path / str(parts))
        loss = tuner.gradients(tuner.draw())
        found.append((loss, {n: p.grad.numpy() for n, p in tuner.named.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, g in found[0][1].items():
        bound = 2e-6 * abs(g).max()  # 16 roundings: sums over rows and tokens in another order
        np.testing.assert_allclose(found[1][1][name], g, rtol=0, atol=bound)


def test_settings_say_what_is_wrong(settings):
    for changes, message in [
        ({"method": "magic"}, "method: got 'magic', expected one of full"),
        ({"objective": "rlhf"}, "objective"),
        ({"model": ""}, "--model"),
        ({"packed": True, "objective": "dpo"}, "packed"),
        ({"method": "lora", "method_options": "ranks=4"}, "ranks"),
        ({"quantize": "nf4"}, "quantize"),
        ({"method": "lora", "quantize": "q3"}, "'nf4' or 'q8_0'"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            settings(**changes)
