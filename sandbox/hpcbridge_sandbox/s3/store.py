"""The object store as the sandbox uses it: start, sign, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcbridge_sandbox.s3.layout import REGION, SERVERS, StoreLayout, find_directory, write_layout

URL_LIFETIME = 604_800
"""Seconds for which a presigned URL holds (``X-Amz-Expires`` of the recorded answers: seven days)."""

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 5.0


class StoreUnavailable(RuntimeError):
    """The object store did not start; the message holds the end of its log."""


class ObjectStore:
    """An S3 server on loopback with one owner, whose presigned URLs are all that users see of it."""

    def __init__(self, state: Path, log: Path | None = None) -> None:
        """Store with its files under *state*; *log* takes its messages (default: a file beside them)."""
        self._state = state
        self._log = log or state / "s3.log"
        self._lock = asyncio.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._temporary: Path | None = None
        self._layout: StoreLayout | None = None
        self._client: Any = None
        self._buckets: set[str] = set()
        self.port: int | None = None
        self._rules: Mapping[str, float] = {}

    @property
    def running(self) -> bool:
        """Whether the store was started and lives."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    @property
    def endpoint(self) -> str:
        """Address of the running store, ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        """The owner's boto3 S3 client; its calls block, so use them in a thread."""
        return self._client

    async def start(self) -> None:
        """Start the store unless it runs.

        Raises:
            StoreUnavailable: it ended, or did not answer within a minute.
        """
        async with self._lock:
            if not self.running:
                await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self._stop()
        root, temporary = find_directory(self._state)
        self._temporary = root if temporary else None
        listeners = {kind: _listen(None) for kind in SERVERS}
        listeners["proxy"] = _listen(self._remembered_port(root))
        ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
        self._layout = write_layout(root, ports)
        self.port = ports["proxy"]
        (root / "etc" / "port").write_text(str(self.port))
        self.set_faults(self._rules)
        with self._log.open("ab") as log:
            # Two processes, as the bytes go through both: one per core is what a small machine has.
            for kinds in (SERVERS, ("proxy",)):
                self._processes.append(_spawn(self._layout.etc, {kind: listeners[kind] for kind in kinds}, log))
        for listener in listeners.values():
            listener.close()
        self._client = _client(self.endpoint, self._layout)
        self._buckets.clear()
        self._wait_ready()

    def _remembered_port(self, root: Path) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((root / "etc" / "port").read_text())
        return None

    def _wait_ready(self) -> None:
        # The sockets listen since before the processes did, so one request waits as long as the start takes.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.list_buckets()
        except (BotoCoreError, ClientError) as error:
            self._stop()
            tail = self._log.read_bytes()[-2000:].decode(errors="replace") if self._log.exists() else ""
            raise StoreUnavailable(f"the object store did not start: {error}\n{tail}") from error

    async def stop(self) -> None:
        """End the store's processes."""
        async with self._lock:
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    async def bucket(self, user: str) -> str:
        """Name of *user*'s bucket, made when it is first asked for; starts the store."""
        await self.start()
        name = user if len(user) >= 3 else f"user-{user}"  # S3 wants three characters
        if name not in self._buckets:
            await asyncio.to_thread(self._client.create_bucket, Bucket=name)
            self._buckets.add(name)
        return name

    async def begin_upload(self, bucket: str, key: str) -> str:
        """Start a multipart upload of *key* and return its id."""
        answer = await asyncio.to_thread(self._client.create_multipart_upload, Bucket=bucket, Key=key)
        return str(answer["UploadId"])

    def sign(self, action: str, method: str, **params: Any) -> str:
        """Presigned URL for the S3 *action* (botocore's name, as ``upload_part``)."""
        url: str = self._client.generate_presigned_url(action, params, URL_LIFETIME, method)
        return url

    def set_faults(self, rules: Mapping[str, float]) -> None:
        """Inject *rules* from now on (``hpcbridge_sandbox.s3.faults``); an empty mapping ends them."""
        self._rules = dict(rules)
        if self._layout is None:
            return
        path = self._layout.faults
        if not rules:
            path.unlink(missing_ok=True)
            return
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(self._rules, file)
        Path(file.name).replace(path)


def _listen(port: int | None) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port or 0))
    except OSError:
        if not port:
            raise
        listener.close()
        return _listen(None)
    listener.listen(256)
    return listener


def _spawn(etc: Path, listeners: Mapping[str, socket.socket], log: Any) -> subprocess.Popen[bytes]:
    pairs = [f"{kind}={listener.fileno()}" for kind, listener in listeners.items()]
    # Not a shell, and only our own names: no secret is in these arguments, the keys are in files of mode 0600.
    return subprocess.Popen(
        [sys.executable, "-m", "hpcbridge_sandbox.s3.server", str(os.getpid()), str(etc), *pairs],
        pass_fds=[listener.fileno() for listener in listeners.values()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, "EVENTLET_NO_GREENDNS": "yes", "PYTHONWARNINGS": "ignore"},
    )


def _client(endpoint: str, layout: StoreLayout) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=layout.access_key,
        aws_secret_access_key=layout.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # Clients of presigned URLs send plain parts; botocore's default checksums would have to be signed.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=5,
            read_timeout=_START_TIMEOUT,
            retries={"max_attempts": 2},
            proxies={},
        ),
    )
