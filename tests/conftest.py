"""Settings of the whole suite: how many examples, how many processes, what is skipped.

TINYGRAD_ML_PROFILE (or --hypothesis-profile) chooses the examples: `ci` draws the same few on
every run, `quick` fewer, `thorough` many new ones and the slow tests too.
"""

import contextlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", max_examples=25, derandomize=True, database=None, deadline=None)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=5)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("TINYGRAD_ML_PROFILE", "ci"))

ON_CUDA = os.environ.get("TINYGRAD_ML_TEST_DEVICE", "cpu") == "cuda"  # see cuda_sim/suite.py


def pytest_xdist_auto_num_workers(config):
    """A process per core for the whole suite, this process for a few files (faster to start)."""
    whole = all(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    return None if whole else 0


def pytest_configure(config):
    """Several processes, one thread each: threads that wait for one another waste the cores."""
    if hasattr(config, "workerinput"):
        import tinygrad_ml as tg

        tg.set_num_threads(1)
    if ON_CUDA:
        from cuda_sim import suite

        suite.begin()


def pytest_collection_modifyitems(config, items):
    profile = os.environ.get("TINYGRAD_ML_PROFILE") or config.getoption("--hypothesis-profile")
    thorough = profile == "thorough"
    if ON_CUDA:
        from cuda_sim import suite

        suite.select(items)
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


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request):
    """The device "cuda": the stand-in over the simulator, or what is there."""
    if request.param == "real":
        yield contextlib.nullcontext
        return
    import cuda_sim

    if cuda_sim.available() is not None:
        pytest.skip(cuda_sim.available())
    from cuda_sim import standin

    before = {name: sys.modules.get(name) for name in standin.MODULES}
    standin.install()

    @contextlib.contextmanager
    def in_every_order():
        launches = standin.Count.launches
        with cuda_sim.orders(*cuda_sim.ORDERS):
            yield
        assert standin.Count.launches > launches, "no kernel ran"

    yield in_every_order
    standin.remove()
    for name, module in before.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
