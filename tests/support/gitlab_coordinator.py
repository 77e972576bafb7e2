"""A stub of GitLab's coordinator: the runner API (v4), artifacts, and repositories over HTTP.

Enough for a real gitlab-runner: registration check, job requests, trace patches with their offsets, status updates, a
cancel that is told by `Job-Status`, artifact upload and download. It keeps everything it was told, for tests to read.
"""

from __future__ import annotations

import base64
import contextlib
import email.parser
import email.policy
import itertools
import json
import random
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey


@dataclass
class Artifact:
    """One uploaded artifact of a job."""

    type: str
    format: str
    name: str
    data: bytes = field(repr=False)


@dataclass
class Job:
    """What the coordinator knows of one job. `state`: pending, running, success, failed."""

    id: int
    token: str
    response: dict[str, Any] = field(repr=False)
    state: str = "pending"
    failure_reason: str = ""
    exit_code: int | None = None
    trace: bytearray = field(default_factory=bytearray, repr=False)
    artifacts: list[Artifact] = field(default_factory=list)
    cancelling: bool = False
    aborted: bool = False
    done: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def log(self) -> str:
        """The trace as text."""
        return self.trace.decode("utf-8", "replace")

    def artifact(self, kind: str = "archive") -> Artifact | None:
        """The artifact of a type."""
        return next((item for item in self.artifacts if item.type == kind), None)


def new_key() -> RSAKey:
    """A key for ID tokens."""
    return RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256", "kid": secrets.token_hex(8)})


class Coordinator:
    """A GitLab, as a runner sees it."""

    RUNNER_TOKEN = "glrt-runner-token-for-tests"

    def __init__(self, repositories: Path) -> None:
        self.repositories = repositories
        self.jobs: dict[int, Job] = {}
        self.heads: dict[str, str] = {}
        """Commit of each project."""
        self.hidden: set[str] = set()
        """Paths of projects whose repository is not served …"""
        self.admitted: set[int] = set()
        """… except to these jobs."""
        self._ids = itertools.count(random.randrange(1_000, 900_000) * 1_000)
        self._lock = threading.Lock()
        self.key = new_key()
        """With which it signs ID tokens; a new one is served at once."""
        handler = type("Handler", (_Handler,), {"coordinator": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, path: str, files: dict[str, str]) -> str:
        """Make a repository `path` with one commit; returns its SHA."""
        bare = self.repositories / f"{path}.git"
        work = self.repositories / "work" / path
        work.mkdir(parents=True)
        for name, text in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text)

        def git(*words: str) -> str:
            who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "safe.directory=*")
            done = subprocess.run(["git", *who, *words], cwd=work, check=True, capture_output=True, text=True)
            return done.stdout.strip()

        git("init", "-q", "-b", "main")
        git("add", "-A")
        git("commit", "-q", "-m", "first")
        git("clone", "-q", "--bare", ".", str(bare))
        subprocess.run(["git", "-c", "safe.directory=*", "update-server-info"], cwd=bare, check=True)
        self.heads[path] = git("rev-parse", "HEAD")
        return self.heads[path]

    def queue(self, make: Any) -> Job:
        """Queue a job; `make(id, token, url)` is its response."""
        with self._lock:
            number = next(self._ids)
            token = f"glcbt-job-token-{number}-secret"
            job = self.jobs[number] = Job(number, token, make(number, token, self.url))
            return job

    def id_token(self, job: Job, audience: str, *, key: RSAKey | None = None, **claims: Any) -> str:
        """What `id_tokens:` gives a job: GitLab's claims, numbers as text; `claims` replaces some, None drops one."""
        git, info, now = job.response["git_info"], job.response["job_info"], int(time.time())
        path = job.response["git_info"]["repo_url"].partition("@")[2].partition("/")[2].removesuffix(".git")
        complete = {
            "iss": self.url,
            "sub": f"project_path:{path}:ref_type:{git['ref_type']}:ref:{git['ref']}",
            "aud": audience,
            "iat": now,
            "nbf": now - 5,
            "exp": now + 3600,
            "project_id": str(info["project_id"]),
            "project_path": path,
            "user_login": "ada",
            "job_id": str(job.id),
            "ref": git["ref"],
            "ref_type": git["ref_type"],
            "ref_protected": "true",
        } | claims
        signer = key or self.key
        header = {"alg": "RS256", "typ": "JWT", "kid": signer.kid}
        return jwt.encode(header, {name: value for name, value in complete.items() if value is not None}, signer)

    def request(self, wanted: int | None) -> Job | None:
        """The oldest pending job, or that one."""
        with self._lock:
            for job in self.jobs.values():
                if job.state == "pending" and wanted in (None, job.id):
                    job.state = "running"
                    return job
        return None

    def by_token(self, token: str | None, number: int) -> Job | None:
        job = self.jobs.get(number)
        return job if job is not None and token == job.token else None


class _Handler(BaseHTTPRequestHandler):
    coordinator: Coordinator
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/api/v4/runners/verify"):
            self._json(200, {"id": 1, "token": Coordinator.RUNNER_TOKEN, "token_expires_at": None})
            return
        if self.path.startswith("/api/v4/jobs/request"):
            asked = json.loads(body)
            job = self.coordinator.request(asked.get("wanted"))
            self._json(201, job.response) if job else self._answer(204)
            return
        if match := re.match(r"/api/v4/jobs/(\d+)/artifacts/authorize", self.path):
            self._json(200, {})
            return
        if match := re.match(r"/api/v4/jobs/(\d+)/artifacts", self.path):
            self._upload(int(match[1]), body)
            return
        self._answer(404)
        return

    def _job(self, number: int, token: str | None = None) -> Job | None:
        job = self.coordinator.by_token(token or self.headers.get("JOB-TOKEN"), number)
        if job is None:
            self._answer(403)
        return job

    def _upload(self, number: int, body: bytes) -> None:
        job = self._job(number)
        if job is None:
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        fields = dict(item.split("=", 1) for item in self.path.partition("?")[2].split("&") if "=" in item)
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            content = part.get_payload(decode=True) or b""
            if name == "file":
                kind, form = fields.get("artifact_type", "archive"), fields.get("artifact_format", "zip")
                job.artifacts.append(Artifact(kind, form, part.get_filename() or "", content))
            else:
                fields[str(name)] = content.decode()
        self._json(201, {})

    def do_PATCH(self) -> None:
        body = self._body()
        match = re.match(r"/api/v4/jobs/(\d+)/trace", self.path)
        job = self._job(int(match[1])) if match else None
        if job is None:
            return
        if job.aborted:
            self._answer(403, Job_Status="canceled")
            return
        begin = int(self.headers["Content-Range"].partition("-")[0])
        if begin != len(job.trace):
            self._answer(416, Range=f"0-{len(job.trace)}", Job_Status=self._status(job))
            return
        job.trace += body
        self._answer(202, Range=f"0-{len(job.trace)}", Job_Status=self._status(job), X_GitLab_Trace_Update_Interval="3")

    def _status(self, job: Job) -> str:
        return "canceling" if job.cancelling else "running"

    def do_PUT(self) -> None:
        told = json.loads(self._body())
        match = re.match(r"/api/v4/jobs/(\d+)", self.path)
        job = self._job(int(match[1]), told.get("token")) if match else None
        if job is None:
            return
        if job.aborted:
            self._answer(403, Job_Status="canceled")
            return
        if told["state"] in ("success", "failed"):
            job.state = told["state"]
            job.failure_reason = told.get("failure_reason") or ""
            job.exit_code = told.get("exit_code")
            job.done.set()
        self._answer(200, b"200", Job_Status=self._status(job))

    def do_GET(self) -> None:
        if match := re.match(r"/api/v4/jobs/(\d+)/artifacts", self.path):
            job = self._job(int(match[1]))
            if job is not None:
                found = job.artifact()
                self._answer(200, found.data) if found else self._answer(404)
            return
        if self.path == "/.well-known/openid-configuration":
            url = self.coordinator.url
            self._json(200, {"issuer": url, "jwks_uri": f"{url}/oauth/discovery/keys"})
            return
        if self.path == "/oauth/discovery/keys":
            self._json(200, {"keys": [self.coordinator.key.as_dict(private=False)]})
            return
        self._repository()

    do_HEAD = do_GET

    def _repository(self) -> None:
        """A repository's files, as git's dumb HTTP protocol wants them, for whom a job token admits."""
        given = base64.b64decode((self.headers.get("Authorization") or "Basic Og==").partition(" ")[2]).decode()
        jobs = {job.token: job.id for job in self.coordinator.jobs.values()}
        asking = jobs.get(given.partition(":")[2])
        if asking is None:
            self._answer(401, WWW_Authenticate='Basic realm="git"')
            return
        hidden = any(self.path.startswith(f"/{project}.git/") for project in self.coordinator.hidden)
        if hidden and asking not in self.coordinator.admitted:
            self._answer(503)
            return
        path = (self.coordinator.repositories / self.path.partition("?")[0].lstrip("/")).resolve()
        if not path.is_relative_to(self.coordinator.repositories) or not path.is_file():
            self._answer(404)
            return
        self._answer(200, path.read_bytes())


@contextlib.contextmanager
def coordinator(repositories: Path) -> Iterator[Coordinator]:
    """A coordinator for the length of the block."""
    opened = Coordinator(repositories)
    try:
        yield opened
    finally:
        opened.close()


def wait_for(condition: Any, seconds: float = 60, what: str = "the condition") -> Any:
    """Until it is true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.05)
    return value
