"""A drawn dataset, its crops, and the command run in this process."""

import json

import pytest

from promptreid.cli.main import main
from promptreid.synthetic import write_generated


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A dataset of 4 + 1 + 3 persons, 4 images each."""
    root = tmp_path_factory.mktemp("drawn") / "data"
    return write_generated(root, num_identities=(4, 1, 3), seed=0, progress=False)


@pytest.fixture
def call(capsys):
    """Runs a command; returns its exit code, what it printed (read as JSON with `--json`) and its errors."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return code, json.loads(written.out) if "--json" in arguments else written.out, written.err

    return run
