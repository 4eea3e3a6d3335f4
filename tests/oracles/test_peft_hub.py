"""Adapters of Hugging Face's peft: theirs are read and ours are written, to equal logits."""

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import peft
from tinygrad_ml.llama import Llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("peft")

TOLERANCE = 1e-5  # transformers turns q and k by angles in float32, whatever the weights are
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
    "ia3": theirs.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                            feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "ia3, no inputs": theirs.IA3Config(target_modules=["q_proj", "down_proj"],
                                       feedforward_modules=[], task_type="CAUSAL_LM"),
    "norms": theirs.LNTuningConfig(target_modules=["input_layernorm", "norm"],
                                   task_type="CAUSAL_LM"),
    "adaption prompt": theirs.AdaptionPromptConfig(adapter_len=3, adapter_layers=1,
                                                   task_type="CAUSAL_LM"),
    "prompt": theirs.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "p-tuning": theirs.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=6,
                                           task_type="CAUSAL_LM"),
    "prefix, projected": theirs.PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=6, task_type="CAUSAL_LM"
    ),
    "one layer": theirs.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj", "up_proj"],
                                   layers_to_transform=1, modules_to_save=["lm_head"],
                                   task_type="CAUSAL_LM"),
    "prefix": theirs.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}  # fmt: skip
NETWORKS = ("p-tuning", "prefix, projected")
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


def moved(folder, name):
    """Their adapter, away from where it starts."""
    other = theirs.get_peft_model(base(folder), CASES[name]).double()
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    return other


def read(folder, other, place):
    """Ours, of the files that theirs writes."""
    other.save_pretrained(folder / place)
    return peft.load(Llama.from_pretrained(folder / "base", dtype="float64"), folder / place)


def logits(model):
    """Of the text; peft gives those of virtual tokens too, where these are embeddings."""
    with torch.no_grad():
        return model(torch.tensor(TEXT)).logits.numpy()[:, -TEXT.shape[1] :]


@cases
def test_theirs_are_read(folder, name):
    other = moved(folder, name).eval()
    adapted = read(folder, other, "adapter")
    with tg.no_grad():
        found = adapted(TEXT).numpy()
    np.testing.assert_allclose(found, logits(other), rtol=TOLERANCE, atol=TOLERANCE)


@cases
def test_ours_are_read_there(folder, name):
    adapted = read(folder, theirs.get_peft_model(base(folder), CASES[name]), "first")
    rng = np.random.default_rng(0)
    for _, p in adapted.trained():
        p.assign_(p.data + 0.1 * rng.normal(size=p.shape))
    peft.save(adapted, folder / "second")
    other = theirs.PeftModel.from_pretrained(base(folder), folder / "second").double().eval()
    with tg.no_grad():
        found = adapted(TEXT).numpy()
    np.testing.assert_allclose(found, logits(other), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NETWORKS])
def test_a_step_of_training_leaves_the_same_files(folder, name):
    """So loss and gradients are equal. Where a network is trained the files lack it."""
    other = moved(folder, name)
    adapted = read(folder, other, "first")
    labels = torch.tensor(TEXT)
    labels[:, 0] = -100  # the last virtual token would be asked for it
    other(torch.tensor(TEXT), labels=labels).loss.backward()
    torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=1.0).step()
    adapted.loss(TEXT[:, :-1], TEXT[:, 1:]).backward()
    tg.optim.SGD(adapted.trained(), lr=1.0).step()

    other.save_pretrained(folder / "theirs")
    peft.save(adapted, folder / "ours")
    before, expected, found = (
        tg.io.load(folder / place / "adapter_model.safetensors")
        for place in ("first", "theirs", "ours")
    )
    for key in found:
        step = np.abs(expected[key] - before[key]).max()
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=TOLERANCE * step + 1e-12)
    assert any((expected[key] != before[key]).any() for key in found)
