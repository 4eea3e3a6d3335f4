"""The memory of a training step, or of generation, before it is spent.

A step holds weights, their gradients, the optimiser's state, and what the forward pass keeps for
the backward pass; generation holds weights and the cache of keys and values. b rows of t tokens, d
model, f feed-forward, h heads and g heads of keys and values of width k, v vocabulary, n layers.

"160 GB to fine-tune a 7B" is a convention about bytes for each parameter, activations beside it:
16 bytes (half weights and gradients, float32 master copy, m and v; Rajbhandari et al. 2020, ZeRO)
make 6.74e9 parameters 108 GB; 20 bytes (gradients also kept in float32) make 135 GB. What is left
to 160 is activations and slack, and depends on b and t.
"""

from dataclasses import dataclass
from pathlib import Path

from ..llama import LlamaConfig, formats
from ..optim import COPIES
from . import names

METHODS = ("full", *names.METHODS, "generate")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Item:
    """One line of the table: its bytes, and its formula in words."""

    name: str
    bytes: int
    formula: str


class Estimate(list):
    """The items, in the order in which they are printed."""

    moments = ()  # for each moment of a step {name of an item: bytes of it not there then}

    @property
    def total(self):
        return sum(item.bytes for item in self)

    @property
    def peak(self):
        """Gradients grow as activations are let go: the fullest moment counts."""
        return self.total - min((sum(m.values()) for m in self.moments), default=0)

    def __str__(self):
        lines = [f"{i.name:<16}{i.bytes / 1e9:>12.3f} GB   {i.formula}" for i in self]
        sums = (
            ("total", self.total, "the sum"),
            ("peak", self.peak, "at once (docs/memory.md)"),
        )
        lines += [f"{name:<16}{n / 1e9:>12.3f} GB   {why}" for name, n, why in sums]
        return "\n".join(lines)


def estimate_memory(config, method="full", *, optimizer="adamw", dtype="float32", batch=1,
                    length=512, rank=8, width=16, virtual=20, recompute=False,
                    qkv_bias=False):  # fmt: skip
    """The bytes of a training step, item by item; .total is their sum, .peak what is there at once.

    config  a LlamaConfig, or a name of MODELS
    method  "full", or an adapter at its default places, or "generate": one of METHODS
    dtype   of the weights: "float32", "bfloat16" or "float16"
    length  tokens a row; of "generate", the prompt and what follows it
    rank    of "lora"
    width   of "adapter" and "compacter", and of p-tuning's network
    virtual of "prefix", "prompt", "p-tuning" and "llama-adapter": how many tokens
    recompute  whether only the layers' inputs are kept, and each layer is run again

    Held against measured peaks on the CPU: float32 and bfloat16 with the C kernels. float16 has
    kernels on a GPU only; without them attention keeps its weights, b h t t numbers more a layer.
    ValueError for a name or a size that makes no sense.
    """
    if isinstance(config, str):
        config, qkv_bias = named(config)
    _check_choice("method", method, METHODS)
    _check_choice("dtype", dtype, BYTES)
    _check_choice("optimizer", optimizer, ("adamw", "sgd"))
    for name, number in (("batch", batch), ("length", length), ("rank", rank),
                         ("width", width), ("virtual", virtual)):  # fmt: skip
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: got {number!r}, expected a whole number >= 1")
    weights = count_parameters(config, qkv_bias)
    if method == "generate":
        return _generation(config, weights, dtype, batch, length)
    trained, more, first = _adapter(config, method, rank, width, virtual)
    trained = weights if method == "full" else trained
    held = weights + (trained if method != "full" else 0)
    tokens = batch * (length + (virtual if method in ("prompt", "p-tuning") else 0))
    largest = config.dim * max(config.vocab_size, config.hidden_dim)
    estimate = _state(held, trained, largest, dtype, optimizer)
    estimate += _activations(config, tokens, dtype, more, first, recompute)
    estimate.append(_logits(config, batch * length))
    if dtype != "float32":
        wide = max(3 * tokens * config.hidden_dim, config.vocab_size * config.dim)
        formula = "the greater of b t 3 f, v d: float32 within a kernel's backward pass"
        estimate.append(Item("widened", 4 * wide, formula))
    if method == "prefix":
        n = batch * virtual * 2 * config.n_kv_heads * config.head_dim * config.n_layers
        size = BYTES[dtype]
        estimate.append(Item("joined prefix", size * n, "b p 2 n g k: before every row's keys"))
    head = BYTES[dtype] * config.vocab_size * config.dim if method == "full" else 0
    estimate.moments = _moments(estimate, head, config.n_layers)
    return estimate


def _state(held, trained, largest, dtype, optimizer):
    """What is there whatever the text: weights, gradients and the optimiser's."""
    size, half, slots = BYTES[dtype], dtype != "float32", 2 if optimizer == "adamw" else 0
    estimate = Estimate([
        Item("weights", size * held, f"{held:,} parameters x {size} bytes"),
        Item("gradients", size * trained, f"{trained:,} trained x {size} bytes"),
        Item("master copies", 4 * trained * half, "trained x 4 bytes, of half types only"),
        Item("optimiser", 4 * slots * trained, f"trained x {slots} float32 numbers"),
    ])  # fmt: skip
    if half:
        copied = min(trained, max(largest, COPIES))
        estimate.append(Item("update", 4 * copied, "float32 gradients, a parameter's at a time"))
    return estimate


def _moments(estimate, head, n):
    """What is not there when the loss is known, as a layer that is run again begins its backward
    pass, as the first layer's ends, and as the optimiser updates.

    At first there is the head's gradient alone; at last one layer's activations.
    """
    bytes_of = {item.name: item.bytes for item in estimate}

    def without(*names):
        return {name: bytes_of.get(name, 0) for name in names}

    late = {"gradients": bytes_of["gradients"] - head}
    gone = {"activations": bytes_of["activations"] * (n - 1) // n}
    return [
        late | without("update", "one layer"),
        late | without("update", "logits" if "one layer" in bytes_of else "one layer"),
        gone | without("update", "logits"),
        without("activations", "one layer", "logits", "widened"),
    ]


def _generation(c, weights, dtype, batch, length):
    size, tokens = BYTES[dtype], batch * length
    cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * tokens
    prompt, formula = 4 * tokens * (3 * c.hidden_dim + 5 * c.dim), "b t (3 f + 5 d) float32 numbers"
    head = 4 * c.vocab_size * c.dim * (size < 4)
    if head > prompt:
        prompt, formula = head, "v d float32 numbers: the head, for its product"
    return Estimate([
        Item("weights", size * weights, f"{weights:,} parameters x {size} bytes"),
        Item("KV cache", size * cache, f"2 n g k b t x {size} bytes"),
        Item("prompt", prompt, f"{formula}, while it is read"),
    ])  # fmt: skip


def count_parameters(c, qkv_bias=False):
    """v d (twice if not tied) + n (2 d h k + 2 d g k + 3 d f + 2 d) + d, and biases"""
    inner, shared = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = 2 * c.dim * (inner + shared) + 3 * c.dim * c.hidden_dim + 2 * c.dim
    layer += (inner + 2 * shared) * (qkv_bias or c.attention_bias) + c.dim * c.attention_bias
    layer += (2 * c.hidden_dim + c.dim) * c.mlp_bias
    return (2 - c.tie_embeddings) * c.vocab_size * c.dim + c.n_layers * layer + c.dim


def count_lora(c, rank):
    """n r (d + h k) for q and n r (d + g k) for v      Hu et al. 2021"""
    return c.n_layers * rank * (2 * c.dim + (c.n_heads + c.n_kv_heads) * c.head_dim)


def _adapter(c, method, rank, width, virtual):
    """(trained, more, first): how many numbers are trained; how many more than a full fine-tuning's
    are kept for a token of each layer; how many of them are not, in the first layer.

    A frozen `down` needs no f inputs. Nothing before the first adapter needs a gradient.
    """
    n, d, f, p = c.n_layers, c.dim, c.hidden_dim, virtual
    q, k = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    before = 2 * d + 2 * q + 3 * k  # the norm, and attention before its output
    network = 2 * d * width + width * width + 2 * width + d
    bottleneck = 2 * (d + width) - f
    return {
        "full": (0, 0, 0),
        "prefix": (2 * n * p * k, -f, 0),
        "prompt": (p * d, -f, 0),
        "p-tuning": (p * d + network, -f, 0),
        "llama-adapter": (n * (p * d + 1), 3 * q + c.n_heads - f, before),
        "adapter": (2 * n * (2 * width * d + width + d), bottleneck, before),
        "compacter": (4**3 + 6 * n * (width + d), bottleneck, before),
        "lora": (count_lora(c, rank), 2 * rank - f, 0),
        "ia3": (n * (2 * k + f), 2 * k - d, 0),
        "bitfit": (n * (2 * d + q + 2 * k + 2 * f), -2 * d - f, 0),
        "norms": ((2 * n + 1) * d, -d - f, 0),
    }[method]


def _activations(c, tokens, dtype, more, first, recompute):
    """What the kernels keep for each token of each layer, and in a layer that is run again."""
    inner, shared = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    # x, its norm, wo's output, the sum, its norm; q twice (before RoPE and after), o; k twice, v
    kept = 5 * c.dim + 3 * inner + 3 * shared + 3 * c.hidden_dim + c.n_heads + 2
    formula = "b t (n (5 d + 3 h k + 3 g k + 3 f + h + 2) + 2 d) numbers"
    size, half = BYTES[dtype], dtype != "float32"
    wide = (4 - size) * (c.dim + inner)  # the sum and o stay in float32
    if recompute:
        inputs, within = (c.n_layers + 2) * c.dim, kept + more + 3 * c.hidden_dim + c.dim
        return [
            Item("activations", size * tokens * inputs, "b t (n + 2) d numbers: layers' inputs"),
            Item(
                "one layer",
                tokens * (size * within + wide),
                "b t (6 d + 3 h k + 3 g k + 6 f + h + 2) numbers, run again",
            ),
        ]
    if more:
        formula += f", {more:+} for each of b t n: adapters and what is frozen"
    if half:
        formula += "; d + h k of them in float32"
    numbers = c.n_layers * (kept + more) - first + 2 * c.dim
    return [Item("activations", tokens * (size * numbers + c.n_layers * wide), formula)]


def _logits(c, tokens):
    logits = 2 * tokens * min(c.vocab_size, max(1, (1 << 23) // tokens))
    return Item("logits", 4 * logits, "logits and their gradient, b t v each, in chunks of 2^23")


def _check_choice(name, got, known):
    if got not in known:
        raise ValueError(f"{name}: got {got!r}, expected one of {', '.join(known)}")


# -------------------------------------------------------------------------------- command line


def add_arguments(parser):
    add = parser.add_argument
    known = "a model folder or file, a config.json, or one of " + ", ".join(MODELS)
    add("model", metavar="MODEL", help=known)
    add("--method", choices=METHODS, default="full", help="what is trained (default: full)")
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="(default: adamw)")
    add("--dtype", choices=BYTES, default="float32", help="of the weights (default: float32)")
    add("--batch", type=int, default=1, help="texts a step (default: 1)")
    add("--length", type=int, default=512, help="tokens a text (default: 512)")
    add("--rank", type=int, default=8, help="of lora (default: 8)")
    add("--width", type=int, default=16, help="of adapters (default: 16)")
    add("--recompute", action="store_true", help="run each layer again in the backward pass")
    add("--virtual", type=int, default=20, help="virtual tokens of prefixes (default: 20)")


def run(model, **settings):
    config = model if model in MODELS else _read(model)
    print(estimate_memory(config, **settings))


def _read(path):
    """The config of a model folder or file, or of a config.json alone."""
    if not Path(path).exists():
        known = ", ".join(MODELS)
        raise ValueError(f"model: got {path!r}, expected a folder, a file or one of {known}")
    if Path(path).name == "config.json":  # no weights are needed
        return formats.huggingface.read_config(Path(path))
    return formats.read(path)[0]


# ------------------------------------------------------------------------------ models by name

#         v       d     n    h    f     g   tied, bias of q, k and v
_SIZES = {
    "llama-7b": (32000, 4096, 32, 32, 11008, 32, False, False),
    "llama-13b": (32000, 5120, 40, 40, 13824, 40, False, False),
    "llama-30b": (32000, 6656, 60, 52, 17920, 52, False, False),
    "llama-65b": (32000, 8192, 80, 64, 22016, 64, False, False),
    "llama2-7b": (32000, 4096, 32, 32, 11008, 32, False, False),
    "llama2-13b": (32000, 5120, 40, 40, 13824, 40, False, False),
    "llama2-70b": (32000, 8192, 80, 64, 28672, 8, False, False),
    "llama3-8b": (128256, 4096, 32, 32, 14336, 8, False, False),
    "llama3-70b": (128256, 8192, 80, 64, 28672, 8, False, False),
    "llama3.1-8b": (128256, 4096, 32, 32, 14336, 8, False, False),
    "llama3.1-70b": (128256, 8192, 80, 64, 28672, 8, False, False),
    "llama3.1-405b": (128256, 16384, 126, 128, 53248, 8, False, False),
    "llama3.2-1b": (128256, 2048, 16, 32, 8192, 8, True, False),
    "llama3.2-3b": (128256, 3072, 28, 24, 8192, 8, True, False),
    "qwen1.5-7b": (151936, 4096, 32, 32, 11008, 32, False, True),
    "qwen1.5-72b": (152064, 8192, 80, 64, 24576, 64, False, True),
}
MODELS = tuple(_SIZES)


def named(name):
    """(LlamaConfig, whether q, k and v have biases) of a published size"""
    _check_choice("model", name, MODELS)
    v, d, n, h, f, g, tied, bias = _SIZES[name]
    return LlamaConfig(v, d, n, h, f, g, tie_embeddings=tied), bias
