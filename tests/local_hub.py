"""A small server on loopback with as much of the Hub's HTTP API as its own client asks for when it pushes and pulls.

The client (huggingface_hub) is the real one; what this does not show is how the Hub itself answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".parquet")
TOKEN = "hf_writer"


@dataclass
class Repo:
    private: bool
    commits: list[str] = field(default_factory=list)
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by commit."""

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr(self.commits).encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        self.commits.append(digest.hexdigest())
        self.trees[self.commits[-1]] = dict(files)
        return self.commits[-1]

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return revision if revision in self.trees else None


@dataclass
class Hub:
    """The server's state, for tests to look at and to tamper with."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256."""
    requests: list[str] = field(default_factory=list)
    """``METHOD path`` of all requests."""
    lose: str | None = None
    """A file that commits leave out, as a broken proxy would."""


@contextmanager
def local_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def _answer(self, status: int, value: object = None, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refuse(self, code: str, status: int = 404) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _path(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def _repo(self, owner: str, name: str) -> Repo | None:
        repo = self.hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not self._writer()):
            self._refuse("RepoNotFound", 401)
            return None
        return repo

    def do_GET(self) -> None:
        match self._path():
            case ["api", "models", owner, name, *rest]:
                if (repo := self._repo(owner, name)) is not None:
                    self._model(repo, f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, *path]:
                if (repo := self._repo(owner, name)) is None:
                    return
                commit = repo.resolve(revision)
                content = repo.trees.get(commit or "", {}).get("/".join(path))
                if content is None:
                    self._refuse("EntryNotFound")
                    return
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self._answer(200, content, {"ETag": etag, "X-Repo-Commit": commit or ""})
            case _:
                self._refuse("NotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _model(self, repo: Repo, name: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.resolve(revision)
        if rest[:1] == ["tree"]:
            if commit is None:
                self._refuse("RevisionNotFound")
                return
            self._answer(200, [_entry(path, content) for path, content in repo.trees[commit].items()])
            return
        if commit is None and rest:
            self._refuse("RevisionNotFound")
            return
        self._answer(200, {"id": name, "sha": commit, "private": repo.private, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        *_, oid = self._path()
        content = self._body()
        self.hub.blobs[oid] = content
        self._answer(200 if hashlib.sha256(content).hexdigest() == oid else 400)

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if not self._writer():
            self._refuse("Unauthorized", 401)
            return
        match path:
            case ["api", "validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                made = name not in self.hub.repos
                if made:
                    self.hub.repos[name] = Repo(
                        private=asked.get("visibility") == "private" or bool(asked.get("private"))
                    )
                    self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
                self._answer(200 if made else 409, {"url": f"{self.hub.url}/{name}", "name": name})
            case ["api", "models", owner, name, "preupload", _]:
                files = [
                    {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LFS_SUFFIXES) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for one in json.loads(body)["files"]
                ]  # fmt: skip
                self._answer(200, {"files": files})
            case [owner, name, "info", "lfs", "objects", "batch"]:
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._answer(200, {"transfer": "basic", "objects": objects})
            case ["api", "models", owner, name, "commit", _]:
                if (repo := self._repo(owner, name)) is not None:
                    commit = repo.commit(self._committed(repo, body))
                    self._answer(
                        200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{owner}/{name}/commit/{commit}"}
                    )
            case _:
                self._refuse("NotFound")

    def _committed(self, repo: Repo, body: bytes) -> dict[str, bytes]:
        files = dict(repo.trees[repo.commits[-1]])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        if self.hub.lose:
            files.pop(self.hub.lose, None)
        return files


def _entry(path: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry
