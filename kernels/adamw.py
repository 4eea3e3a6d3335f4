"""AdamW, in place:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = keep w - rate m / spread

keep = 1 - lr decay,  rate = lr / (1 - b1^t),  spread = sqrt(v / (1 - b2^t)) + eps

Bytes: reads w, g, m, v and writes w, m, v once: 28 for each float32 parameter.
Accuracy in float32: within 4 ulp of w, and of the step. Entry by entry: the same bits with any
number of threads.
"""

from .native import run, runs


def supports(xp, w, g, m, v, *, lr, betas, eps, decay, steps):
    return (
        runs(xp, w, g, m, v)
        and w.shape == g.shape == m.shape == v.shape
        and all(a.flags.c_contiguous for a in (w, g, m, v))
        and all(a.flags.writeable for a in (w, m, v))
    )


def forward(xp, w, g, m, v, *, lr, betas, eps, decay, steps):
    b1, b2 = betas
    run("adamw_step", w, g, m, v, w.size, 1.0 - lr * decay, lr / (1 - b1**steps),
        float(b1), float(b2), (1 - b2**steps) ** -0.5, float(eps))  # fmt: skip
