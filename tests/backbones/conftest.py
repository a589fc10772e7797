"""The zoo of shrunken architectures, for tests that sweep over all of them."""

import importlib.util
from pathlib import Path

import pytest

_ZOO = Path(__file__).parents[2] / "tools" / "zoo.py"


def load_zoo():
    spec = importlib.util.spec_from_file_location("zoo", _ZOO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def zoo():
    return load_zoo()


def pytest_generate_tests(metafunc):
    """Give a test that asks for `any_name` every architecture that open_clip names."""
    if "any_name" in metafunc.fixturenames:
        metafunc.parametrize("any_name", load_zoo().names())
