"""Time of a search over HTTP, and memory of the service in `examples/service.py`.

    python benchmarks/service_speed.py

Two services, each in its own process: the shipped small model with 800 drawn crops, and a ViT-B/16 at 384 x 128
with 100,000 images, whose weights and features are random, which changes neither time nor memory. Requests come from
this process over one connection, one after another (200 of one sentence, then 10 of 64 sentences), and then from 8
clients at once.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch

from _bench import RESULTS, made_with, make_parser, report
from promptreid import Gallery, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

SERVICE = Path(__file__).parents[1] / "examples" / "service.py"
MODEL, IMAGE_SIZE, IMAGES = "ViT-B-16", (384, 128), 100_000
IDENTITIES = (1, 1, 200)
SINGLE, TOGETHER, BATCH, CLIENTS = 200, 10, 64, 8
SENTENCE = "a woman in a red coat and blue jeans with a black backpack, number {}"


def small_service(folder: Path) -> dict[str, str]:
    """The shipped model with drawn crops; what to set in the environment."""
    crops = write_generated(folder / "crops", num_identities=IDENTITIES, seed=0, progress=False)
    Gallery.build(load_prompts(tiny_prompts()), crops, directory=folder / "gallery", progress=False)
    return {"SERVICE_GALLERY": str(folder / "gallery")}


def full_service(folder: Path) -> dict[str, str]:
    """A model and a gallery of the usual size, of random values."""
    save_prompts(PromptedCLIP(load_clip(MODEL, image_size=IMAGE_SIZE)), folder / "model", encoders="always")
    model = load_prompts(folder / "model")
    features = torch.nn.functional.normalize(torch.randn(IMAGES, model.embed_dim), dim=1)
    Gallery(model, [f"{number:06}.jpg" for number in range(IMAGES)], features).save(folder / "gallery")
    return {"SERVICE_GALLERY": str(folder / "gallery"), "SERVICE_MODEL": str(folder / "model")}


class Client:
    """One connection to a service, for a `with` statement."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=120)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def milliseconds(self, *sentences: str) -> float:
        """How long a search takes, from the request to the last byte of the answer."""
        body = json.dumps({"sentences": sentences})
        start = time.perf_counter()
        self._connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}: {content[:200]!r}")
        return 1000 * (time.perf_counter() - start)


def summary(times: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(statistics.quantiles(times, n=20, method="inclusive")[-1], 1),
    }


def megabytes(process: int, name: str) -> int | None:
    """Memory of a process as Linux counts it, VmRSS (now) or VmHWM (the most so far)."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        return None
    found = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return round(int(found.split()[1]) / 1024)


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Return once the service answers."""
    while True:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def ask(port: int, process: int) -> dict[str, Any]:
    """Measure a service that runs."""
    resident = megabytes(process, "VmRSS")
    with Client(port) as client:
        one = [client.milliseconds(SENTENCE.format(number)) for number in range(SINGLE)]
        many = [client.milliseconds(*[SENTENCE.format(number) for number in range(BATCH)]) for _ in range(TOGETHER)]
    with ExitStack() as opened, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [opened.enter_context(Client(port)) for _ in range(CLIENTS)]
        start = time.perf_counter()
        share = range(SINGLE // CLIENTS)
        parts = pool.map(lambda each: [each.milliseconds(SENTENCE.format(number)) for number in share], clients)
        crowded = [value for part in parts for value in part]
        elapsed = time.perf_counter() - start
    return {
        "one sentence": summary(one),
        f"{BATCH} sentences": summary(many) | {"sentences_a_second": round(1000 * BATCH / statistics.median(many))},
        f"{CLIENTS} clients": summary(crowded) | {"requests_a_second": round(len(crowded) / elapsed)},
        "memory_mb": {"before the requests": resident, "at most": megabytes(process, "VmHWM")},
    }


def measure(settings: dict[str, str]) -> dict[str, Any]:
    """Start a service, measure it, end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(SERVICE)],
        env=os.environ | settings | {"SERVICE_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(process, port)
            return {"start_s": round(time.perf_counter() - start, 1)} | ask(port, process.pid)
        finally:
            process.terminate()


def main() -> None:
    """Measure both, print and write."""
    arguments = make_parser(__doc__, output=RESULTS / "service_speed.json").parse_args()
    results: dict[str, Any] = {}
    for name, make in (("promptreid-tiny, drawn crops", small_service), (f"{MODEL}, {IMAGES:,} images", full_service)):
        with tempfile.TemporaryDirectory() as scratch:
            results[name] = measure(make(Path(scratch)))
    report(results | made_with(), arguments.output)


if __name__ == "__main__":
    main()
