"""A drawn dataset, its crops, and the command run in this process."""

import json
import os
import signal
import subprocess
import sys
import time

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


@pytest.fixture
def signalled():
    """Starts a real command and sends it a signal once it is `ready`; its code, standard output and errors."""

    def run(words, number, *, ready, environment=None):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "promptreid", *map(str, words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a suite in the background may ignore it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while not ready(process) and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
        return process.returncode, out, errors

    return run
