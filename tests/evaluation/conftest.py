"""A copy of the shipped small model for each test."""

import copy

import pytest


@pytest.fixture
def model(shipped):
    """A fresh copy of the shipped model with two prompts a block."""
    return copy.deepcopy(shipped[0])
