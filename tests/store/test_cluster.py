"""A real S3 cluster: indexed by four processes, killed in every part, searched meanwhile, erased from, restarted.

Run by `make test-store`; nothing here is imitated.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from promptreid.errors import StoreError
from promptreid.retrieval.lance_removal import erase
from promptreid.retrieval.lance_store import LanceStore
from promptreid.retrieval.lance_upkeep import describe, optimize
from promptreid.synthetic import write_generated

pytestmark = [pytest.mark.store, pytest.mark.timeout(900)]

WORKER = Path(__file__).with_name("worker.py")
README = Path(__file__).parents[2] / "README.md"
DIMENSIONS, ROWS, COMMITS = 64, 100, 30


def promptreid(*words, environment=None, **options):
    command = [sys.executable, "-m", "promptreid", *map(str, words), "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **options)


def answer(process, code=0):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return json.loads(out)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_generated(folder, num_identities=(30, 5, 15), images_per_identity=4, seed=7, progress=False)
    return folder


def wait_until(is_so, seconds=60.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "the cluster did not get there"
        time.sleep(0.2)


def worker(url, number, commits=COMMITS):
    command = [sys.executable, str(WORKER), url, str(number), str(commits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def acknowledged(process):
    return {int(line) for line in process.communicate(timeout=300)[0].split()}


def keys_of(store):
    return sorted(key for batch in store.scan(["key"]) for key in batch["key"].to_pylist())


def all_keys(numbers, commits=COMMITS):
    return sorted(
        f"worker{number}/{commit:04}_{row:03}.jpg"
        for number in numbers
        for commit in range(commits)
        for row in range(ROWS)
    )


def test_folder_is_indexed_by_four_processes_of_which_one_is_killed(cluster, environment, crops):
    url = "s3://crops/drawn"
    ranks = [{"RANK": str(number), "WORLD_SIZE": "4"} for number in range(4)]
    running = [promptreid("index", crops, "--store", url, environment=rank) for rank in ranks]
    running[2].send_signal(signal.SIGKILL)
    running[2].communicate()
    done = [answer(running[number]) for number in (0, 1, 3)]
    assert all(one["added"] > 0 for one in done)
    again = answer(promptreid("index", crops, "--store", url, "--shard", "2/4"))
    assert sum(one["added"] for one in [*done, again]) == 200
    assert answer(promptreid("index", crops, "--store", url))["unchanged"] == 200
    info = answer(promptreid("store", "optimize", url))
    assert (info["images"], info["dimensions"], info["keys"]) == (200, 128, ["folder"])
    hits = answer(promptreid("search", url, "a man in a green jacket", "-k", "3"))["hits"]
    assert len(hits) == 3
    assert all(Path(hit["path"]).is_file() for hit in hits)
    erased = answer(promptreid("store", "erase", url, hits[0]["path"]))
    assert (erased["images"], erased["proven"]) == (1, True)
    left = answer(promptreid("search", url, "a man in a green jacket", "-k", "200"))["hits"]
    assert hits[0]["path"] not in [hit["path"] for hit in left]
    assert len(left) == 199


def test_store_survives_killed_workers_and_volume_servers_and_a_restart(cluster, environment):
    url = "s3://crops/killed"
    store = LanceStore.create(url, dimensions=DIMENSIONS)
    searches, stop, failures = [], threading.Event(), []

    def search():
        reader = LanceStore.open(url)
        while not stop.is_set():
            try:
                searches.append(len(reader.nearest(normalize(torch.randn(1, DIMENSIONS), dim=-1), 5)[0]))
            except StoreError as error:  # a volume server has just died
                failures.append(str(error))
            time.sleep(0.05)

    searcher = threading.Thread(target=search)
    searcher.start()
    running = [worker(url, number) for number in range(4)]
    while len(store) < 10 * ROWS:
        time.sleep(0.1)
    running[0].send_signal(signal.SIGKILL)
    cluster.kill("volume1")
    optimize(store)
    kept = [acknowledged(process) for process in running]
    assert [process.returncode for process in running[1:]] == [0, 0, 0]
    assert kept[1] == kept[2] == kept[3] == set(range(COMMITS))
    stop.set()
    searcher.join()
    assert len(searches) > 10
    assert len(failures) < len(searches)
    present = set(keys_of(store))
    for number, commits in enumerate(kept):
        lost = [commit for commit in commits if f"worker{number}/{commit:04}_000.jpg" not in present]
        assert not lost, f"acknowledged commits of worker {number} were lost"
    redone = worker(url, 0)
    assert acknowledged(redone) == set(range(COMMITS))
    assert keys_of(store) == all_keys(range(4))
    cluster.start("volume1")
    done = erase(store, where={"camera": "cam_3"}, alone=True)
    assert (done.images, done.proven, done.left) == (COMMITS * ROWS, True, ())
    cluster.stop()
    for name in ("master", "volume0", "volume1", "volume2", "filer", "s3"):
        cluster.start(name)
    cluster.make_bucket("restarted")
    assert keys_of(LanceStore.open(url)) == all_keys(range(3))


def test_index_is_kept_and_resumed_where_the_network_is_lost(cluster, environment, crops):
    url = "s3://crops/lost"
    assert answer(promptreid("index", crops, "--store", url, "--shard", "0/2"))["added"] > 50
    cluster.kill("s3")
    failed = answer(promptreid("index", crops, "--store", url), code=5)
    assert "cannot be reached" in failed["error"]
    cluster.start("s3")
    resumed = answer(promptreid("index", crops, "--store", url))
    assert resumed["added"] + resumed["unchanged"] == 200
    assert resumed["unchanged"] > 50


def test_writer_that_loses_the_network_keeps_what_was_acknowledged(cluster, environment):
    url, commits = "s3://crops/cut", 100
    store = LanceStore.create(url, dimensions=DIMENSIONS)
    running = worker(url, 0, commits)
    wait_until(lambda: running.poll() is not None or len(store) >= 4 * ROWS)
    assert running.poll() is None
    cluster.kill("s3")
    try:
        out, errors = running.communicate(timeout=300)
    finally:
        cluster.start("s3")
    assert running.returncode == 1
    assert "cannot be reached (" in errors
    present = keys_of(store)
    assert len(set(present)) == len(present) < commits * ROWS
    assert all(f"worker0/{int(commit):04}_099.jpg" in present for commit in out.split())
    assert acknowledged(worker(url, 0, commits)) == set(range(commits))
    assert keys_of(store) == all_keys([0], commits)


def test_cluster_with_full_disks_is_searched_and_what_it_does_not_take_is_added_later(cluster, environment, crops):
    url, servers = "s3://crops/full", ("volume0", "volume1", "volume2")

    def restart(*options):
        for name in servers:
            if name in cluster.processes:
                cluster.kill(name)
        for name in servers:
            cluster.start(name, *options)
        wait_until(lambda: cluster.known() == len(servers))

    added = answer(promptreid("index", crops, "--store", url, "--shard", "0/2"))["added"]
    assert added > 50
    try:
        restart("-minFreeSpacePercent=100")  # they take their disks for full, whatever is free
        wait_until(lambda: not cluster.writes())
        failed = answer(promptreid("index", crops, "--store", url), code=5)
        assert re.search(r"is failing \(500 .*disks are full.*the same command resumes", failed["error"])
        assert answer(promptreid("search", url, "a man in a green jacket", "-k", "3"))["hits"]
    finally:
        restart()
    wait_until(cluster.writes)
    resumed = answer(promptreid("index", crops, "--store", url))
    assert (resumed["unchanged"], resumed["added"]) == (added, 200 - added)


@pytest.mark.parametrize(
    ("changes", "url", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://crops/drawn", "credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://crops/drawn", "refuses these credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://crops/drawn", "refuses these credentials"),
        ({}, "s3://no-such-bucket/drawn", "there is no bucket"),
        ({}, "s3://crops/no-such-store", "there is no store in"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cluster, environment, changes, url, words):
    env = {name: value for name, value in changes.items() if value}
    for name in changes:
        if name not in env:
            os.environ.pop(name, None)  # the fixture sets it again
    failed = answer(promptreid("store", "info", url, environment=env), code=2)
    assert words in failed["error"]


def test_one_who_may_only_read_cannot_write(cluster, environment, crops):
    reader = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "may-only-read"}
    failed = answer(promptreid("index", crops, "--store", "s3://crops/other", environment=reader), code=2)
    assert "refuses these credentials" in failed["error"]


@pytest.mark.slow
def test_the_three_lines_of_the_readme_take_a_folder_to_a_bucket(cluster, environment, crops, tmp_path):
    lines = re.findall(r"^\$ (.* s3://bucket/.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 3
    cluster.make_bucket("bucket")
    shutil.copytree(crops, tmp_path / "crops")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in lines:
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PATH": programs},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert re.match(r" +1 +0\.\d+ +crops/imgs/", done.stdout)
    assert len(LanceStore.open("s3://bucket/crops")) == 200


@pytest.mark.slow
def test_many_rounds_of_kills_lose_no_acknowledged_row(cluster, environment):
    url, draw = "s3://crops/rounds", random.Random(0)
    store = LanceStore.create(url, dimensions=DIMENSIONS)
    for _ in range(12):
        running = [worker(url, number) for number in range(4)]
        time.sleep(draw.uniform(0.5, 4.0))
        victim, server = draw.randrange(4), f"volume{draw.randrange(3)}"
        running[victim].send_signal(signal.SIGKILL)
        cluster.kill(server)
        kept = [acknowledged(process) for process in running]
        present = keys_of(store)
        assert len(present) == len(set(present))
        known = set(present)
        assert all(f"worker{n}/{c:04}_099.jpg" in known for n, commits in enumerate(kept) for c in commits)
        cluster.start(server)
        optimize(store)
        assert describe(store).images == len(present)
    assert keys_of(store) == all_keys(range(4))
