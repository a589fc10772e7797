"""The study's modules are scripts that lie beside one another, not a package."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"


@pytest.fixture
def study(monkeypatch):
    """Imports a module of the study by name."""
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module


@pytest.fixture
def toy_run(study, monkeypatch):
    """Makes runs of a handful of persons and steps, in a base's domain of ten pairs."""
    plan, runs, measures = study("plan"), study("runs"), study("measures")
    budget = plan.Budget((8, 3, 4), 2, (96, 48), 8, 2, 4, 2)
    monkeypatch.setattr(runs, "draw_own_domain", lambda: measures.draw_own_domain(10))
    runs._home.cache_clear()
    run = plan.Run("pd", 0, (5e-3, 3.2e-4), budget=budget)
    yield lambda arm="pd", **changes: replace(run, arm=arm, **changes)
    runs._home.cache_clear()
