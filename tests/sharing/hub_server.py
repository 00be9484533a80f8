"""A Hub on loopback, of the standard library alone: the part of its HTTP protocol that pushing and pulling models use.

What it keeps is in memory. Large files go through git-LFS: a batch request, PUTs to a storage address (in one piece or
in parts), then a commit that names them; regular files travel in the commit. Commits of a branch are chained, and one
that names another parent than the branch's head is refused.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".gguf", ".pt")
PAGE = 1000


class File(NamedTuple):
    oid: str
    size: int
    is_lfs: bool


class Commit(NamedTuple):
    sha: str
    parent: str | None
    message: str
    files: dict[str, File]


class Repo:
    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", "initial commit", {})

    def commit(self, branch: str, message: str, files: dict[str, File]) -> str:
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{message}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, message, files)
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


class Answer(Exception):
    """Ends a request with an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class HubServer:
    """The server, and what tests look at or tamper with.

    Attributes:
        tokens: who each token is, and whether it may write.
        repos, blobs: what is stored; blobs by SHA-1 (regular files) or SHA-256 (large ones).
        uploaded: how many bytes of each large file arrived in PUTs, also in those that were cut off.
        requests: "METHOD path" of all requests so far.
        leaks: requests to the storage that carried a token.
        on: (pattern, function) pairs; a function is called before the first request that its pattern matches, once;
            what it raises is the answer.
        cut_upload_after: a PUT is dropped after so many bytes; None drops none.
        cut_downloads: names of files that are sent with half of their bytes, as often as they stand in it.
        part_size: large files are taken in parts of this size; None takes them in one piece.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_" + "w" * 34: ("me", True), "hf_" + "r" * 34: ("me", False)}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.uploaded: dict[str, int] = {}
        self.requests: list[str] = []
        self.leaks: list[str] = []
        self.on: list[tuple[str, Callable[[], None]]] = []
        self.cut_upload_after: int | None = None
        self.cut_downloads: list[str] = []
        self.part_size: int | None = None
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        # Another host by its name, as the Hub's storage is: tokens must not go there.
        self.storage = f"http://localhost:{self.http.server_port}/storage"
        # Polled often, so that a test does not wait half a second for its end.
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def token(self) -> str:
        """One that may write."""
        return next(iter(self.tokens))

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main", private: bool = False) -> str:
        """Store files as a new commit, past all checks; returns its SHA."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        known = repo.at(branch) or repo.at("main")
        new = {path: self.store(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return repo.commit(branch, "added by a test", {**(known.files if known else {}), **new})

    def store(self, content: bytes, is_lfs: bool) -> File:
        oid = hashlib.sha256(content).hexdigest() if is_lfs else git_hash(content)
        self.blobs[oid] = content
        return File(oid, len(content), is_lfs)

    def content(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        commit = self.repos[repo_id].at(revision)
        assert commit is not None
        return self.blobs[commit.files[path].oid]

    def names(self, repo_id: str, revision: str = "main") -> set[str]:
        commit = self.repos[repo_id].at(revision)
        assert commit is not None
        return set(commit.files)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"hub": self})


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Head and body in one piece: else each answer waits for the client's acknowledgement of its head.
    wbufsize = 2**16

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        hub, self.address = self.hub, urlsplit(self.path)
        path = self.address.path
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/storage") and "Authorization" in self.headers:
                hub.leaks.append(path)
            due = [entry for entry in hub.on if re.search(entry[0], hub.requests[-1])]
            hub.on[:] = [entry for entry in hub.on if entry not in due]
        try:
            for _, action in due:
                action()
            for method, pattern, route in _ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command.replace("HEAD", "GET") and match:
                    route(self, *(unquote(group) for group in match.groups()))
                    return
            raise Answer(404, f"no route {path}")
        except Answer as answer:
            self._send(answer.status, {"error": answer.message}, {"X-Error-Code": answer.code})
        except (ConnectionError, _Dropped):
            self.close_connection = True

    # Answers

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._drain()
        self._send_bytes(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            if text:
                self.send_header(name, text)
        if status >= 400:
            # As the Hub repeats its words.
            self.send_header("X-Error-Message", json.loads(body)["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drain(self) -> None:
        """Take a body that nobody read: what is left of it would be the next request."""
        if self.command in ("POST", "PUT"):
            self._body()

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        del self.headers["Content-Length"]
        return self.rfile.read(length)

    def _json(self) -> Any:
        return json.loads(self._body() or b"{}")

    # Who asks, and for what

    def _user(self) -> tuple[str | None, bool]:
        given = self.headers.get("Authorization")
        if given is None:
            return None, False
        known = self.hub.tokens.get(given.removeprefix("Bearer "))
        if known is None:
            raise Answer(401, "Invalid credentials in Authorization header")
        return known

    def _repo(self, repo_id: str, write: bool = False) -> Repo:
        user, may_write = self._user()
        repo, owner = self.hub.repos.get(repo_id), repo_id.partition("/")[0]
        if repo is None or (repo.private and user != owner):
            # Whoever is nobody hears that he has to say who he is.
            raise Answer(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Answer(401, "Invalid username or password.")
        if write and not (may_write and user == owner):
            raise Answer(403, "Forbidden: you must use a write token to upload to a repository")
        return repo

    def _commit(self, repo_id: str, revision: str) -> Commit:
        commit = self._repo(repo_id).at(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # The API

    def whoami(self) -> None:
        user, may_write = self._user()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        role = "write" if may_write else "read"
        self._send(200, {"name": user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create(self) -> None:
        user, may_write = self._user()
        wish = self._json()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        repo_id = f"{wish['organization'] or user}/{wish['name']}"
        if not may_write or not repo_id.startswith(f"{user}/"):
            raise Answer(403, f"You don't have the rights to create a model under the namespace {repo_id}")
        known = repo_id in self.hub.repos
        if not known:
            self.hub.repos[repo_id] = Repo(wish.get("visibility") == "private" or bool(wish.get("private")))
        body = {"url": f"{self.hub.url}/{repo_id}", "error": "You already created this model repo"}
        self._send(409 if known else 200, body)

    def info(self, repo_id: str, revision: str = "main") -> None:
        commit = self._commit(repo_id, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        self._send(
            200,
            {
                **{"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit.sha, "siblings": siblings},
                **{"private": self.hub.repos[repo_id].private, "gated": False, "disabled": False},
                **{"downloads": 0, "likes": 0, "tags": [], "lastModified": "2026-01-01T00:00:00.000Z"},
            },
        )

    def tree(self, repo_id: str, revision: str) -> None:
        files = self._commit(repo_id, revision).files
        query = {name: values[0] for name, values in parse_qs(self.address.query).items()}
        first = int(query.get("cursor", "0"))
        page = [_entry(path, file) for path, file in list(files.items())[first : first + PAGE]]
        rest = f"{self.hub.url}{self.address.path}?recursive=true&cursor={first + PAGE}"
        self._send(200, page, {"Link": f'<{rest}>; rel="next"'} if first + PAGE < len(files) else None)

    def refs(self, repo_id: str) -> None:
        branches = self._repo(repo_id).branches
        found = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
        self._send(200, {"branches": found, "converts": [], "tags": []})

    def branch(self, repo_id: str, name: str) -> None:
        repo = self._repo(repo_id, write=True)
        if name in repo.branches:
            raise Answer(409, f"Reference already exists: {name}")
        repo.branches[name] = self._commit(repo_id, self._json().get("startingPoint", "main")).sha
        self._send(200, {})

    def validate(self) -> None:
        text = self._json()["content"]
        if not text.startswith("---"):
            self._send(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        else:
            self._send(200, {"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        self._repo(repo_id, write=True)
        known = self._commit(repo_id, revision).files
        wished = [file["path"] for file in self._json()["files"]]
        modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in wished]
        oids = [known[path].oid if path in known else None for path in wished]
        self._send(
            200,
            {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
                    for path, mode, oid in zip(wished, modes, oids, strict=True)
                ]
            },
        )

    def batch(self, repo_id: str) -> None:
        self._repo(repo_id, write=True)
        objects = []
        for wish in self._json()["objects"]:
            oid, size = wish["oid"], wish["size"]
            put, known = f"{self.hub.storage}/{oid}", oid in self.hub.blobs
            upload: dict[str, Any] = {"href": put}
            step = self.hub.part_size
            if step and size > step:
                parts = {str(part): f"{put}/{part}" for part in range(1, -(-size // step) + 1)}
                upload = {"href": f"{put}/complete", "header": {"chunk_size": str(step), **parts}}
            verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify"}
            objects.append(
                {"oid": oid, "size": size} | ({} if known else {"actions": {"upload": upload, "verify": verify}})
            )
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str, part: str = "0") -> None:
        length, limit = int(self.headers["Content-Length"]), self.hub.cut_upload_after
        body = self.rfile.read(length if limit is None else min(length, limit))
        del self.headers["Content-Length"]
        with self.hub.lock:
            self.hub.uploaded[oid] = self.hub.uploaded.get(oid, 0) + len(body)
        if len(body) < length:
            raise _Dropped
        if part == "0" and hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the checksum does not match")
        self.hub.blobs.update({oid: body} if part == "0" else {})
        self.hub.parts[oid, int(part)] = body
        self._send_bytes(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in self._json()["parts"]]
        body = b"".join(self.hub.parts[oid, number] for number in numbers)
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the checksum does not match")
        self.hub.blobs[oid] = body
        self._send(200, {})

    def verify(self, repo_id: str) -> None:
        self._repo(repo_id, write=True)
        given = self._json()
        if len(self.hub.blobs.get(given["oid"], b"")) != given["size"]:
            raise Answer(404, "the object was not uploaded")
        self._send(200, {})

    def commit(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, write=True)
        if revision not in repo.branches:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self._body().splitlines()]
        with self.hub.lock:
            head = self._commit(repo_id, revision)
            header, files = lines[0]["value"], dict(head.files)
            if header.get("parentCommit") not in (None, head.sha):
                raise Answer(412, "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        raise Answer(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = File(value["oid"], len(self.hub.blobs[value["oid"]]), True)
                elif line["key"] == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), is_lfs=False)
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = repo.commit(revision, header["summary"], files)
        url = f"{self.hub.url}/{repo_id}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # Files

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._commit(repo_id, revision)
        file = commit.files.get(path)
        if file is None:
            raise Answer(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.oid}"'}
        if not file.is_lfs:
            self._send_file(path, file, headers)
            return
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.oid}"'}
        location = f"{self.hub.storage}/{file.oid}?name={quote(path)}"
        self._send_bytes(302, b"", {**headers, **linked, "Location": location})

    def stored(self, oid: str) -> None:
        if oid not in self.hub.blobs:
            raise Answer(404, "NoSuchKey")
        name = parse_qs(self.address.query)["name"][0]
        self._send_file(name, File(oid, len(self.hub.blobs[oid]), True), {"ETag": f'"{oid}"'})

    def _send_file(self, name: str, file: File, headers: dict[str, str]) -> None:
        body, status = self.hub.blobs[file.oid], 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            first, status = int(asked[1]), 206
            headers = {**headers, "Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            body = body[first:]
        if name not in self.hub.cut_downloads or self.command == "HEAD":
            self._send_bytes(status, body, headers)
            return
        self.hub.cut_downloads.remove(name)
        self._send_bytes(status, body[: len(body) // 2], {**headers, "Content-Length": str(len(body))})
        raise _Dropped


class _Dropped(Exception):
    """The connection ends here."""


def _entry(path: str, file: File) -> dict[str, Any]:
    lfs = {"oid": file.oid, "size": file.size, "pointerSize": 134}
    oid = hashlib.sha1(file.oid.encode()).hexdigest() if file.is_lfs else file.oid
    return {"type": "file", "path": path, "oid": oid, "size": file.size} | ({"lfs": lfs} if file.is_lfs else {})


_ID, _PART = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_ID}", _Handler.info),
    ("GET", f"/api/models/{_ID}/revision/{_PART}", _Handler.info),
    ("GET", f"/api/models/{_ID}/tree/{_PART}", _Handler.tree),
    ("GET", f"/api/models/{_ID}/refs", _Handler.refs),
    ("POST", f"/api/models/{_ID}/branch/{_PART}", _Handler.branch),
    ("POST", f"/api/models/{_ID}/preupload/{_PART}", _Handler.preupload),
    ("POST", f"/api/models/{_ID}/commit/{_PART}", _Handler.commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/verify", _Handler.verify),
    ("PUT", f"/storage/{_PART}", _Handler.put),
    ("PUT", rf"/storage/{_PART}/(\d+)", _Handler.put),
    ("POST", f"/storage/{_PART}/complete", _Handler.complete),
    ("GET", f"/storage/{_PART}", _Handler.stored),
    ("GET", f"/{_ID}/resolve/{_PART}/(.+)", _Handler.resolve),
)
