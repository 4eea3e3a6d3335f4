"""Every differentiable function, on seeded cases; collection fails for one without a spec."""

import os

import pytest

from tinygrad_ml import arrays, functional, linalg, ops, quant
from tinygrad_ml.estimators import som_soft
from tinygrad_ml.testing import check_op, registry

PROFILE = "thorough" if os.environ.get("TINYGRAD_ML_PROFILE") == "thorough" else "ci"
MODULES = (ops, arrays, functional, linalg, quant, som_soft)
registry.require_complete(*MODULES, exempt=registry.NOT_DIFFERENTIABLE)


@pytest.mark.parametrize("name", sorted(registry.registry()))
def test_derivatives(name):
    check_op(name, profile=PROFILE)
