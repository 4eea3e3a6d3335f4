"""Loss scaling: float16's gradients would underflow, so they are computed larger."""

from ..tensor import Tensor


class LossScale:
    """Half as large after a step that overflowed, twice as large after 2,000 that did not.

    Micikevicius et al. 2018, section 3.2. A scale of 1 that never moves is for dtypes with
    float32's range.
    """

    def __init__(self, dtype, patience=2000):
        self.moves = dtype == "float16"
        self.scale, self.patience, self.good = 2.0**15 if self.moves else 1.0, patience, 0

    def undo(self, parameters):
        """Divide the gradients by the scale, in float32: in float16 they might vanish."""
        for p in parameters:
            if self.moves and p.grad is not None:
                p.grad = Tensor.wrap(p.grad.data.astype("float32") / self.scale)

    def overflowed(self):
        """True if a smaller scale is left to try, which is set; the step is not to be made."""
        if not self.moves or self.scale <= 1:
            return False
        self.scale, self.good = self.scale / 2, 0
        return True

    def succeeded(self):
        self.good += self.moves
        if self.good == self.patience:
            self.scale, self.good = self.scale * 2, 0

    def state(self):
        return {"scale": self.scale, "good": self.good}

    def load(self, state):
        self.scale, self.good = state["scale"], state["good"]
