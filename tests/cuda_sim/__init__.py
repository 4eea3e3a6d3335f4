"""CUDA kernels on a CPU: the .cu files as they are, checked access by access.

    module = RawModule(code=Path("kernels/rms_norm.cu").read_text(), options=OPTIONS,
                       name_expressions=["rms_norm_forward<float>"])
    module.get_function("rms_norm_forward<float>")((4,), (256,), (x, w, y, ...))

takes what cupy.RawModule takes, and numpy arrays. A launch that races, reads what nobody wrote,
leaves its arrays, misuses a mask or a barrier raises `KernelError` with kernel, thread and line.
What is simulated is CUDA's model, not a GPU: no speed, no caches, no fast intrinsics (their exact
counterparts run), no fences, and products of tensor cores summed in float32 in one order.
"""

from .build import available
from .launch import KernelError, RawModule, orders

ORDERS = (0, 1, 5)  # for orders(): threads upwards, downwards and shuffled, to the same bits
