"""Gradient checking, for the library's own rules and for anybody's.

    from tinygrad_ml.testing import check_grads
    check_grads(f, [x, y])

check_grads takes any function of Tensors; spec enters a function in the registry, so that
check_op, check_all and cases (a Hypothesis strategy) know it as they know the library's own.
check_precision holds a case of it to an error bound in float32, float16 or bfloat16.
"""

from .gradcheck import GradientError, Result, check_grads
from .precision import check_precision
from .registry import Subgradient, cases, check_all, check_op, spec

__all__ = [
    "GradientError", "Result", "Subgradient", "cases", "check_all", "check_grads", "check_op",
    "check_precision", "spec",
]  # fmt: skip
