"""Delta compression: what fine-tuning changed in a model, as a LoRA of its best low rank."""

from dataclasses import dataclass

import numpy as np

from ..backend import to_host
from .adapted import attach
from .lora import LoRA
from .method import dense, is_embedding
from .places import MATRICES, at, bare, chosen, their_path


@dataclass(frozen=True)
class Residual:
    """What the low rank leaves of one matrix's change: its Frobenius norm, and the change's."""

    error: float
    norm: float

    @property
    def share(self):
        """error / norm, of the change; 0 where nothing changed"""
        return self.error / self.norm if self.norm else 0.0


def compress(base, tuned, rank=8, targets="all-linear", name="default"):
    """(adapted, {path: Residual}): base with the LoRA that is nearest to the difference of the two.

    W' - W = U S V^T is cut to its `rank` largest singular values: B = U sqrt(S), A = sqrt(S) V^T.
    No matrix of that rank is nearer, and the error is the root of the sum of the squares of the
    singular values that were cut (Eckart & Young 1936). What changed outside `targets` is not in
    it; ValueError, before base is touched, if the two differ in shape.
    """
    found, left = {}, {}
    for path in chosen(base, targets, MATRICES):
        before, after = (_matrix(bare(at(model, path))) for model in (base, tuned))
        if before.shape != after.shape:
            raise ValueError(f"{their_path(path)}: base {before.shape}, tuned {after.shape}")
        u, s, vt = np.linalg.svd(after - before, full_matrices=False)
        root = np.sqrt(s[:rank])
        found[path] = root[:, None] * vt[:rank], u[:, :rank] * root
        left[their_path(path)] = Residual(float(np.linalg.norm(s[rank:])), float(np.linalg.norm(s)))
    ranks = {their_path(path).replace(".", r"\."): len(a) for path, (a, _) in found.items()}
    config = LoRA(rank=rank, alpha=rank, targets=targets,
                  rank_pattern={k: r for k, r in ranks.items() if r < rank},
                  alpha_pattern={k: r for k, r in ranks.items() if r < rank})  # fmt: skip
    adapted = attach(base, config, name, rng=None)
    tensors = adapted.adapter_parameters(name)
    for path, (a, b) in found.items():
        tensors[f"{their_path(path)}.a"].assign_(a)
        tensors[f"{their_path(path)}.b"].assign_(b)
    return adapted, left


def _matrix(part):
    """(outputs, inputs) in float64"""
    weight = to_host(dense(part)).astype(np.float64)
    return weight.T if is_embedding(part) else weight
