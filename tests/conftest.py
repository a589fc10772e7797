"""Small open_clip models that every room's tests share; nothing is downloaded."""

import copy
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
import torch

# A commit that passed passes again; `make test-all` draws new cases each time. No case fails since the machine is slow.
hypothesis.settings.register_profile("same_cases", derandomize=True, deadline=None)
hypothesis.settings.register_profile("new_cases", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same_cases"))

# huggingface_hub reads these when it is imported. Nobody listens on this port but the tests' own small Hub, and that
# only in tests that ask for it: whatever else wants to download fails at once.
HUB_SOCKET = socket.socket()
HUB_SOCKET.bind(("127.0.0.1", 0))
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_SOCKET.getsockname()[1]}"
os.environ["HF_HUB_DISABLE_XET"] = "1"


def pytest_unconfigure() -> None:
    HUB_SOCKET.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.name == "nt":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip(reason="Windows has no permissions, pipes and signals of this kind"))


def pytest_collection_finish() -> None:
    """Imported modules are garbage to nobody: accelerate collects at each stage, else half a second each time."""
    gc.collect()
    gc.freeze()


collect_ignore = ["fork_server.py"]  # a program

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": [32, 16], "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 512, "width": 24, "heads": 3, "layers": 3},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model_cfg() -> dict:
    return copy.deepcopy(CONFIG)


@pytest.fixture
def clip(model_cfg: dict) -> torch.nn.Module:
    """An open_clip CLIP of three narrow blocks a tower, with random weights, in eval mode."""
    from open_clip.model import CLIP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CLIP(**model_cfg)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> torch.Tensor:
    """Five captions of 4 to 12 tokens between start (510) and end (511), padded with 0."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.zeros(5, 24, dtype=torch.int64)
    for row, words in enumerate((4, 12, 7, 9, 5)):
        tokens[row, 0] = 510
        tokens[row, 1 : 1 + words] = torch.randint(1, 500, (words,), generator=generator)
        tokens[row, 1 + words] = 511
    return tokens


@pytest.fixture(scope="session")
def hub_socket() -> socket.socket:
    """The port that huggingface_hub takes for the Hub's."""
    return HUB_SOCKET


class Program:
    """A program that the fork server runs; as much of `subprocess.Popen` as tests use."""

    def __init__(self, server: socket.socket, arguments: list[str], *, is_code: bool, cwd: str) -> None:
        ends = [os.pipe() for _ in range(4)]  # standard input, output and errors, and the exit status
        given = [ends[0][0], *(end[1] for end in ends[1:])]
        request = {"arguments": arguments, "is_code": is_code, "env": {**os.environ}, "cwd": cwd}
        message = json.dumps(request).encode() + b"\n"
        server.sendall(message[socket.send_fds(server, [message], given) :])
        for descriptor in given:
            os.close(descriptor)
        self.stdin = os.fdopen(ends[0][1], "w", encoding="utf-8")
        self.stdout, self.stderr, self._status = (os.fdopen(end[0], encoding="utf-8") for end in ends[1:])
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """End its input and wait for its end; returns what it printed and its errors."""
        self.stdin.close()
        with ThreadPoolExecutor(1) as reader:
            errors = reader.submit(self.stderr.read)
            printed = self.stdout.read()
        self.returncode = int(self._status.readline())
        for stream in (self.stdout, self.stderr, self._status):
            stream.close()
        return printed, errors.result()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.stdout.closed:
            self.communicate()


@pytest.fixture(scope="session")
def _fork_server() -> Generator[socket.socket | None, None, None]:
    if not hasattr(os, "fork"):
        yield None
        return
    own, other = socket.socketpair()
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(other.fileno())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, pass_fds=[other.fileno()], env=environment, stdin=subprocess.DEVNULL) as server:
        other.close()
        yield own
        own.close()
        server.wait()


@pytest.fixture(scope="session")
def fork(_fork_server: socket.socket | None) -> Callable[..., "Program | subprocess.Popen[str]"]:
    """Starts a program in a process of its own, on one thread, with promptreid imported already where that can be.

    `fork(path, *arguments)` or `fork(code, *arguments)`.
    """

    def start(
        program: Path | str, *arguments: object, cwd: Path | str | None = None
    ) -> "Program | subprocess.Popen[str]":
        words, is_code = [str(program), *map(str, arguments)], isinstance(program, str)
        if _fork_server is not None:
            return Program(_fork_server, words, is_code=is_code, cwd=str(cwd or os.getcwd()))
        command = [sys.executable, *(["-c"] if is_code else []), *words]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, **pipes, text=True, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"})

    return start


def load_zoo():
    """The module tools/zoo.py: every architecture that open_clip names, shrunk."""
    spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parents[1] / "tools" / "zoo.py")
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


@pytest.fixture(scope="session")
def shipped():
    """The shipped small model with two prompts a block, and its tokenizer; take a copy before changing it."""
    from promptreid import PromptConfig, PromptedCLIP, load_clip

    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    return model, model.tokenizer


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    """24 drawn pictures of 6 persons, two captions each."""
    from promptreid.data.reader import load_cuhk_pedes
    from promptreid.synthetic import write_generated

    root = tmp_path_factory.mktemp("drawn") / "data"
    return load_cuhk_pedes(write_generated(root, num_identities=(1, 1, 6), seed=0, progress=False)).test


@pytest.fixture
def tables_restored() -> Generator[None]:
    """What a page adds to the package's tables does not stay for other tests."""
    from promptreid.scores import METRICS
    from promptreid.towers.checkpoint_kinds import KINDS
    from promptreid.towers.families import VISION_FAMILIES

    lists, metrics = [(table, list(table)) for table in (KINDS, VISION_FAMILIES)], dict(METRICS)
    yield
    for table, before in lists:
        table[:] = before
    METRICS.clear()
    METRICS.update(metrics)


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory) -> Path:
    """What a page of the documentation may expect in the working directory; take a copy before running it there.

    `data/CUHK-PEDES` in its layout, `data/people` in the layout of docs/extending.md, and `crops` as `promptreid try`
    draws them.
    """
    import shutil

    from promptreid.data.reader import load_cuhk_pedes
    from promptreid.synthetic import write_generated

    folder = tmp_path_factory.mktemp("reader")
    drawn = load_cuhk_pedes(write_generated(folder / "data/CUHK-PEDES", num_identities=(8, 4, 4), progress=False))
    (folder / "data/people/photos").mkdir(parents=True)
    lines = []
    for number, record in enumerate(record for split in drawn.splits for record in split.records):
        name = f"{number:04}.jpg"
        shutil.copy(record.path, folder / "data/people/photos" / name)
        lines.append("\t".join((name, str(record.person_id), record.split, *record.captions)) + "\n")
    (folder / "data/people/people.tsv").write_text("".join(lines), encoding="utf-8")
    write_generated(folder / "crops", num_identities=(6, 1, 1), progress=False)
    return folder


@pytest.fixture
def fresh_compiler() -> None:
    """Forgets what was compiled: a graph break in one model is remembered for all models of the same code."""
    torch.compiler.reset()
