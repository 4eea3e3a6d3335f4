"""Adapters of Hugging Face's peft: theirs are read and ours are written, to equal logits."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("peft")

import tinygrad_ml as tg  # noqa: E402
from tinygrad_ml import peft  # noqa: E402
from tinygrad_ml.llama import Llama  # noqa: E402

TEXT = np.array([[3, 14, 15, 9, 2, 6], [5, 3, 5, 8, 9, 7]])
CASES = {
    "lora": theirs.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"],
                              rank_pattern={"down_proj": 2}, task_type="CAUSAL_LM"),
    "rslora": theirs.LoraConfig(r=4, use_rslora=True, target_modules=["k_proj"],
                                layers_to_transform=[1], task_type="CAUSAL_LM"),
    "dora": theirs.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "up_proj"],
                              task_type="CAUSAL_LM"),
    "embedding": theirs.LoraConfig(r=2, target_modules=["embed_tokens", "o_proj"],
                                   task_type="CAUSAL_LM"),
    "prefix": theirs.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def folder(tmp_path):
    """A tiny model, as both sides read it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path


def base(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder / "base").double().eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(TEXT)).logits.numpy()


@cases
def test_theirs_are_read(folder, name):
    other = theirs.get_peft_model(base(folder), CASES[name]).double().eval()
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    other.save_pretrained(folder / "adapter")
    adapted = peft.load(Llama.from_pretrained(folder / "base", dtype="float64"), folder / "adapter")
    with tg.no_grad():
        found = adapted(TEXT).numpy()
    np.testing.assert_allclose(found, logits(other), rtol=1e-5, atol=1e-5)


@cases
def test_ours_are_read_there(folder, name):
    theirs.get_peft_model(base(folder), CASES[name]).save_pretrained(folder / "first")
    adapted = peft.load(Llama.from_pretrained(folder / "base", dtype="float64"), folder / "first")
    rng = np.random.default_rng(0)
    for _, p in adapted.trained():
        p.assign_(p.data + 0.1 * rng.normal(size=p.shape))
    peft.save(adapted, folder / "second")
    other = theirs.PeftModel.from_pretrained(base(folder), folder / "second").double().eval()
    with tg.no_grad():
        found = adapted(TEXT).numpy()
    np.testing.assert_allclose(found, logits(other), rtol=1e-5, atol=1e-5)
