"""Every rule of the library, made wrong in many ways: the specs find each mistake."""

import os

import pytest

from tinygrad_ml import ops
from tinygrad_ml.testing import mutants


def test_a_sample_that_covers_each_rule_leaves_no_survivor():
    assert mutants.survivors(mutants.verdicts(every=19)) == []


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_no_survivor():
    found = list(mutants.all_verdicts(jobs=os.cpu_count()))
    assert mutants.survivors(found) == []
    killed = {(v.rule, v.mutation) for v in found if v.seed is not None}
    assert not killed & set(mutants.EQUIVALENT)  # the list names only what lives


def test_a_planted_rule_is_put_back():
    right = ops.mul.vjps["a"]
    with mutants.planted(ops.mul, "a", lambda g, b: g):
        assert ops.mul.vjps["a"] is not right
    assert ops.mul.vjps["a"] is right
