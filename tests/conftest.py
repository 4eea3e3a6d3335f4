"""Settings of the whole suite: how many examples, how many processes, what is skipped.

TINYGRAD_ML_PROFILE (or --hypothesis-profile) chooses the examples: `ci` draws the same few on
every run, `quick` fewer, `thorough` many new ones and the slow tests too.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", max_examples=25, derandomize=True, database=None, deadline=None)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=5)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("TINYGRAD_ML_PROFILE", "ci"))


def pytest_xdist_auto_num_workers(config):
    """A process per core for the whole suite, this process for a few files (faster to start)."""
    whole = all(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    return None if whole else 0


def pytest_configure(config):
    """Several processes, one thread each: threads that wait for one another waste the cores."""
    if hasattr(config, "workerinput"):
        import tinygrad_ml as tg

        tg.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    profile = os.environ.get("TINYGRAD_ML_PROFILE") or config.getoption("--hypothesis-profile")
    thorough = profile == "thorough"
    for item in items:
        if "thorough" in item.keywords and not thorough:
            item.add_marker(pytest.mark.skip(reason="slow; TINYGRAD_ML_PROFILE=thorough runs it"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and cupy"))


def _has_gpu():
    try:
        import tinygrad_ml as tg

        tg.tensor([0.0], device="cuda")
    except Exception:
        return False
    return True
