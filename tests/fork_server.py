"""Starts programs as forks of one process that has imported promptreid already; `conftest.py` starts this file.

A fresh interpreter takes seconds to import torch and open_clip. A fork of one that only imported them takes
milliseconds, and knows as little of any test.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from typing import Any

PRELOADED = (
    "accelerate",
    "promptreid.retrieval.gallery",
    "promptreid.training.trainer",
)


def run(request: dict[str, Any]) -> int:
    """Run a program as `python FILE ARGUMENTS` or `python -c CODE ARGUMENTS` would; returns its exit status."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    program, *arguments = request["arguments"]
    sys.argv = ["-c" if request["is_code"] else program, *arguments]
    try:
        if request["is_code"]:
            exec(program, {"__name__": "__main__"})
        else:
            sys.path.insert(0, os.path.dirname(program))
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(request: dict[str, Any], descriptors: list[int]) -> None:
    """Run a program in a process of its own, and write its number and then its exit status to the last descriptor."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        os.write(descriptors[3], f"{pid}\n".encode())
        os.write(descriptors[3], f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    status = run(request)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # else the first collection in each fork copies all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the programs
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 2**16, 4)
        while message and not message.endswith(b"\n"):
            message += server.recv(2**16)
        if not message:
            return
        if os.fork() == 0:
            server.close()
            start(json.loads(message), list(descriptors))
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
