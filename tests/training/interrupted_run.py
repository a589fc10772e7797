"""Runs that signals stop; `test_interruption.py` starts this file as a program, which forks a process for each."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killed_run import run

from promptreid.training.trainer import Trainer


def interrupt(at_step: int, number: int, *, times: int = 1) -> None:
    """Send this process a signal in the middle of a step."""
    step = Trainer._step

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.position.step == at_step:
            for _ in range(times):
                handler = signal.getsignal(number)
                os.kill(os.getpid(), number)
                # Two signals that come before the first is handled are one; on a busy machine that takes a while.
                until = time.monotonic() + 30
                while signal.getsignal(number) == handler and time.monotonic() < until:
                    time.sleep(0.001)
        return step(self, *arguments)

    Trainer._step = interrupted


def status_of(folder: Path, prepare: Callable[[], None]) -> int:
    """Exit status of a run in a process of its own; what it says goes to `said.txt`."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        status: Any = 1
        os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test suite in the background ignores it
        try:
            prepare()
            run(folder)
            handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
            status = 0 if handlers == [signal.default_int_handler, signal.SIG_DFL] else 99
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> None:
    # Three steps an epoch: step 4 is the second of epoch 2, step 5 its last, after which the epoch ends first.
    statuses = [
        status_of(folder / "SIGINT", lambda: interrupt(4, signal.SIGINT)),
        status_of(folder / "SIGTERM", lambda: interrupt(5, signal.SIGTERM)),
        status_of(folder / "twice", lambda: interrupt(4, signal.SIGINT, times=2)),
    ]
    print(statuses)
    for name in ("SIGINT", "SIGTERM", "twice"):
        print(name, max((folder / name / "checkpoints").iterdir()).name, (folder / name / "said.txt").read_text())
    print([status_of(folder / name, lambda: None) for name in ("SIGINT", "SIGTERM", "whole")])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
