"""Logits, loss and gradients against transformers; checkpoints go both ways."""

import json
from functools import partial

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.llama.formats.huggingface import our_name

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "initializer_range": 0.3}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES = {
    "llama 1": {"num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "llama 2": {"rms_norm_eps": 1e-5},
    "llama 3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "llama 3.1": {"rope_parameters": LLAMA3},
    "llama 3.2": {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 16},
    "linear": {"rope_parameters": LINEAR},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "smollm": {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 24,
               "tie_word_embeddings": True},
}  # fmt: skip
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; the order of sums differs
TEXT = np.random.default_rng(0).integers(0, 50, (2, 40))


@pytest.fixture(params=FAMILIES)
def theirs(request):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | FAMILIES[request.param])
    model = transformers.LlamaForCausalLM(config).double().eval()
    for p in model.parameters():  # norms and biases that are not 1 and 0
        p.data += 0.1 * torch.randn_like(p)
    return exact(model)


def exact(model):
    """RoPE and RMSNorm in float64, which the library computes in float32 whatever the dtype.

    The frequencies are the library's own, so its scalings are tested.
    """
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = partial(_norm, module)
    rotary = model.model.rotary_emb
    frequencies = rotary.inv_freq.double()

    def forward(x, position_ids):
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    rotary.forward = forward
    return model


def _norm(module, x):
    return module.weight * x * torch.rsqrt((x * x).mean(-1, True) + module.variance_epsilon)


def frequencies_as_theirs(ours, theirs):
    """float32 frequencies; ours are checked to be the same but for that."""
    found = theirs.model.rotary_emb.inv_freq.double().numpy()
    np.testing.assert_allclose(ours._frequencies, found, rtol=1e-6)  # float32 powers
    ours._frequencies = found
    return ours


def loaded(theirs, folder):
    theirs.save_pretrained(folder)
    return frequencies_as_theirs(Llama.from_pretrained(folder, dtype="float64"), theirs)


def test_logits(theirs, tmp_path):
    ours = loaded(theirs, tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(TEXT)).logits.numpy()
    np.testing.assert_allclose(ours(TEXT).numpy(), expected, **CLOSE)


def test_loss_and_every_gradient(theirs, tmp_path):
    ours = loaded(theirs, tmp_path)
    loss = theirs(torch.tensor(TEXT), labels=torch.tensor(TEXT)).loss
    loss.backward()
    own = ours.loss(TEXT[:, :-1], TEXT[:, 1:])
    own.backward()
    # the library computes its loss in float32
    np.testing.assert_allclose(own.item(), loss.item(), rtol=1e-6)
    found = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        g = p.grad.numpy()
        np.testing.assert_allclose(
            found[our_name(name)].grad.numpy(), g, rtol=1e-4, atol=1e-5 * np.abs(g).max()
        )


def test_what_is_saved_here_loads_there(theirs, tmp_path):
    ours = loaded(theirs, tmp_path / "a")
    ours.save_pretrained(tmp_path / "b")
    again, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "b", dtype=torch.float64, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        found = exact(again.eval())(torch.tensor(TEXT)).logits.numpy()
    np.testing.assert_allclose(found, ours(TEXT).numpy(), **CLOSE)


def test_generation(theirs, tmp_path):
    ours = loaded(theirs, tmp_path)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = torch.tensor(TEXT[:, :9])
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **options).numpy()
    np.testing.assert_array_equal(ours.generate(TEXT[:, :9], 20, eos=[]), expected)


def test_shards_with_an_index(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = dict(loaded(theirs, tmp_path / "whole").named_parameters())
    for name, p in Llama.from_pretrained(tmp_path, dtype="float64").named_parameters():
        np.testing.assert_array_equal(p.data, whole[name].data)


def test_a_config_of_transformers_4(tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = LlamaConfig(50, 16, 1, 2, 24, rope_theta=5e5, rope_scaling=scaling)
    model = Llama(config, rng=np.random.default_rng(0))
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["rope_parameters"], raw["dtype"]
    raw["rope_scaling"] = {"type": "linear", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with tg.no_grad():
        found = Llama.from_pretrained(tmp_path)(TEXT).numpy()
        np.testing.assert_array_equal(found, model(TEXT).numpy())
