"""The numbers that say what a LLaMA looks like."""

from dataclasses import dataclass

SCALINGS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a LLaMA (Touvron et al. 2023), checked when made.

    n_kv_heads      heads of keys and values, each shared by n_heads / n_kv_heads query heads
    head_dim        width of a head; None: dim / n_heads
    max_length      the context it was trained for; longer texts run, if not well
    rope_scaling    None, or {"rope_type": "linear" | "llama3", "factor": ...} as Hugging Face
                    writes it
    tie_embeddings  the head's weight is the embedding's
    eos             ids that end a text
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    n_kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self):
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in _SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: got {size!r}, expected a whole number >= 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads: got {self.n_kv_heads}, expected a divisor of n_heads {self.n_heads}"
            )
        if self.head_dim is None:
            if self.dim % self.n_heads:
                raise ValueError(
                    f"dim: got {self.dim}, expected a multiple of n_heads {self.n_heads} "
                    "(or give head_dim)"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"head_dim: got {self.head_dim}, expected an even number, since RoPE turns pairs"
            )
        _check_scaling(self.rope_scaling)


_SIZES = (
    "vocab_size",
    "dim",
    "n_layers",
    "n_heads",
    "hidden_dim",
    "n_kv_heads",
    "max_length",
)


def _check_scaling(scaling):
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    if kind not in SCALINGS:
        known = " or ".join(SCALINGS)
        raise ValueError(f"rope_scaling: got rope_type {kind!r}, expected {known}, or None")
    missing = [name for name in SCALINGS[kind] if name not in scaling]
    if missing:
        raise ValueError(f"rope_scaling: {kind} needs {', '.join(missing)}; got {scaling}")
