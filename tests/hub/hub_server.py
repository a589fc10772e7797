"""A small Hub in memory, on the loopback, that the real huggingface_hub client talks to.

It knows what creating, committing to and reading model repositories needs: branches, tags, pull requests, private
repositories, large files by LFS with ranges, and conflicts of commits. `Hub.faults` makes it misbehave.
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ALICE, BOB = "hf_aliceAliceAlice0", "hf_bobBobBobBobBob1"
DATE = "2026-01-01T00:00:00.000Z"
# Some of the Hub's list.
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "unknown", "other"}
LARGE_ENDINGS = (".safetensors", ".bin", ".pt")


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, bytes]


class Repo:
    def __init__(self, repo_id: str, *, private: bool) -> None:
        self.id, self.private, self.owner = repo_id, private, repo_id.split("/")[0]
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.pull_requests = itertools.count(1)
        self.refs["refs/heads/main"] = self.commit(None, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial")

    def commit(self, parent: str | None, tree: dict[str, bytes], title: str) -> str:
        seed = repr((self.id, parent, len(self.commits), title, sorted(tree)))
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, tree)
        return oid

    def ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        ref = self.ref(revision)
        oid = self.refs[ref] if ref else revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {name: content for name, content in self.find(revision).tree.items() if name != ".gitattributes"}


@dataclass
class Hub:
    """The state of the server, for tests to look at and to change.

    `faults` are asked for each request, with method and path, and return None or what to do: an int for that HTTP
    status, "drop" to break off a body half-way, "close" to hang up unanswered, or bytes to send in place of a file.
    """

    url: str = ""
    tokens: dict[str, str] = field(
        default_factory=lambda: {"hf_aliceAliceAlice0": "alice", "hf_bobBobBobBobBob1": "bob"}
    )
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str, dict]] = field(default_factory=list)
    faults: list[Callable[[str, str], object]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str, size: int) -> bool:
    return name.endswith(LARGE_ENDINGS) or size > 10 * 2**20


def describe(name: str, content: bytes) -> dict:
    entry = {"type": "file", "path": name, "oid": git_id(content), "size": len(content)}
    if is_large(name, len(content)):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def faults_in_card(card: str) -> list[str]:
    """What the Hub's validator says of a card's metadata, as far as its documentation tells.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md, docs/hub/model-cards.md and repositories-licenses.md
    """
    found = re.match(r"\s*---[\r\n]+([\S\s]*?)[\r\n]+---([\r\n]|$)", card)
    if not found:
        return []  # a card without metadata is warned of
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    faults = [] if data.get("license") in LICENSES else [f'"license" must be one of {sorted(LICENSES)}']
    if data.get("license") == "other":
        if not re.fullmatch(r"[a-z0-9.-]+", str(data.get("license_name"))):
            faults.append('"license_name" is required, in lower case')
        if not re.fullmatch(r"LICENSE(\.md)?|https?://\S+", str(data.get("license_link"))):
            faults.append('"license_link" must be LICENSE, LICENSE.md or a URL')
    if data.get("base_model_relation", "adapter") not in {"adapter", "finetune", "merge", "quantized"}:
        faults.append('"base_model_relation" is unknown')
    for model in data.get("model-index", []):
        for result in model["results"]:
            parts = [(result["task"], "type"), (result["dataset"], "type"), (result["dataset"], "name")]
            parts += [(metric, key) for metric in result["metrics"] for key in ("type", "value")]
            faults += [f'"model-index" lacks "{key}"' for part, key in parts if part.get(key) in (None, "")]
    return faults


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to acknowledge its head
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    # -- requests and answers

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.content = self.read_body()
        with self.hub.lock:
            self.hub.log.append((self.command, self.path, dict(self.headers)))
        self.fault = next(filter(None, (fault(self.command, self.path) for fault in self.hub.faults)), None)
        try:
            if self.fault == "close":
                self.close_connection = True
                self.connection.close()
                return
            if isinstance(self.fault, int):
                raise Refusal(self.fault, "out of order")
            self.route(parts.path)
        except Refusal as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self.answer(error.body or {"error": error.message}, status=error.status, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def route(self, path: str) -> None:
        for methods, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if self.command in methods.split() and found:
                arguments = {name: unquote(value) for name, value in found.groupdict(default="").items()}
                with self.hub.lock:
                    reply = action(self, **arguments)
                if reply is not None:
                    self.answer(reply)
                return
        raise Refusal(404, f"no route {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, body: object = b"", *, status: int = 200, headers: dict | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "drop" and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)

    def send_file(self, content: bytes, etag: str, headers: dict | None = None) -> None:
        if isinstance(self.fault, bytes):
            content = self.fault
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **(headers or {})}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self.answer(content, headers=headers)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if start >= len(content):
            self.answer(b"", status=416, headers={"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(content[start : end + 1], status=206, headers=headers)

    # -- who may do what

    @property
    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def find_repo(self, repo_id: str, *, write: bool = False) -> Repo:
        repo, user = self.hub.repos.get(repo_id), self.user
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user != repo.owner:
            raise Refusal(401 if user is None else 403, "Forbidden: you have no right to write")
        return repo

    def validate_yaml(self) -> dict | None:
        errors = [{"message": message} for message in faults_in_card(json.loads(self.content)["content"])]
        if errors:
            raise Refusal(400, "Invalid metadata", body={"errors": errors, "warnings": []})
        return {"errors": [], "warnings": []}

    # -- repositories

    def create(self) -> dict:
        wish = json.loads(self.content)
        user = self.user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{wish.get('organization') or user}/{wish['name']}"
        if repo_id.split("/")[0] != user:
            raise Refusal(403, "You don't have the rights to create a model under this namespace")
        reply = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            raise Refusal(409, "You already created this model repo", body={"error": "exists", **reply})
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        self.hub.repos[repo_id] = Repo(repo_id, private=private)
        return reply

    def info(self, repo_id: str, revision: str = "") -> dict:
        repo = self.find_repo(repo_id)
        commit = repo.find(revision or "main")
        keys = {"_id": "0", "id": repo_id, "modelId": repo_id, "author": repo.owner, "sha": commit.oid, "tags": []}
        stats = {"lastModified": DATE, "createdAt": DATE, "private": repo.private, "gated": False, "disabled": False}
        counts = {"downloads": 0, "likes": 0, "usedStorage": 0}
        return keys | stats | counts | {"siblings": [{"rfilename": name} for name in sorted(commit.tree)]}

    def paths_info(self, repo_id: str, revision: str) -> list[dict]:
        tree = self.find_repo(repo_id).find(revision).tree
        names = parse_qs(self.content.decode()).get("paths", [])
        return [describe(name, tree[name]) for name in names if name in tree]

    def tree(self, repo_id: str, revision: str) -> list[dict]:
        tree = self.find_repo(repo_id).find(revision).tree
        return [describe(name, content) for name, content in sorted(tree.items())]

    def branch(self, repo_id: str, name: str) -> dict:
        repo = self.find_repo(repo_id, write=True)
        if f"refs/heads/{name}" in repo.refs:
            raise Refusal(409, "Reference already exists")
        start = (json.loads(self.content or b"{}") or {}).get("startingPoint") or "main"
        repo.refs[f"refs/heads/{name}"] = repo.find(start).oid
        return {}

    def tag(self, repo_id: str, revision: str) -> dict:
        repo = self.find_repo(repo_id, write=True)
        repo.refs[f"refs/tags/{json.loads(self.content)['tag']}"] = repo.find(revision).oid
        return {}

    # -- commits

    def preupload(self, repo_id: str, revision: str) -> dict:
        tree = self.find_repo(repo_id, write="create_pr" not in self.query).find(revision).tree
        replies = []
        for file in json.loads(self.content)["files"]:
            name, large = file["path"], is_large(file["path"], file["size"])
            held = describe(name, tree[name]) if name in tree else None
            oid = held and (held["lfs"]["oid"] if large else held["oid"])
            mode = "lfs" if large else "regular"
            replies.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": replies}

    def lfs_batch(self, repo_id: str) -> dict:
        self.find_repo(repo_id)
        replies = []
        for wanted in json.loads(self.content)["objects"]:
            reply = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                verify = f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify"
                upload = {"href": f"{self.hub.url}/_lfs/{wanted['oid']}?sig=x", "header": {}}
                reply |= {
                    "authenticated": True,
                    "actions": {"upload": upload, "verify": {"href": verify, "header": {}}},
                }
            replies.append(reply)
        return {"transfer": "basic", "objects": replies}

    def lfs_put(self, oid: str) -> None:
        if sha256(self.content) != oid:
            raise Refusal(400, "sha256 mismatch")
        self.hub.large[oid] = self.content
        self.answer(b"", headers={"ETag": f'"{oid}"'})

    def lfs_get(self, oid: str) -> None:
        if oid not in self.hub.large:
            raise Refusal(404, "no such object")
        self.send_file(self.hub.large[oid], oid)

    def lfs_verify(self, repo_id: str) -> dict:
        return {"message": "ok"}

    def commit(self, repo_id: str, revision: str) -> dict:
        as_request = "create_pr" in self.query
        repo = self.find_repo(repo_id, write=not as_request)
        if self.user is None:
            raise Refusal(401, "log in")
        lines = [json.loads(line) for line in self.content.splitlines() if line.strip()]
        head, parent = lines[0]["value"], repo.find(revision)
        if head.get("parentCommit") not in (None, parent.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(parent.tree)
        for line in lines[1:]:
            self.apply(line["key"], line["value"], tree)
        oid = repo.commit(parent.oid, tree, head["summary"])
        reply = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}
        if as_request:
            number = next(repo.pull_requests)
            repo.refs[f"refs/pr/{number}"] = oid
            return reply | {"pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/{number}"}
        repo.refs[repo.ref(revision) or ""] = oid
        return reply

    def apply(self, key: str, value: dict, tree: dict[str, bytes]) -> None:
        if key == "file":
            tree[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.hub.large:
                raise Refusal(400, f"LFS pointer to an unknown object ({value['path']})")
            tree[value["path"]] = self.hub.large[value["oid"]]
        elif tree.pop(value["path"], None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")

    # -- downloads

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self.find_repo(repo_id).find(revision)
        headers = {"X-Repo-Commit": commit.oid}
        content = commit.tree.get(path)
        if content is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.answer({"error": "Entry not found"}, status=404, headers=headers)
        elif not is_large(path, len(content)):
            self.send_file(content, git_id(content), headers)
        else:
            oid = sha256(content)
            self.hub.large[oid] = content
            # Another origin, as the real Hub's: the client must not follow by itself and miss the headers.
            place = f"http://localhost:{urlsplit(self.hub.url).port}/_lfs/{oid}?sig=x"
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Location": place}
            self.answer(b"", status=302, headers=headers | linked | {"ETag": f'"{oid[:40]}"'})


API = "/api/models/(?P<repo_id>[^/]+/[^/]+)"
PAGE = "/(?P<repo_id>[^/]+/[^/]+?)"
REVISION = "(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", lambda handler: {"type": "user", "name": handler.user, "orgs": [], "auth": {}}),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", API, Handler.info),
    ("GET", f"{API}/revision/{REVISION}", Handler.info),
    ("GET", f"{API}/tree/{REVISION}", Handler.tree),
    ("POST", f"{API}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", f"{API}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", f"{API}/tag/{REVISION}", Handler.tag),
    ("POST", f"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"{API}/commit/{REVISION}", Handler.commit),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/verify", Handler.lfs_verify),
    ("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET HEAD", "/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_get),
    ("GET HEAD", f"{PAGE}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def serve(listener: socket.socket | None = None):
    """Run a server as long as the block lasts, on a socket that is bound already or on any port."""
    hub = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=listener is None)
    if listener is not None:
        server.socket.close()
        server.socket = listener
        server.server_activate()
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
