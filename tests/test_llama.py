"""LLaMA: one pass and many give the same; parts can be replaced; files and seeds reproduce."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import io, kernels, nn, peft
from tinygrad_ml.llama import (
    BPETokenizer,
    ByteTokenizer,
    Llama,
    LlamaConfig,
    StreamDecoder,
    load_tokenizer,
)
from tinygrad_ml.llama.formats import llama2c
from tinygrad_ml.llama.formats.export import write_gguf
from tinygrad_ml.llama.formats.huggingface import our_name, their_name
from tinygrad_ml.llama.generate import Rules, _judged, draw
from tinygrad_ml.llama.model import rope_frequencies
from tinygrad_ml.llama.recorded import OnHost, Recorded
from tinygrad_ml.quantized import quantize
from tinygrad_ml.testing import check_grads

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; only the order of sums differs


def small(seed=0, dtype="float64", **changes):
    """A model with weights large enough that its predictions differ from place to place."""
    sizes = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
    model = Llama(LlamaConfig(**sizes | changes), rng=np.random.default_rng(seed), dtype=dtype)
    for p in model.parameters():
        if p.ndim == 2:
            p.assign_(p.data * 20)
    return model


def texts(b, t, seed=1, v=40):
    return np.random.default_rng(seed).integers(0, v, (b, t))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
configs = st.fixed_dictionaries(
    {
        "n_kv_heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([None, 2, 6]),
        "tie_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "rope_scaling": st.sampled_from([None, LLAMA3, {"rope_type": "linear", "factor": 2.0}]),
    }
)


# --------------------------------------------------------------------------------- one pass


@given(configs, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_text_in_pieces_through_the_cache_equals_one_pass(changes, pieces):
    model, tokens = small(**changes), texts(2, sum(pieces))
    cache = model.new_cache(2)
    with tg.no_grad():
        ends = np.cumsum(pieces)
        parts = [
            model(tokens[:, e - n : e], cache=cache).numpy()
            for e, n in zip(ends, pieces, strict=True)
        ]
    np.testing.assert_allclose(np.concatenate(parts, 1), model(tokens).numpy(), **CLOSE)
    assert cache.length == sum(pieces)


@given(configs, st.integers(1, 6), st.integers(1, 6))
def test_left_padding_changes_nothing(changes, n, m):
    model, t = small(**changes), max(n, m)
    rows = [texts(1, n, seed=2), texts(1, m, seed=3)]
    padded = np.concatenate([np.pad(r, ((0, 0), (t - r.shape[1], 0))) for r in rows])
    mask = np.array([np.arange(t) >= t - r.shape[1] for r in rows])
    together = model(padded, mask=mask).numpy()
    for row, logits in zip(rows, together, strict=True):
        np.testing.assert_allclose(logits[t - row.shape[1] :], model(row).numpy()[0], **CLOSE)


@given(st.integers(1, 5), st.integers(1, 5))
def test_segments_are_texts_of_their_own(n, m):
    model, tokens = small(), texts(2, n + m)
    segments = np.array([[0] * n + [1] * m] * 2)
    packed = model(tokens, segments=segments).numpy()
    np.testing.assert_allclose(packed[:, :n], model(tokens[:, :n]).numpy(), **CLOSE)
    np.testing.assert_allclose(packed[:, n:], model(tokens[:, n:]).numpy(), **CLOSE)


def keys_and_values(model, tokens):
    """What a cache holds after these tokens, as a past on the tape."""
    cache = model.new_cache(len(tokens))
    with tg.no_grad():
        model(tokens, cache=cache)
    pairs = [cache._buffers.pairs(i) for i in range(model.config.n_layers)]
    n = cache.length
    return [tuple(tg.tensor(x[:, :, :n], requires_grad=True) for x in pair) for pair in pairs]


def test_a_past_on_the_tape_stands_for_its_tokens_and_gets_gradients():
    model, tokens = small(n_kv_heads=2), texts(2, 7)
    past = keys_and_values(model, tokens[:, :3])
    after = model(tokens[:, 3:], past=past)
    np.testing.assert_allclose(after.numpy(), model(tokens).numpy()[:, 3:], **CLOSE)
    after.sum().backward()
    assert all(np.abs(x.grad.numpy()).max() > 0 for pair in past for x in pair)


def test_a_past_goes_into_the_cache():
    model, tokens = small(), texts(2, 7)
    past, cache = keys_and_values(model, tokens[:, :3]), model.new_cache(2)
    with tg.no_grad():
        model(tokens[:, 3:5], past=past, cache=cache)
        last = model(tokens[:, 5:], cache=cache).numpy()
    np.testing.assert_allclose(last, model(tokens).numpy()[:, 5:], **CLOSE)


def test_embeddings_stand_for_tokens_and_last_cuts_the_logits():
    model, tokens = small(), texts(2, 5)
    logits = model(embeddings=model.embedding(tokens)).numpy()
    np.testing.assert_array_equal(logits, model(tokens).numpy())
    np.testing.assert_allclose(model(tokens, last=2).numpy(), logits[:, -2:], **CLOSE)


def test_linear_scaling_divides_and_llama3_keeps_the_fast_turns():
    plain = rope_frequencies(small(head_dim=8).config)
    linear = rope_frequencies(
        small(head_dim=8, rope_scaling={"rope_type": "linear", "factor": 4.0}).config
    )
    np.testing.assert_allclose(linear, plain / 4)
    scaled = rope_frequencies(small(head_dim=8, rope_scaling=LLAMA3).config)
    # 16 positions: wavelengths 6.3, 63, 628, 6283; below 16/4 kept, above 16/1 slowed
    smooth = (16 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(scaled[0], smooth + (1 - smooth) / 8)
    np.testing.assert_allclose(scaled[1:], plain[1:] / 8)


# ------------------------------------------------------------------------------------- loss


def test_the_loss_is_minus_log_p_of_the_counted_targets():
    model, tokens, targets = small(), texts(2, 5), texts(2, 5, seed=4)
    targets[0, :3] = -100
    log_p = model(tokens).log_softmax().numpy()
    picked = -np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    picked = np.where(targets == -100, 0, picked)
    np.testing.assert_allclose(model.loss(tokens, targets, reduction="none").numpy(), picked)
    np.testing.assert_allclose(model.loss(tokens, targets).item(), picked.sum() / 7)
    np.testing.assert_allclose(model.loss(tokens, targets, reduction="sum").item(), picked.sum())


class Wrapped(nn.Module):
    """What an adapter does at its start: the same values by way of another module."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def forward(self, *args, **options):
        self.calls += 1
        return self.inner(*args, **options)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(vars(self)["inner"], name)


PARTS = [
    "embedding",
    "norm",
    "head",
    "layers.1",
    "layers.0.attention",
    "layers.0.attention_norm",
    "layers.0.feed_forward",
    "layers.0.feed_forward_norm",
    *(f"layers.1.attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"layers.1.feed_forward.{name}" for name in ("gate", "up", "down")),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kernels", [True, False])
def test_any_part_can_be_replaced_and_is_then_called(part, kernels):
    model, tokens, targets = small(dtype="float32"), texts(2, 5), texts(2, 5, seed=4)
    before = model.loss(tokens, targets).item()
    *path, name = part.split(".")
    owner = model
    for step in path:
        owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
    if name.isdigit():
        owner[int(name)] = wrapped = Wrapped(owner[int(name)])
    else:
        wrapped = Wrapped(getattr(owner, name))
        setattr(owner, name, wrapped)
    with tg.use_kernels(kernels):
        # float32: a kernel adds in another order than its definition
        assert model.loss(tokens, targets).item() == pytest.approx(before, rel=1e-5)
    assert wrapped.calls == 1
    with pytest.raises(ValueError, match="adapted"):
        model.save_pretrained("never-written")


# ------------------------------------------------------------------------------------- cache


def test_a_fork_and_its_origin_do_not_disturb_each_other():
    model, tokens = small(), texts(2, 6)
    a = model.new_cache(2, capacity=32)
    with tg.no_grad():
        model(tokens[:, :4], cache=a)
        b = a.fork()
        assert b._buffers is a._buffers  # nothing is copied yet
        first = model(tokens[:, 4:], cache=a).numpy()
        other = model(tokens[:, [0, 1]], cache=b).numpy()
        a.truncate(4)
        again = model(tokens[:, 4:], cache=a).numpy()
    np.testing.assert_array_equal(first, again)
    swapped = np.concatenate([tokens[:, :4], tokens[:, :2]], 1)
    np.testing.assert_allclose(other, model(swapped).numpy()[:, 4:], **CLOSE)


def test_a_fork_of_rows_takes_these():
    model, tokens = small(), texts(2, 5)
    cache = model.new_cache(2)
    with tg.no_grad():
        model(tokens[:, :4], cache=cache)
        last = model(tokens[[1, 1, 0], 4:], cache=cache.fork([1, 1, 0])).numpy()
    np.testing.assert_allclose(last, model(tokens[[1, 1, 0]]).numpy()[:, 4:], **CLOSE)


def test_a_cache_grows_by_doubling():
    model = small()
    cache, sizes = model.new_cache(1), set()
    with tg.no_grad():
        for token in texts(1, 40)[0]:
            model([[int(token)]], cache=cache)
            sizes.add(cache.capacity)
    assert sizes == {1, 2, 4, 8, 16, 32, 64}


# -------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"num_beams": 3}])
def test_unequal_prompts_together_are_as_one_by_one(options):
    model, prompts = small(), [[3, 1, 4, 1, 5], [9, 2], [6]]
    together = model.generate(prompts, 8, **options)
    for prompt, ids in zip(prompts, together, strict=True):
        alone = model.generate([prompt], 8, **options)
        np.testing.assert_array_equal(ids[5 - len(prompt) :], alone[0])


def test_greedy_takes_the_likeliest_token_every_time():
    model, ids = small(), texts(1, 3)
    found = model.generate(ids, 6)
    for _ in range(6):
        ids = np.concatenate([ids, model(ids).argmax(-1)[:, -1:]], 1)
    np.testing.assert_array_equal(found, ids)


def test_a_seed_reproduces_and_another_differs():
    model, go = small(), {"temperature": 1.5, "top_k": 30, "top_p": 0.95, "min_p": 0.001}
    one, two, three = (
        model.generate(texts(2, 3), 20, rng=np.random.default_rng(seed), **go) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_a_cache_is_reused_from_call_to_call():
    model, prompt = small(), texts(1, 6)
    cache = model.new_cache(1)
    first = model.generate(prompt, 5, cache=cache)
    longer = np.concatenate([first, texts(1, 2, seed=8)], 1)
    read = []
    counted = Wrapped(model.embedding)
    counted.forward = lambda ids, rng=None: read.append(ids.shape[1]) or counted.inner(ids)
    expected = model.generate(longer, 5)
    model.embedding = counted
    np.testing.assert_array_equal(model.generate(longer, 5, cache=cache), expected)
    assert read[0] == longer.shape[1] - (first.shape[1] - 1)  # all but the last was known


def test_logprobs_are_the_models_own():
    model, prompt = small(), texts(2, 3)
    ids, logprobs = model.generate(
        prompt, 5, temperature=2.0, top_k=3, rng=np.random.default_rng(0), return_logprobs=True
    )
    log_p = model(ids[:, :-1]).log_softmax().numpy()[:, 2:]
    expected = np.take_along_axis(log_p, ids[:, 3:, None], -1)[..., 0]
    np.testing.assert_allclose(logprobs, expected, **CLOSE)


def test_a_row_ends_at_an_end_token_and_is_padded_with_it():
    model, prompt = small(), texts(2, 3)
    free = model.generate(prompt, 8)
    end = int(free[0, 4])
    ids = model.generate(prompt, 8, eos=end)
    assert (ids[0, 4:] == end).all()
    n = ids.shape[1]
    row = free[1, :n]
    stop = next((i for i in range(3, n) if row[i] == end), n)
    np.testing.assert_array_equal(ids[1, :stop], row[:stop])


def test_a_stop_text_ends_a_row_also_across_tokens():
    model = small(vocab_size=257)
    prompt = np.array([[72, 105]])
    free = model.generate(prompt, 12, eos=[])
    new = free[0, 2:]
    stop = bytes(int(t) % 128 for t in new[3:5]).decode()

    class Ascii(ByteTokenizer):
        def token_bytes(self, token):
            return bytes([token % 128])

    ids = model.generate(prompt, 12, eos=[], stop=stop, tokenizer=Ascii())
    text = "".join(chr(int(t) % 128) for t in new)
    np.testing.assert_array_equal(ids[0], free[0, : 2 + text.index(stop) + 2])


def test_a_window_begins_again_with_its_last_half():
    model, ids = small(), texts(1, 5)
    found = model.generate(ids, 8, window=8)
    for context in (5, 6, 7, 8, 4, 5, 6, 7):  # what the model sees at each of the 8 tokens
        ids = np.concatenate([ids, model(ids[:, -context:]).argmax(-1)[:, -1:]], 1)
    np.testing.assert_array_equal(found, ids)


def test_the_stream_gets_every_new_token():
    model, got = small(), []
    ids = model.generate(texts(1, 3), 6, stream=got.append)
    assert got == ids[0, 3:].tolist()


def test_beams_as_many_as_there_are_texts_find_the_best_text():
    model = small(vocab_size=4)
    prompt = np.array([[1, 2]])
    everything = np.array([[a, b, c] for a in range(4) for b in range(4) for c in range(4)])
    whole = np.concatenate([np.repeat(prompt, 64, 0), everything], 1)
    log_p = model(whole[:, :-1]).log_softmax().numpy()[:, 1:]
    total = np.take_along_axis(log_p, everything[..., None], -1).sum((1, 2))
    ids, logprobs = model.generate(prompt, 3, num_beams=64, eos=[], return_logprobs=True)
    np.testing.assert_array_equal(ids[0, 2:], everything[total.argmax()])
    np.testing.assert_allclose(logprobs.sum(), total.max(), **CLOSE)


def test_a_long_penalty_prefers_long_texts():
    model, prompt = small(vocab_size=6), np.array([[1, 2]])
    lengths = []
    for penalty in (-3.0, 3.0):
        _, logprobs = model.generate(
            prompt, 6, num_beams=8, eos=[0], length_penalty=penalty, return_logprobs=True
        )
        lengths.append(int((logprobs != 0).sum()))
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("other", [0, 7])
def test_a_draft_changes_nothing_but_the_speed(other):
    model, draft, prompt = small(), small(seed=other), texts(1, 3)
    np.testing.assert_array_equal(
        model.generate(prompt, 12, draft=draft), model.generate(prompt, 12)
    )


def test_what_is_judged_is_distributed_as_the_model_not_as_the_draft():
    p = [np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])]
    q = np.array([0.1, 0.1, 0.3, 0.5])
    rng, n = np.random.default_rng(0), 20000
    firsts = np.array([_judged([int(draw(q[None], rng)[0])], [q], p, rng)[0] for _ in range(n)])
    shares = np.bincount(firsts, minlength=4) / n
    np.testing.assert_allclose(shares, p[0], atol=5 * 0.5 / n**0.5)  # five standard deviations


def test_rules_keep_what_they_say():
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))

    def kept(**rules):
        return Rules(temperature=1.0, **rules).probabilities(logits, [set()])[0]

    np.testing.assert_allclose(kept(), [0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(kept(top_k=2), [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(kept(top_p=0.65), [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(kept(min_p=0.45), [4 / 9, 3 / 9, 2 / 9, 0])
    hot = Rules(temperature=2.0).probabilities(logits, [set()])[0]
    np.testing.assert_allclose(hot, np.sqrt(np.exp(logits[0])) / np.sqrt(np.exp(logits[0])).sum())
    seen = Rules(repetition_penalty=2.0).penalised(np.array([[1.0, -1.0, 3.0]]), [{0, 1}])
    np.testing.assert_allclose(seen, [[0.5, -2.0, 3.0]])


# ------------------------------------------------------------------------- recorded tokens (CPU)


PADDED = np.array([[True] * 4, [False, False, True, True]])


def made_again(monkeypatch):
    """How often a list of calls was made again, from now on."""
    counted, again = [], kernels.Calls.again

    def counting(calls):
        counted.append(calls)
        again(calls)

    monkeypatch.setattr(kernels.Calls, "again", counting)
    return counted


def as_it_is(monkeypatch, model, *args, **options):
    """What the model generates with no call recorded."""
    with monkeypatch.context() as patch:
        patch.setattr(Recorded, "fits", staticmethod(lambda model, cache: False))
        return model.generate(*args, **options)


def kept_in_blocks():
    """Linears in blocks of 32 numbers, as in a quantised file."""
    model = small(dtype="float32", dim=32, hidden_dim=64)
    return quantize(model, "Q8_0")


MODELS = {
    "float64": small,
    "float32": partial(small, dtype="float32", n_kv_heads=2),
    "tied": partial(small, dtype="float32", tie_embeddings=True),
    "bfloat16": partial(small, dtype="bfloat16"),
    "blocks": kept_in_blocks,
}
OPTIONS = [
    {},
    {"mask": PADDED},
    {"window": 9},
    {"temperature": 1.2, "top_k": 9},
    {"repetition_penalty": 1.4},
    {"eos": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "greedy")
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_token_is_the_models_own(name, options, monkeypatch):
    """Sums may be in another order: where the kernels are not worth it, numpy makes small ones."""
    model, counted, found = MODELS[name](), made_again(monkeypatch), []
    for generate in (model.generate, partial(as_it_is, monkeypatch, model)):
        rng = np.random.default_rng(3)
        found.append(generate(texts(2, 4), 14, rng=rng, return_logprobs=True, **options))
    (ids, logprobs), (wanted, theirs) = found
    np.testing.assert_array_equal(ids, wanted)
    bound = {"float64": 1e-9, "bfloat16": 2**-5}.get(name, 1e-4)
    np.testing.assert_allclose(logprobs, theirs, rtol=bound, atol=bound)
    if kernels.level() in ("v3", "v4"):  # at the base level numpy multiplies
        anew = 3 if "window" in options else 1  # each time two tokens are computed as ever
        assert len(counted) == ids.shape[1] - 4 - 2 * anew


def test_a_cache_that_grows_is_recorded_anew(monkeypatch):
    model, found = small(dtype="float32"), []
    for generate in (model.generate, partial(as_it_is, monkeypatch, model)):
        text, cache = [[3, 1, 4]], model.new_cache(1)
        for count in (7, 6, 9):  # each call goes on from the cache of the one before
            text = generate(text, count, cache=cache)
        found.append(text)
    np.testing.assert_array_equal(*found)


class Doubling(nn.Module):
    """A part that numpy computes."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, x, *, rng=None):
        return self.inner(x, rng=rng) * 2


@pytest.mark.parametrize("part", ["feed_forward", "lora"])
def test_a_model_that_numpy_computes_in_part_is_called_as_it_is(part, monkeypatch):
    model, counted = small(dtype="float32"), made_again(monkeypatch)
    if part == "lora":
        model = peft.attach(model, peft.LoRA(2), rng=np.random.default_rng(1))
        for _, p in model.trained():
            p.assign_(np.resize(np.linspace(-1, 1, 7, dtype="f4"), p.shape))
    else:
        model.layers[1].feed_forward = Doubling(model.layers[1].feed_forward)
    found = model.generate(texts(2, 4), 9)
    assert not counted
    np.testing.assert_array_equal(found, as_it_is(monkeypatch, model, texts(2, 4), 9))


def test_a_token_that_is_the_recorded_one_proves_nothing():
    """Logits by numpy, behind every op's back, that depend on the token alone."""
    model, table = small(dtype="float32"), np.random.default_rng(0).random((40, 40), np.float32)
    fake = lambda tokens, cache: tg.Tensor.wrap(table[tokens])
    replay = OnHost(fake, model.new_cache(2, 9), 2)
    for place, tokens in enumerate([[5, 7], [5, 7], [5, 7]]):
        np.testing.assert_array_equal(replay(np.array(tokens), place).data, table[tokens])
    with pytest.raises(tg.DeviceError, match="not all of this model is computed in C"):
        replay(np.array([5, 8]), 3)


def test_an_op_that_numpy_computes_is_noticed_even_if_it_changes_nothing():
    """A bottleneck whose units are off for both tokens, say."""
    model = small(dtype="float32")
    idle = lambda tokens, cache: model(tokens, cache=cache) + 0.0
    first = "add" if kernels.level() in ("v3", "v4") else ""  # else an op of the model's
    with tg.no_grad(), pytest.raises(tg.DeviceError, match=f"{first}: numpy made its result"):
        OnHost(idle, model.new_cache(1, 9), 1)(np.array([5]), 0)


def test_without_kernels_nothing_is_recorded(monkeypatch):
    model, counted = small(), made_again(monkeypatch)
    with tg.use_kernels(False):
        found = model.generate(texts(1, 4), 9)
    assert not counted
    np.testing.assert_array_equal(found, as_it_is(monkeypatch, model, texts(1, 4), 9))


# ------------------------------------------------------------------------------------- files


@given(configs)
def test_what_was_saved_is_loaded(tmp_path_factory, changes):
    folder, model = tmp_path_factory.mktemp("model"), small(dtype="float32", eos=(1, 2), **changes)
    model.save_pretrained(folder)
    loaded = Llama.from_pretrained(folder)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(texts(1, 4)).numpy(), model(texts(1, 4)).numpy())


def test_files_have_hugging_faces_names_and_ours_come_back(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    names = list(io.load(tmp_path / "model.safetensors"))
    assert "model.layers.1.self_attn.q_proj.weight" in names
    assert "lm_head.weight" in names
    assert sorted(map(our_name, names)) == sorted(model.state_dict())
    assert their_name("layers.12.feed_forward.down") == "model.layers.12.mlp.down_proj"


def test_shards_are_read_as_one_file(tmp_path):
    import json

    model = small(dtype="float32")
    model.save_pretrained(tmp_path)
    arrays = {name: x.copy() for name, x in io.load(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    names = sorted(arrays)
    where = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        io.save(tmp_path / shard, {n: arrays[n] for n in names if where[n] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    loaded = Llama.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(texts(1, 4)).numpy(), model(texts(1, 4)).numpy())
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(tg.io.FormatError, match="model-2"):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_configs_of_transformers_4_and_5_say_the_same(tmp_path, rope):
    import json

    from tinygrad_ml.llama.formats.huggingface import read_config

    sizes = {
        "vocab_size": 10,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes | rope))
    config = read_config(tmp_path / "config.json")
    scaling = (
        (rope.get("rope_parameters") or rope)["rope_scaling"] if "rope_scaling" in rope else LLAMA3
    )
    kind = scaling.get("rope_type", scaling.get("type"))
    assert config.rope_theta == 5e5
    assert (config.rope_scaling["rope_type"], config.rope_scaling["factor"]) == (
        kind,
        scaling["factor"],
    )


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    small(dtype="float32").save_pretrained(tmp_path)
    arrays = {name: x.copy() for name, x in io.load(tmp_path / "model.safetensors").items()}
    arrays["model.norm.weight"] = np.ones(3, np.float32)
    arrays["extra"] = arrays.pop("lm_head.weight")
    io.save(tmp_path / "model.safetensors", arrays)
    with pytest.raises(ValueError, match=r"(?s)extra.*head.*norm\.weight"):
        Llama.from_pretrained(tmp_path)


# -------------------------------------------------------------------------------- tokenizers


@given(st.text())
def test_bytes_come_back_as_the_text(text):
    tokenizer = ByteTokenizer()
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    assert tokenizer.decode(tokenizer.encode(encodable)) == encodable


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_streamed_text_is_whole_at_every_step(text):
    tokenizer = ByteTokenizer()
    decoder, shown = StreamDecoder(tokenizer), ""
    for token in tokenizer.encode(text):
        shown += decoder.push(token)
        assert text.startswith(shown)
    assert shown + decoder.finish() == text


def test_half_a_character_at_the_end_is_shown_as_such():
    decoder = StreamDecoder(ByteTokenizer())
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_bpe_learns_and_comes_back_from_its_file(tmp_path):
    pytest.importorskip("tokenizers")
    text = "the theme of the thesis, they think: the thing 🙂 naïve\n"
    tokenizer = BPETokenizer.train([text * 20], 300)
    assert len(tokenizer.encode(text)) < len(text.encode())
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    decoder = StreamDecoder(again)
    assert "".join(map(decoder.push, again.encode(text))) + decoder.finish() == text
    assert again.eos[0] not in again.encode("<|endoftext|>")  # a user cannot end the text
    assert again.decode(again.eos) == ""


def test_load_tokenizer_tells_bytes_and_says_what_is_wrong(tmp_path):
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such"):
        load_tokenizer(tmp_path / "no-such")


# ------------------------------------------------------------------------------------ errors


def test_errors_name_what_was_got_and_expected():
    model, tokens = small(), texts(2, 4)
    with pytest.raises(tg.GraphError, match="no_grad"):
        model(tokens, cache=model.new_cache(2))
    with pytest.raises(IndexError, match="40"):
        model([[40]])
    with pytest.raises(TypeError, match="float64"):
        model(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        model(tokens, mask=np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="targets"):
        model.loss(tokens, tokens[:, 1:])
    with pytest.raises(ValueError, match="got 3 layers, expected 2"):
        model(tokens, past=[()] * 3)
    with pytest.raises(ValueError, match="left"):
        model.generate(tokens, 1, mask=np.array([[1, 1, 1, 0]] * 2))
    with pytest.raises(TypeError, match="default_rng"):
        model.generate(tokens, 1, temperature=1.0)
    with pytest.raises(ValueError, match="n_kv_heads"):
        small(n_kv_heads=3)
    with pytest.raises(ValueError, match="rope_type"):
        small(rope_scaling={"rope_type": "yarn"})


# --- gradients of the whole


@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    length=st.integers(2, 5),
    scaling=st.sampled_from([None, {"rope_type": "linear", "factor": 2.0}]),
    tied=st.booleans(),
    masked=st.booleans(),
    kernels=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=max(4, settings.default.max_examples // 5))
def test_every_gradient_of_the_model(kv_heads, length, scaling, tied, masked, kernels, seed):
    rng = np.random.default_rng(seed)
    config = LlamaConfig(11, 8, 2, 4, 12, n_kv_heads=kv_heads, rope_scaling=scaling,
                         tie_embeddings=tied)  # fmt: skip
    model = Llama(config, rng=rng, dtype="float64")
    places = [(name.rpartition("."), p) for name, p in model.named_parameters()]
    modules = dict(model.named_modules())
    tokens, targets = rng.integers(0, 11, (2, 2, length))
    mask = np.arange(length) >= np.array([[1], [0]]) if masked else None

    def loss(*weights):
        for ((owner, _, name), _), w in zip(places, weights, strict=True):
            setattr(modules[owner], name, w)
        if tied:
            model.head.weight = model.embedding.weight
        return model.loss(tokens, targets, mask=mask)

    weights = [3 * p.data if p.ndim > 1 else p.data for _, p in places]  # not all near 0
    with tg.use_kernels(kernels):
        check_grads(loss, weights, probe=False, exact=False, seed=seed, rounding=1024)


@pytest.mark.parametrize("kind", ["float32.gguf", "q8_0.gguf", "folder", "bin"])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, kind):
    path = tmp_path / kind
    model = Llama(LlamaConfig(2000, 256, 4, 4, 512), rng=np.random.default_rng(0))
    if kind == "folder":
        model.save_pretrained(path)
    elif kind == "bin":
        llama2c.write(model, path)
    else:
        write_gguf(model, path, {"float32.gguf": "F32", "q8_0.gguf": "Q8_0"}[kind])
    weights = sum(p.nbytes for p in model.parameters())
    tracemalloc.start()
    loaded = Llama.from_pretrained(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if kind == "q8_0.gguf":  # the blocks stay in the file, which is mapped
        assert any(type(m) is nn.QuantizedLinear for m in loaded.modules())
        assert held < 0.1 * weights
    largest = max(p.nbytes for p in model.parameters())
    assert peak < weights + 2 * largest + 2e6  # one tensor on its way, and what Python needs
