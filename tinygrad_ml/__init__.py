"""tinygrad_ml: a tensor and autograd engine that can be read in an hour.

import tinygrad_ml as tg
"""

from pathlib import Path

from . import functional, ops
from .autograd import GraphError, Op, detect_anomaly, grad, is_recording, no_grad, op
from .backend import DeviceError
from .dtypes import bfloat16, float16, float32, float64, int32, int64
from .functional import *  # noqa: F403
from .fused import accelerated, fused, kernels_used, use_kernels
from .graph import to_dot, to_svg
from .ops import *  # noqa: F403
from .tensor import Tensor, borrow, from_dlpack, tensor
from .transforms import checkpoint, hessian, hvp, jacobian, jvp, value_and_grad, vjp

_kernels = Path(__file__).parent.parent / "kernels"
if not (Path(__file__).parent / "kernels").exists() and _kernels.exists():
    __path__.append(str(_kernels.parent))  # an uninstalled checkout: tinygrad_ml.kernels is beside
