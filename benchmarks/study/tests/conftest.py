"""Toy runs for the study's tests; pytest finds the study's modules by `pythonpath` in pyproject.toml."""

from dataclasses import replace

import pytest
import torch

import measures
import plan
import runs


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def toy_run(monkeypatch):
    """Makes runs of a handful of persons and steps, in a base's domain of ten pairs."""
    budget = plan.Budget((8, 3, 4), 2, (96, 48), 8, 2, 4, 2)
    monkeypatch.setattr(runs, "draw_own_domain", lambda: measures.draw_own_domain(10))
    runs._home.cache_clear()
    run = plan.Run("pd", 0, (5e-3, 3.2e-4), budget=budget)
    yield lambda arm="pd", **changes: replace(run, arm=arm, **changes)
    runs._home.cache_clear()
