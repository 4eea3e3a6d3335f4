"""A pytest plugin: `pytest -p tinygrad_ml.testing.plugin --grad-report`.

It prints, at the end, what check_op and check_all compared. There is no entry point: a test run
that does not name the plugin does not import it.
"""

import json

import pytest

from . import registry
from .gradcheck import table

_KEY = "gradients"


def pytest_addoption(parser):
    """--grad-report, --grad-profile."""
    group = parser.getgroup("gradients")
    group.addoption("--grad-report", action="store_true", help="print what was compared")
    group.addoption("--grad-profile", choices=list(registry.PROFILES), default="ci",
                    help="how many cases of each function")  # fmt: skip


@pytest.fixture
def grad_profile(request):
    """The profile asked for on the command line."""
    return request.config.getoption("--grad-profile")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Keep what was checked during a test with its report (so it travels from xdist's workers)."""
    found = []
    observer = found.append
    registry.observers.append(observer)
    try:
        return (yield)
    finally:
        registry.observers.remove(observer)
        for result in found:
            item.user_properties.append((_KEY, json.dumps(result.as_dict())))


def pytest_terminal_summary(terminalreporter, config):
    """The table of all results."""
    if not config.getoption("--grad-report"):
        return
    rows = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == _KEY and getattr(report, "when", "") == "call":
                    row = json.loads(value)
                    rows[row["name"]] = row
    terminalreporter.section("gradients")
    terminalreporter.write_line(table(list(rows.values())))
