"""Adapters: the model starts as it was, gradients are right, and everything goes together."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import nn, optim, peft, quant
from tinygrad_ml.io import FormatError
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.testing import check_grads

CONFIG = LlamaConfig(40, 16, 2, 4, 24, n_kv_heads=2)
TOKENS, TARGETS = np.random.default_rng(0).integers(0, 40, (2, 2, 6))
METHODS = {
    "lora": peft.LoRA(rank=3),
    "lora everywhere": peft.LoRA(rank=2, targets="all-linear", rank_pattern={"gate_proj": 4}),
    "embeddings": peft.LoRA(rank=2, targets=["embed_tokens", "lm_head"]),
    "rslora": peft.LoRA(rank=4, rslora=True),
    "dora": peft.LoRA(rank=2, dora=True),
    "whole norm": peft.LoRA(rank=2, whole=["model.norm"]),
    "ia3": peft.IA3(),
    "bitfit": peft.BitFit(),
    "norms": peft.NormTuning(),
    "houlsby": peft.Adapter(width=3),
    "pfeiffer": peft.Adapter(width=3, placement="pfeiffer", activation="gelu"),
    "parallel": peft.Adapter(width=3, placement="parallel", activation="silu", scale=4.0),
    "compacter": peft.Compacter(width=4, parts=2, activation="tanh"),
    "llama adapter": peft.LlamaAdapter(length=3, layers=1),
    "prompt": peft.PromptTuning(length=3),
    "prompt of words": peft.PromptTuning(length=3, words=[5, 7]),
    "p-tuning": peft.PTuning(length=3, hidden=5),
    "p-tuning, lstm": peft.PTuning(length=3, hidden=2, encoder="lstm"),
    "prefix": peft.PrefixTuning(length=3),
    "prefix, encoded": peft.PrefixTuning(length=3, hidden=5),
    "prefix of words": peft.PrefixTuning(length=3, words=[5, 7]),
}
methods = pytest.mark.parametrize("name", METHODS)
VIRTUAL = peft.PrefixTuning | peft.PromptTuning | peft.PTuning
inside = [name for name, config in METHODS.items() if not isinstance(config, VIRTUAL)]
networks = peft.Adapter | peft.LlamaAdapter
starts_as_it_was = pytest.mark.parametrize("name", inside)
mergeable = pytest.mark.parametrize(
    "name", [n for n in inside if not isinstance(METHODS[n], networks)]
)


def model(seed=1, config=CONFIG, dtype="float64"):
    """With weights so large that what it says differs from place to place."""
    made = Llama(config, rng=np.random.default_rng(seed), dtype=dtype)
    for p in made.parameters():
        if p.ndim == 2:
            p.assign_(p.data * 15)
    return made


def adapted(name, seed=2, base=None, **config):
    return peft.attach(base or model(), METHODS[name], rng=np.random.default_rng(seed))


def moved(a, seed=3):
    """Every adapter away from where it started."""
    rng = np.random.default_rng(seed)
    for _, p in a.trained():
        p.assign_(p.data + 0.1 * rng.normal(size=p.shape))
    return a


# --- at the start, while training, and back


@methods
def test_only_the_adapter_is_trained_and_the_loss_falls(name):
    a = adapted(name)
    frozen = {n: p.data.tobytes() for n, p in a.named_parameters() if not p.requires_grad}
    optimizer, losses = optim.AdamW(a.trained(), lr=1e-2), []
    for _ in range(8):
        loss = a.loss(TOKENS, TARGETS)
        loss.backward()
        assert all(p.grad is None for p in a.parameters() if not p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {n: p.data.tobytes() for n, p in a.named_parameters() if n in frozen} == frozen


@starts_as_it_was
def test_it_starts_as_the_model_to_the_bit(name):
    expected = model()(TOKENS).data
    found = adapted(name)(TOKENS).data
    if name == "dora":  # m / |W| is 1, W x (m / |W|) is rounded
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_prefix_of_words_starts_as_if_they_had_been_read():
    words = np.tile([5, 7, 5], (2, 1))
    expected = model()(np.concatenate([words, TOKENS], axis=1)).data[:, 3:]
    np.testing.assert_allclose(adapted("prefix of words")(TOKENS).data, expected, rtol=1e-9)


def test_a_prompt_of_words_starts_as_if_they_had_been_read():
    words = np.tile([5, 7, 5], (2, 1))
    expected = model()(np.concatenate([words, TOKENS], axis=1)).data[:, 3:]
    np.testing.assert_allclose(adapted("prompt of words")(TOKENS).data, expected, rtol=1e-9)


def test_a_prompt_starts_at_words_of_the_vocabulary():
    table, known = adapted("prompt").virtual["default"].table.data, model().embedding.weight.data
    assert all((known == row).all(axis=1).any() for row in table)


def test_each_change_is_its_formula():
    """On one layer, numbers put in by hand: z are x or y, D and U the two maps."""
    x = np.random.default_rng(5).normal(size=(2, 3, 16))
    silu, relu = (lambda z: z / (1 + np.exp(-z))), (lambda z: np.maximum(z, 0))
    for name, f, scale in (("houlsby", relu, 1), ("parallel", silu, 4)):
        part = moved(adapted(name)).model.layers[1].feed_forward
        piece, y = part.pieces["default"], part.base(tg.tensor(x)).data
        z = x if name == "parallel" else y
        narrow = f(z @ piece.down.weight.data.T + piece.down.bias.data)
        expected = y + scale * (narrow @ piece.up.weight.data.T + piece.up.bias.data)
        np.testing.assert_allclose(part(tg.tensor(x)).data, expected, rtol=1e-10)
    layer = moved(adapted("ia3")).model.layers[0]
    (key, w), (down, v) = (
        (p.pieces["default"].scale.data, p.base.weight.data)
        for p in (layer.attention.wk, layer.feed_forward.down)
    )
    np.testing.assert_allclose(layer.attention.wk(tg.tensor(x)).data, x @ w.T * key, rtol=1e-10)
    wide = np.concatenate([x, x[..., :8]], axis=-1)
    found = layer.feed_forward.down(tg.tensor(wide)).data
    np.testing.assert_allclose(found, (wide * down) @ v.T, rtol=1e-10)


def test_compacters_maps_are_sums_of_kronecker_products():
    a = moved(adapted("compacter"))
    tensors = {key: x.data for key, x in a.adapter_parameters().items()}
    rule = tensors["model.layers.0.self_attn.down.rule.a"]
    for layer, part in ((0, "self_attn"), (1, "mlp")):
        path = f"model.layers.{layer}.{part}"
        piece = a.model.layers[layer]
        piece = (piece.attention if part == "self_attn" else piece.feed_forward).pieces["default"]
        for field in ("down", "up"):
            s, t = tensors[f"{path}.{field}.s"], tensors[f"{path}.{field}.t"]
            w = sum(np.kron(rule[i], s[i] @ t[i]) for i in range(2))
            x = np.random.default_rng(0).normal(size=(3, w.shape[1]))
            found = getattr(piece, field)(tg.tensor(x)).data
            np.testing.assert_allclose(found, x @ w.T + tensors[f"{path}.{field}.bias"], rtol=1e-9)


def test_counts_are_the_formulas():
    d, kv, wide, v, layers = 16, 8, 24, 40, 2
    assert adapted("lora").count() == layers * 3 * ((d + d) + (d + kv))
    assert adapted("embeddings").count() == 2 * 2 * (v + d)
    assert adapted("dora").count() == layers * (2 * ((d + d) + (d + kv)) + d + kv)
    everywhere = 2 * (2 * (d + d) + 2 * (d + kv) + 2 * (d + wide)) + 4 * (d + wide)
    assert adapted("lora everywhere").count() == layers * everywhere
    assert adapted("prefix").count() == 3 * 2 * layers * kv
    inner = 3 * kv + kv * 5 + 5 + 5 * 2 * layers * kv + 2 * layers * kv
    assert adapted("prefix, encoded").count() == inner


def test_counts_of_the_other_methods():
    d, kv, wide, layers = 16, 8, 24, 2
    assert adapted("ia3").count() == layers * (2 * kv + wide)
    assert adapted("bitfit").count() == layers * (2 * d + 2 * kv + 2 * wide + d)
    assert adapted("norms").count() == (2 * layers + 1) * d
    assert adapted("houlsby").count() == 2 * layers * (2 * 3 * d + 3 + d)
    assert adapted("pfeiffer").count() == adapted("parallel").count() == layers * (6 * d + 3 + d)
    assert adapted("compacter").count() == 2**3 + 2 * layers * (2 * (4 + d) + 4 + d)
    assert adapted("llama adapter").count() == 3 * d + 1  # the last layer alone
    assert adapted("prompt").count() == 3 * d
    assert adapted("p-tuning").count() == 3 * d + (d * 5 + 5) + (5 * 5 + 5) + (5 * d + d)
    one_way = lambda inputs: 4 * 2 * inputs + 4 * 2 + 4 * 2 * 2
    head = 4 * 4 + 4 + 4 * d + d
    assert adapted("p-tuning, lstm").count() == 3 * d + 2 * (one_way(d) + one_way(4)) + head


@methods
def test_detached_it_is_the_very_model(name):
    base = model()
    before = {n: p.data.tobytes() for n, p in base.named_parameters()}
    flags = [p.requires_grad for p in base.parameters()]
    moved(adapted(name, base=base)).detach()
    assert {n: p.data.tobytes() for n, p in base.named_parameters()} == before
    assert [p.requires_grad for p in base.parameters()] == flags


@mergeable
def test_merged_it_says_the_same_and_unmerged_has_the_very_bytes(name):
    base = model()
    a = moved(adapted(name, base=base))
    expected = a(TOKENS).data
    before = {n: p.data.tobytes() for n, p in a.named_parameters()}
    a.merge()
    assert type(base.layers[0].attention.wq) is nn.Linear
    np.testing.assert_allclose(a(TOKENS).data, expected, rtol=1e-8, atol=1e-10)
    a.unmerge()
    assert {n: p.data.tobytes() for n, p in a.named_parameters()} == before
    np.testing.assert_array_equal(a(TOKENS).data, expected)
    a.merge(keep=False)
    np.testing.assert_allclose(base(TOKENS).data, expected, rtol=1e-8, atol=1e-10)


@methods
@given(seed=st.integers(0, 99))
@settings(max_examples=2)
def test_gradients_to_the_second_order(name, seed):
    small = LlamaConfig(9, 4, 1, 2, 6, n_kv_heads=1)
    a = peft.attach(model(seed, small), METHODS[name], rng=np.random.default_rng(seed))
    moved(a, seed)
    modules = dict(a.named_modules())
    places = [(n.rpartition("."), p) for n, p in a.trained()]
    tokens, targets = np.random.default_rng(seed).integers(0, 9, (2, 2, 3))
    lengths_are_constant = name == "dora"  # by the paper: differences would see them move

    def loss(*weights):
        for ((owner, _, key), _), w in zip(places, weights, strict=True):
            setattr(modules[owner], key, w)
        return a.loss(tokens, targets)

    if lengths_are_constant:
        y = loss(*[p for _, p in places])
        grads = tg.grad(y, [p for (_, _, key), p in places if key == "magnitude"])
        assert all(np.isfinite(g.data).all() and g.data.any() for g in grads)
        return
    check_grads(loss, [p.data for _, p in places], probe=False, exact=False, seed=seed,
                rounding=4096)  # fmt: skip


# --- several adapters


def test_each_row_has_its_own_adapter():
    a = peft.attach(model(), METHODS["lora"], "a", rng=np.random.default_rng(2))
    a = peft.attach(a, METHODS["prefix"], "b", rng=np.random.default_rng(3))
    moved(a)
    both = a.use(["a", "b"])(TOKENS).data
    np.testing.assert_allclose(both[0], a.use("a")(TOKENS).data[0], rtol=1e-10)
    np.testing.assert_allclose(both[1], a.use("b")(TOKENS).data[1], rtol=1e-10)
    alone = [a.use(n).generate(TOKENS[i : i + 1], 5)[0] for i, n in enumerate("ab")]
    np.testing.assert_array_equal(a.use(["a", "b"]).generate(TOKENS, 5), alone)
    with pytest.raises(ValueError, match="there is no adapter c; there are: a, b"):
        a.use("c")


def test_weights_scale_and_add():
    a = peft.attach(model(), METHODS["lora"], "a", rng=np.random.default_rng(2))
    a = peft.attach(a, METHODS["rslora"], "b", rng=np.random.default_rng(3))
    moved(a)
    part, x = a.model.layers[0].attention.wq, tg.tensor(np.ones((1, 1, 16)))
    base, one, two = (a.use(u) and part(x).data for u in (None, "a", "b"))
    mixed = a.use({"a": 0.5, "b": 2.0}) and part(x).data
    np.testing.assert_allclose(mixed, base + 0.5 * (one - base) + 2 * (two - base), rtol=1e-9)
    np.testing.assert_array_equal(a.use(None)(TOKENS).data, model()(TOKENS).data)


def test_adapters_follow_one_another_as_they_are_merged():
    """What scales the input of a matrix also scales what an earlier adapter has added to it."""
    down = peft.LoRA(rank=2, targets=["down_proj"])
    for names in ("ab", "ba"):
        a = peft.attach(model(), down, "a", rng=np.random.default_rng(2))
        a = moved(peft.attach(a, peft.IA3(), "b"))
        expected = a.use(dict.fromkeys(names, 1.0))(TOKENS).data
        np.testing.assert_allclose(a.merge()(TOKENS).data, expected, rtol=1e-8, atol=1e-10)


def test_rows_with_every_method():
    a, rng, methods = model(), np.random.default_rng(2), list(METHODS)
    for name in methods:
        a = peft.attach(a, METHODS[name], name, rng=rng)
    moved(a)
    tokens = np.random.default_rng(4).integers(0, 40, (len(methods) + 1, 5))
    together = a.use([*methods, None])(tokens).data
    for i, name in enumerate([*methods, None]):
        alone = a.use(name)(tokens[i : i + 1]).data[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-8, atol=1e-9)


# --- with all else


@methods
def test_a_cache_padding_and_beams(name):
    a = moved(adapted(name)).drop_encoders()
    whole, cache = a(TOKENS).data, a.new_cache(2)
    with tg.no_grad():
        parts = [a(TOKENS[:, :2], cache=cache).data, a(TOKENS[:, 2:], cache=cache).data]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-9, atol=1e-9)
    padded = np.concatenate([np.zeros((2, 2), int), TOKENS], axis=1)
    mask = np.arange(8) >= [[2], [2]]
    np.testing.assert_allclose(a(padded, mask=mask).data[:, 2:], whole, rtol=1e-9, atol=1e-9)
    alone = [a.generate(TOKENS[i : i + 1], 4, num_beams=2)[0] for i in range(2)]
    np.testing.assert_array_equal(a.generate(TOKENS, 4, num_beams=2), alone)


@methods
def test_checkpointing_changes_nothing(name):
    a = moved(adapted(name))
    trained = [p for _, p in a.trained()]
    plain = tg.grad(a.loss(TOKENS, TARGETS), trained)
    again = tg.grad(tg.checkpoint(lambda: a.loss(TOKENS, TARGETS)), trained)
    for g, h in zip(plain, again, strict=True):
        np.testing.assert_array_equal(g.data, h.data)


def quantised():
    """A model whose Linears in the layers are blocks, as those of a GGUF file."""
    base = model(config=LlamaConfig(40, 32, 2, 4, 64, n_kv_heads=2), dtype="float32")
    for layer in base.layers:
        for part in (layer.attention, layer.feed_forward):
            for name, linear in list(vars(part).items()):
                if isinstance(linear, nn.Linear):
                    blocks = quant.Blocks(quant.quantize_q8_0(linear.weight.data), "Q8_0")
                    setattr(part, name, nn.QuantizedLinear(blocks))
    return base


@methods
def test_over_a_quantised_base(name):
    a = adapted(name, base=quantised())
    optimizer, first = optim.AdamW(a.trained(), lr=1e-2), a.loss(TOKENS, TARGETS).item()
    for _ in range(8):
        a.loss(TOKENS, TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert a.loss(TOKENS, TARGETS).item() < first
    padded = np.concatenate([np.zeros((2, 2), int), TOKENS], axis=1)
    mask = np.arange(8) >= [[2], [2]]
    alone = [a.generate(TOKENS[i : i + 1], 4, num_beams=2)[0] for i in range(2)]
    found = a.generate(padded, 4, mask=mask, num_beams=2)[:, 2:]
    np.testing.assert_array_equal(found, alone)


def test_merging_over_quantised_weights_is_refused_or_makes_them_dense():
    a = moved(peft.attach(quantised(), peft.LoRA(rank=2), rng=np.random.default_rng(0)))
    expected = a(TOKENS).data
    with pytest.raises(ValueError, match="quantised again would not be exact"):
        a.merge()
    a.merge(dense=True)
    # float32: the merged product rounds once where base and change rounded apart
    np.testing.assert_allclose(a(TOKENS).data, expected, rtol=1e-5, atol=1e-5)


def test_biases_merge_over_quantised_weights_as_they_are():
    a = moved(peft.attach(quantised(), METHODS["bitfit"], rng=np.random.default_rng(0)))
    expected = a(TOKENS).data
    a.merge()
    assert type(a.model.layers[0].attention.wq) is nn.QuantizedLinear
    np.testing.assert_array_equal(a(TOKENS).data, expected)


def test_frozen_weights_keep_no_activations():
    """The tape of an adapted model is smaller by what the frozen matrices' gradients would need."""

    def held(m):
        tokens = np.zeros((4, 64), int)
        m.loss(tokens, tokens)  # what stays for good is there
        tracemalloc.start()
        loss = m.loss(tokens, tokens)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert loss.requires_grad
        return size

    config = LlamaConfig(50, 64, 2, 4, 512)
    with tg.use_kernels(False):
        full = held(model(config=config, dtype="float32"))
        last = peft.LoRA(rank=2, targets=["o_proj"], layers=[1])
        small = held(peft.attach(model(config=config, dtype="float32"), last,
                                 rng=np.random.default_rng(0)))  # fmt: skip
    assert small < 0.6 * full  # the first layer keeps nothing, the second no input of a matrix


# --- files


@methods
def test_what_is_saved_is_loaded(tmp_path, name):
    a = moved(adapted(name))
    expected = a(TOKENS).data
    peft.save(a, tmp_path)
    again = peft.load(model(), tmp_path)
    np.testing.assert_array_equal(again(TOKENS).data, expected)
    assert all(p.requires_grad for p in again.adapter_parameters().values())
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 40_000


def test_an_adapter_of_another_base_says_which_sizes_differ(tmp_path):
    peft.save(adapted("lora"), tmp_path)
    base = model(config=LlamaConfig(40, 8, 2, 4, 24))
    with pytest.raises(
        ValueError, match=r"q_proj.lora_A.weight is \(3, 16\) in the file, \(3, 8\)"
    ):
        peft.load(base, tmp_path)
    assert type(base.layers[0].attention.wq) is nn.Linear  # nothing was changed
    arrays = tg.io.load(tmp_path / "adapter_model.safetensors")
    tg.io.save(tmp_path / "adapter_model.safetensors", dict(list(arrays.items())[:3]))
    with pytest.raises(ValueError, match=r"lora_B.weight \(8, 3\) is missing"):
        peft.load(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match="no config of an adapter"):
        peft.load(base, tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lora_alpha": None}, "lacks lora_alpha"),
        ({"init_lora_weights": "pissa"}, "its base is not the model as published"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is .* not read here"),
        ({"bias": "all"}, "bias is 'all', which is not read here"),
        ({"r": "8"}, "adapter_config.json: rank: got '8'"),
        ({"peft_type": "VERA"}, "peft_type is 'VERA', expected one of LORA"),
    ],
)
def test_what_would_be_another_function_is_not_read(tmp_path, changed, words):
    peft.save(adapted("lora"), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(FormatError, match=words):
        peft.load(model(), tmp_path)


def test_the_page_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "peft.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)  # in one namespace, as its reader would
    loss = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 5  # from ln 256 = 5.5 on, with a random head that stays
    base = names["adapted"].use(None)(names["tokens"]).data
    np.testing.assert_allclose(names["logits"].data[1], base[0], atol=1e-6)  # float32, masked
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert dict(rows) == {name: method.__name__ for name, method in peft.METHODS.items()}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rank: got 0"):
        peft.LoRA(rank=0)
    with pytest.raises(ValueError, match="targets: .* matches no part of the model"):
        peft.attach(model(), peft.LoRA(targets=["query"]), rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="config: got dict"):
        peft.attach(model(), {}, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="method: got 'lore'"):
        peft.config("lore")
    for kind, fields, words in (
        (peft.Adapter, {"placement": "both"}, "placement: got 'both', expected one of houlsby"),
        (peft.Adapter, {"activation": "step"}, "activation: got 'step'"),
        (peft.PTuning, {"encoder": "gru"}, "encoder: got 'gru', expected one of mlp, lstm"),
        (peft.PromptTuning, {"words": [1], "std": 0.1}, "words, std: give one of the two"),
        (peft.LlamaAdapter, {"layers": 0}, "layers: got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**fields)
    with pytest.raises(ValueError, match="parts: 4 does not divide the width 6 and the model's 16"):
        peft.attach(model(), peft.Compacter(width=6), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="layers: got 3, the model has 2"):
        peft.attach(model(), peft.LlamaAdapter(layers=3), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="mlp: Bottleneck is no change of a weight"):
        adapted("houlsby").merge()
    with pytest.raises(ValueError, match="merge\\(\\) it first"):
        adapted("lora").save_pretrained("x")
