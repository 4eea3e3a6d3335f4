"""Direct preference optimisation: an answer that people chose, against one they rejected."""

from .. import functional
from ..tensor import Tensor


def dpo_loss(chosen, rejected, reference_chosen, reference_rejected, *, beta=0.1):
    """-log s(beta ((log p_c - log r_c) - (log p_r - log r_r))), averaged      all: (b,)

    s the sigmoid; p the model's and r the reference's probability of the whole answer.
    Rafailov et al. 2023, eq. 7
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return functional.softplus(-beta * margin).mean()


def answer_log_probabilities(model, batch, **context):
    """(log p (b,), number of counted tokens (b,)) of the targets that are not -100."""
    losses = model.loss(
        batch["tokens"], batch["targets"], mask=batch["mask"], reduction="none", **context
    )  # (b, t)
    return -losses.sum(axis=1), (batch["targets"] != -100).sum(axis=1)


def preference_loss(model, chosen, rejected, references, *, beta=0.1, nll=0.2, **context):
    """dpo_loss + nll * (the chosen answers' -log p for each token), averaged

    references: (b, 2) the reference's log p of chosen and rejected. The second term keeps the
    chosen answer likely (Pang et al. 2024, eq. 1), nll = 0.2 and beta = 0.1 are those of
    Grattafiori et al. 2024, section 4.1.4.
    """
    likely, count = answer_log_probabilities(model, chosen, **context)
    unlikely, _ = answer_log_probabilities(model, rejected, **context)
    r = [Tensor.wrap(references[:, i].astype(likely.dtype)).to(likely.device) for i in (0, 1)]
    count = Tensor.wrap(count.astype(likely.dtype)).to(likely.device)
    return dpo_loss(likely, unlikely, *r, beta=beta) + nll * (-likely / count).mean()
