"""Every differentiable function, on seeded cases; collection fails for one without a spec."""

import pytest

from tinygrad_ml import arrays, functional, linalg, ops
from tinygrad_ml.testing import check_op, registry

registry.require_complete(ops, arrays, functional, linalg, exempt=registry.NOT_DIFFERENTIABLE)


@pytest.mark.parametrize("name", sorted(registry.registry()))
def test_derivatives(name):
    check_op(name)
