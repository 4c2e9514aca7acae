"""A server on loopback that speaks the Hub's HTTP API, as far as huggingface_hub needs it.

Repositories live in memory. Small text files are served by the Hub itself, with git's hash as
ETag; safetensors files are redirected to a second server on another port, as the Hub does to its
storage, with their SHA-256 as ETag. Every request is logged, and faults can be injected.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_for_tests_only"


def git_hash(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repo:
    """A model repository: commits of whole trees, and branches."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The last commit on main."""
        return self.refs["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """The files on main."""
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with exactly these files and move a branch to it."""
        hashes = sorted((name, hashlib.sha256(raw).hexdigest()) for name, raw in files.items())
        parents = len(self.commits)
        oid = hashlib.sha1(json.dumps([parents, hashes]).encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[branch] = oid
        return oid


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        path: Part of the path of the requests that it concerns.
        kind: "status:NNN", "cut", "html", "corrupt", "stall" or "slow".
        times: For how many requests.
        method: Of which method.
    """

    path: str
    kind: str
    times: int = 1
    method: str = "GET"

    def concerns(self, method: str, path: str) -> bool:
        """Whether a request meets it."""
        return self.times > 0 and self.method == method and self.path in path


@dataclass
class Request:
    """One logged request."""

    method: str
    path: str
    headers: dict[str, str]
    server: str
    status: int = 0


class LoopbackHub:
    """The two servers and what they hold."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self._servers = [_Server(self, "hub"), _Server(self, "storage")]
        self.endpoint, self.storage = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    def publish(self, repo: str, folder: Path, **kinds: bool) -> str:
        """Publish all files of a folder as a commit on main, and return the commit."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        return self.repos.setdefault(repo, Repo(**kinds)).commit(files)

    def requests(self, method: str, path: str) -> list[Request]:
        """Return the logged requests of a method whose path holds a text."""
        return [r for r in self.log if r.method == method and path in r.path]

    def transfers(self) -> Counter[str]:
        """Return how often each file's content was asked for, by its path or hash."""
        return Counter(
            r.path for part in ("/resolve/", "/cdn/") for r in self.requests("GET", part)
        )

    def close(self) -> None:
        """Stop both servers; connections are refused from then on."""
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Run the servers while the block runs."""
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.role = hub, role
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet; the hub keeps its own log."""

    def do_GET(self) -> None:
        hub = self.server.hub
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._read_chunks()
        path = unquote(urlsplit(self.path).path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.entry = Request(self.command, path, headers, self.server.role)
        with hub.lock:
            hub.log.append(self.entry)
            self.fault = next((f for f in hub.faults if f.concerns(self.command, path)), None)
            if self.fault is not None:
                self.fault.times -= 1
        kind = self.fault.kind if self.fault else ""
        if kind.startswith("status:"):
            self._error(int(kind[7:]), "", "injected")
            return
        if kind == "html":
            page = b"<html><body>Please log in to the hospital network</body></html>"
            self._send(200, page, {"Content-Type": "text/html"})
            return
        for pattern, handler in _ROUTES[self.server.role]:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                handler(self, **match.groupdict())
                return
        self._error(404, "", f"no route for {self.command} {path}")

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # Answers

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.entry.status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(content)

    def _write(self, content: bytes) -> None:
        kind = self.fault.kind if self.fault else ""
        if kind not in ("cut", "stall"):
            time.sleep(0.5 if kind == "slow" else 0)
            self.wfile.write(content)
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True
        if kind == "cut":
            self.connection.close()
        else:
            self.server.hub.released.wait(60)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        """Send a file or the range of it that was asked for."""
        if self.fault is not None and self.fault.kind == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self._send(200, content, {**headers, "Accept-Ranges": "bytes"})
            return
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        limits = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], {**headers, **limits})

    # What a client may see

    @property
    def _token(self) -> str | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if scheme == "Bearer" else None

    def _repo(self, name: str, *, content: bool = False) -> Repo | None:
        """Return a repository, or answer as the Hub does where there is none for this client."""
        repo = self.server.hub.repos.get(name)
        if self._token not in (None, TOKEN):
            self._error(401, "", "Invalid credentials in Authorization header")
            return None
        if repo is None or (repo.private and self._token is None):
            status, code = (404, "RepoNotFound") if self._token else (401, "")
            self._error(status, code, "Repository not found")
            return None
        if repo.gated and content:
            status = 403 if self._token else 401
            self._error(status, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repo

    def _revision(self, repo: Repo, revision: str) -> str | None:
        oid = repo.refs.get(revision) or (revision if revision in repo.commits else None)
        if oid is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # Downloads

    def model_info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        oid = self._revision(found, revision) if found else None
        if found is None or oid is None:
            return
        siblings = [{"rfilename": name} for name in found.commits[oid]]
        about = {"_id": "0", "id": repo, "modelId": repo, "sha": oid, "private": found.private}
        self._json({**about, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._repo(repo, content=True)
        oid = self._revision(found, revision) if found else None
        if found is None or oid is None:
            return
        content = found.commits[oid].get(name)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": oid}
        if not name.endswith(".safetensors"):
            self._content(content, {**headers, "ETag": f'"{git_hash(content)}"'})
            return
        digest = hashlib.sha256(content).hexdigest()
        self.server.hub.objects[digest] = content
        headers["X-Linked-Etag"] = f'"{digest}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"{self.server.hub.storage}/cdn/{digest}?signature=1"
        self._send(302, b"", headers)

    def stored(self, digest: str) -> None:
        content = self.server.hub.objects.get(digest)
        if content is None:
            self._error(404, "", "no such object")
            return
        self._content(content, {"ETag": f'"{digest}"'})

    # Uploads

    def create_repo(self) -> None:
        if self._token != TOKEN:
            self._error(401, "", "Invalid username or password.")
            return
        asked = json.loads(self.body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        hub = self.server.hub
        url = {"url": f"{hub.endpoint}/{name}"}
        if name in hub.repos:
            self._json({**url, "error": "You already created this model repo"}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        hub.repos[name] = Repo(private=private)
        hub.repos[name].commit({})
        self._json(url)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        good = content.startswith("---\n")
        self._json({"errors": [], "warnings": [] if good else [{"message": "empty metadata"}]})

    def preupload(self, repo: str) -> None:
        if self._writable(repo):
            files = json.loads(self.body)["files"]
            for file in files:
                large = file["path"].endswith(".safetensors")
                file |= {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            self._json({"files": files})

    def lfs_batch(self, repo: str) -> None:
        if not self._writable(repo):
            return
        objects = json.loads(self.body)["objects"]
        for item in objects:
            address = f"{self.server.hub.storage}/upload/{item['oid']}"
            item["actions"] = {"upload": {"href": address, "header": {}}}
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            self._error(400, "", "the content does not have this hash")
            return
        self.server.hub.objects[digest] = self.body
        self._send(200, b"")

    def commit(self, repo: str, revision: str) -> None:
        found = self._writable(repo)
        if not found:
            return
        files = dict(found.commits[found.refs[revision]])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.objects[value["oid"]]
        oid = found.commit(files, revision)
        url = f"{self.server.hub.endpoint}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _writable(self, repo: str) -> Repo | None:
        if self._token != TOKEN:
            self._error(403, "", "You don't have the rights to write")
            return None
        return self._repo(repo)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES: dict[str, list[tuple[str, Callable[..., None]]]] = {
    "hub": [
        (rf"GET /api/models/{_REPO}", _Handler.model_info),
        (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.model_info),
        (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
        (r"POST /api/repos/create", _Handler.create_repo),
        (r"POST /api/validate-yaml", _Handler.validate_yaml),
        (rf"POST /api/models/{_REPO}/preupload/[^/]+", _Handler.preupload),
        (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        (rf"POST /api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ],
    "storage": [
        (r"(?:GET|HEAD) /cdn/(?P<digest>[0-9a-f]{64})", _Handler.stored),
        (r"PUT /upload/(?P<digest>[0-9a-f]{64})", _Handler.upload),
    ],
}
