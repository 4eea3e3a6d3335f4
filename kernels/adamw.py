"""AdamW, in place:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = keep w - rate m / spread

keep = 1 - lr decay,  rate = lr / (1 - b1^t),  spread = sqrt(v / (1 - b2^t)) + eps

All parameters in one call, since most of a model's are small. Bytes: reads w, g, m, v and writes
w, m, v once: 28 for each float32 parameter. Accuracy in float32: within 4 ulp of w, and of the
step. Entry by entry: the same bits with any number of threads.
"""

import ctypes

from .native import address, call, runs


class Parameter(ctypes.Structure):
    """As in adamw.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("w", "m", "v", "g")]
        + [(name, ctypes.c_int64) for name in ("n", "first")]
        + [(name, ctypes.c_double) for name in ("keep", "rate", "correction")]
    )


def supports(xp, updates, *, betas, eps):
    return runs(xp, *[a for u in updates for a in (u.w, u.g, *u.slots)]) and all(
        a.shape == u.w.shape and a.flags.c_contiguous and (a is u.g or a.flags.writeable)
        for u in updates
        for a in (u.w, u.g, *u.slots)
    )


def forward(xp, updates, *, betas, eps):
    b1, b2 = map(float, betas)
    parameters = (Parameter * len(updates))(*[row(u, b1, b2) for u in updates])
    call("adamw_step", updates[0].w.dtype, parameters, len(updates), b1, b2, float(eps))


def row(u, b1, b2):
    pointers = [address(a) for a in (u.w, *u.slots, u.g)]
    numbers = (1 - u.lr * u.decay, u.lr / (1 - b1**u.steps), (1 - b2**u.steps) ** -0.5)
    return Parameter(*pointers, u.w.size, 0, *numbers)
