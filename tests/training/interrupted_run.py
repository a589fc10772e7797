"""A run that signals stop; `test_interruption.py` starts this file as a program."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from killed_run import run

from promptreid.training.stage_loop import StageLoop


def main(folder: Path, at_step: int, number: int, times: int) -> None:
    """Send this process a signal in the middle of a step."""
    step = StageLoop._step

    def interrupted(self: StageLoop, *arguments: Any) -> Any:
        if self.run.state.step == at_step:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        return step(self, *arguments)

    StageLoop._step = interrupted
    logging.basicConfig(level=logging.INFO)
    run(folder)
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    print("ended", handlers == [signal.default_int_handler, signal.SIG_DFL])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
