"""A training step as a CUDA graph: what Python does in it is done once.

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        optim.scale_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step = Captured(step, optimizer)
    for tokens, targets in batches:
        loss = step(tokens, targets)        # .item() waits for it; nothing else does

The first call runs the step as it is, the second records it (CUDA's stream capture) and launches
the recording, as every later one does. The numbers are those of the step itself, to the bit. On
the CPU the step just runs, every time.

A recording repeats operations, not Python: so the step may not look at its numbers (`item`, an
`if` on a loss, clip_grad_norm) nor draw random ones (dropout), and arrays keep their shapes. Its
arguments and the optimiser's learning rate and step number are sent to the device before each
launch; everything else that it took from the host is what it was when recorded.
"""

from ..backend import DeviceError, Graph, device_of, namespace, to_device
from ..optim import Adam
from ..tensor import Tensor


class Captured:
    """step(*arrays) -> a Tensor, a tuple of them or None, run as a graph from its second call on.

    optimizer  Adam or AdamW, whose step() and zero_grad() the step calls once each

    What a call returns is overwritten by the next one.
    """

    def __init__(self, step, optimizer):
        if not isinstance(optimizer, Adam):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer: got {kind}, expected Adam or AdamW, which graphs can hold")
        self.step, self.optimizer = step, optimizer
        self.device = next(p for _, p, _ in optimizer._each()).device
        self.graph = self.inputs = self.result = None

    def __call__(self, *arrays):
        if self.device == "cpu":
            return self.step(*arrays)
        if self.graph is None:
            return self._first(arrays)
        self._take(arrays)
        if self.graph.graph is None:
            self._record()
        else:
            self.optimizer.count()
        self.optimizer.send_numbers()
        self.graph.launch()
        return self.result

    def _first(self, arrays):
        """The step as it is: kernels are compiled, slots made, and memory taken."""
        self.inputs = [namespace([a]).array(a) for a in self._there(arrays)]
        graph = Graph()
        with graph.memory():
            result = self.step(*self.inputs)
        self._check_gradients()
        self.graph = graph
        return result

    def _record(self):
        self.optimizer.to_graph()
        try:
            with self.graph.recording():
                self.result = self.step(*self.inputs)
        except DeviceError:
            self.optimizer.numbers = None  # it goes on without a graph
            self.optimizer.zero_grad()
            raise
        self._check_gradients()

    def _there(self, arrays):
        found = [a.data if isinstance(a, Tensor) else a for a in arrays]
        return [to_device(a, self.device) for a in found]

    def _take(self, arrays):
        """The arguments into the arrays that the graph reads."""
        got, wanted = ([(a.shape, a.dtype) for a in x] for x in (arrays, self.inputs))
        if got != wanted:
            raise ValueError(f"captured: got arrays {got}, expected {wanted}, as at first")
        for fixed, a in zip(self.inputs, self._there(arrays), strict=True):
            if device_of(a) != self.device:
                raise ValueError(f"captured: an array on {device_of(a)}, expected {self.device}")
            fixed[...] = a

    def _check_gradients(self):
        if any(p.grad is not None for _, p, _ in self.optimizer._each()):
            raise ValueError("captured: the step leaves gradients; end it with zero_grad()")
