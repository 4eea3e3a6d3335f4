"""tinygrad_ml: a tensor and autograd engine that can be read in an hour.

import tinygrad_ml as tg
"""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "kernels").exists() and (_here.parent / "kernels").exists():
    __path__.append(str(_here.parent))  # an uninstalled checkout: kernels/ lies beside this folder

# ruff: noqa: E402, I001
from . import functional, io, linalg, nn, ops, optim
from .ops import *
from .arrays import *  # after ops: with numpy's signatures, tg.sum(x, 0)
from .autograd import GraphError, Op, detect_anomaly, grad, is_recording, no_grad, op
from .backend import DeviceError, allow_tf32, matmul_precision
from .creation import *
from .dtypes import bfloat16, float16, float32, float64, int8, int16, int32, int64, uint8
from .functional import *
from .fused import accelerated, fused, kernels_used, use_kernels
from .graph import to_dot, to_svg
from .io import FormatError
from .kernels import set_num_threads
from .tensor import Tensor, borrow, from_dlpack, tensor
from .transforms import checkpoint, hessian, hvp, jacobian, jvp, value_and_grad, vjp
