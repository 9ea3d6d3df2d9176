"""The examples in the docstrings of the schedules."""

import doctest
import importlib
import pkgutil

import pytest

import autolr_ray.schedule

MODULES = sorted(module.name for module in pkgutil.iter_modules(autolr_ray.schedule.__path__))
WITH_EXAMPLES = {"auto_warmup", "decay", "linear_warmup"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"autolr_ray.schedule.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    if name in WITH_EXAMPLES:
        assert result.attempted > 0


def test_modules_with_examples_exist():
    assert set(MODULES) >= WITH_EXAMPLES
