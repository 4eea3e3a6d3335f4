"""The memory of a training step: counts against published ones, the sum against a measured peak."""

import tracemalloc

import numpy as np
import pytest

from tinygrad_ml import kernels, optim, peft
from tinygrad_ml.cli import main
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.peft import estimate_memory, memory
from tinygrad_ml.peft.memory import count_parameters, named

PUBLISHED = {  # of the weights as published
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-72b": 72_287_920_128,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert count_parameters(*named(name)) == PUBLISHED[name]


SIZES = {"lora": {"rank": 8}, "adapter": {"width": 16}, "compacter": {"width": 16},
         "llama-adapter": {"length": 20}, "p-tuning": {"hidden": 16}}  # fmt: skip


def prepared(config, method="full", rng=None, dtype="float32"):
    """A model as the method trains it, with the sizes that are estimated by default."""
    model = Llama(config, rng=rng, dtype=dtype)
    if method == "full":
        return model
    return peft.attach(model, peft.config(method, **SIZES.get(method, {})), rng=rng)


def measured_peak(config, batch, length, method="full", dtype="float32", recompute=False):
    """The peak of a second step, when the optimiser's state is there."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (batch, length + 1))
    tracemalloc.start()
    try:
        model = prepared(config, method, rng, dtype)
        optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(2):
            optimizer.zero_grad()
            tracemalloc.reset_peak()
            model.loss(ids[:, :-1], ids[:, 1:], recompute=recompute).backward()
            optimizer.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def generation_peak(config, batch, length, dtype="float32"):
    """The peak while all but 4 of `length` tokens are read and 4 are generated."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        model = Llama(config, rng=rng, dtype=dtype)
        tracemalloc.reset_peak()
        model.generate(rng.integers(0, config.vocab_size, (batch, length - 4)), 4)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MODELS = [
    (LlamaConfig(256, 64, 4, 4, 172), 8, 128),
    (LlamaConfig(512, 64, 5, 8, 172, n_kv_heads=4, tie_embeddings=True), 4, 256),
    (LlamaConfig(1000, 128, 2, 4, 352), 2, 64),
    (LlamaConfig(256, 128, 6, 4, 352), 4, 64),
]


@pytest.mark.skipif(kernels.level() == "off", reason="the formula is that of the C kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("config", "batch", "length"), MODELS)
def test_estimate_is_within_a_tenth_of_the_measured_peak(config, batch, length, recompute, dtype):
    settings = {"dtype": dtype, "recompute": recompute}
    estimate = estimate_memory(config, batch=batch, length=length, **settings).peak
    peak = measured_peak(config, batch, length, **settings)
    assert abs(estimate - peak) <= 0.1 * peak, (estimate, peak)


@pytest.mark.skipif(kernels.level() == "off", reason="the formula is that of the C kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("config", "batch", "length"), MODELS)
def test_generation_is_estimated_to_a_tenth(config, batch, length, dtype):
    estimate = estimate_memory(config, "generate", batch=batch, length=length, dtype=dtype)
    peak = generation_peak(config, batch, length, dtype)
    assert abs(estimate.peak - peak) <= 0.1 * peak, (estimate, peak)
    cache = Llama(config, rng=np.random.default_rng(0), dtype=dtype).new_cache(batch, length)
    assert {i.name: i.bytes for i in estimate}["KV cache"] == cache.nbytes


ADAPTERS = [method for method in memory.METHODS if method not in ("full", "generate")]


def test_every_adapter_is_estimated():
    assert sorted(ADAPTERS) == sorted(peft.METHODS)


@pytest.mark.skipif(kernels.level() == "off", reason="the formula is that of the C kernels")
@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize(
    ("config", "batch", "length"),
    [
        (LlamaConfig(512, 64, 5, 8, 172, n_kv_heads=4, tie_embeddings=True), 4, 128),
        (LlamaConfig(256, 128, 4, 4, 352), 4, 64),
        (LlamaConfig(4000, 64, 2, 4, 172), 2, 64),
    ],
)
def test_estimate_of_adapters_is_within_a_tenth_of_the_measured_peak(method, config, batch, length):
    estimate = estimate_memory(config, method, batch=batch, length=length)
    trained = sum(p.size for p in prepared(config, method).parameters() if p.requires_grad)
    assert {i.name: i.bytes for i in estimate}["gradients"] == 4 * trained
    peak = measured_peak(config, batch, length, method)
    assert abs(estimate.peak - peak) <= 0.1 * peak, (estimate, peak)


def test_sixteen_bytes_a_parameter():
    items = {i.name: i.bytes for i in estimate_memory("llama-7b", dtype="bfloat16")}
    kept = ("weights", "gradients", "master copies", "optimiser")
    assert sum(items[name] for name in kept) == 16 * PUBLISHED["llama-7b"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method: got 'magic', expected one of full"):
        estimate_memory("llama-7b", "magic")
    with pytest.raises(ValueError, match="model: got 'llama-8b', expected one of"):
        estimate_memory("llama-8b")


def test_the_command_reads_a_model_folder(tmp_path, capsys):
    model = Llama(LlamaConfig(256, 64, 2, 4, 172), rng=np.random.default_rng(0))
    model.save_pretrained(tmp_path)
    held = sum(p.size for p in model.parameters())
    for path in (tmp_path, tmp_path / "config.json"):
        main(["estimate", str(path), "--batch", "2"])
        assert f"{held:,} parameters x 4 bytes" in capsys.readouterr().out
