"""The object store as the sandbox uses it: start, sign, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcbridge_sandbox.s3.layout import REGION, SERVERS, StoreLayout, find_directory, write_layout
from hpcbridge_sandbox.s3.rules import check_rules
from hpcbridge_sandbox.s3.seen import forget_seen, read_seen

URL_LIFETIME = 604_800
"""Seconds for which a presigned URL holds (``X-Amz-Expires`` of the recorded answers: seven days)."""

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 5.0
_SERVER = (sys.executable, "-m", "hpcbridge_sandbox.s3.server")


class StoreUnavailable(RuntimeError):
    """The object store did not start; the message holds the end of its log."""


class ObjectStore:
    """An S3 server on loopback with one owner, whose presigned URLs are all that users see of it."""

    def __init__(self, state: Path, log: Path | None = None) -> None:
        """Store with its files under *state*; *log* takes its messages (default: a file beside them)."""
        self._state = state
        self._log = log or state / "s3.log"
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._temporary: Path | None = None
        self._layout: StoreLayout | None = None
        self._client: Any = None
        self._buckets: set[str] = set()
        self._listener: socket.socket | None = None
        self._rules: Mapping[str, float] = {}

    @property
    def running(self) -> bool:
        """Whether the store was started and lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def endpoint(self) -> str:
        """Address of the store, ``http://127.0.0.1:PORT``; the port is taken at once, the processes come later."""
        return f"http://127.0.0.1:{self._reserve()}"

    def _reserve(self) -> int:
        if self._listener is None:
            remembered = self._state / "port"
            with contextlib.suppress(OSError, ValueError):
                self._listener = _listen(int(remembered.read_text()))
            self._listener = self._listener or _listen(0)
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            remembered.write_text(str(self._listener.getsockname()[1]))
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def client(self) -> Any:
        """The owner's boto3 S3 client; its calls block, so use them in a thread."""
        return self._client

    async def start(self) -> None:
        """Start the store unless it runs.

        Raises:
            StoreUnavailable: it ended, did not answer within a minute, or is down by a fault.
        """
        if self._rules.get("down"):
            raise StoreUnavailable("the object store is down by a fault")
        async with self._lock:
            if self.running:
                return
            self._stop()
            listeners = await asyncio.to_thread(self._prepare)
            # Spawned by this thread: the kernel's "parent died" signal means the thread, and workers come and go.
            self._spawn(listeners)
            self._buckets.clear()
            await asyncio.to_thread(self._wait_ready)

    def _prepare(self) -> dict[str, socket.socket]:
        root, temporary = find_directory(self._state)
        self._temporary = root if temporary else None
        listeners = {kind: _listen(0) for kind in SERVERS}
        self._reserve()
        assert self._listener is not None
        listeners["proxy"] = self._listener
        self._layout = write_layout(root)
        self._write_rules()
        self._client = _client(self.endpoint, self._layout)
        return listeners

    def _spawn(self, listeners: Mapping[str, socket.socket]) -> None:
        assert self._layout is not None
        self._pipe, said = os.pipe()
        pairs = [f"{kind}={listener.fileno()}" for kind, listener in listeners.items()]
        with self._log.open("ab") as log:
            # No secret is in these arguments: the keys are in files of mode 0600.
            self._process = subprocess.Popen(
                [*_SERVER, str(os.getpid()), str(self._layout.etc), str(said), *pairs],
                pass_fds=[said, *(listener.fileno() for listener in listeners.values())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "EVENTLET_NO_GREENDNS": "yes", "PYTHONWARNINGS": "ignore"},
            )
        # The proxy's socket stays open here as well, so that the address is still ours when the processes end.
        for kind in SERVERS:
            listeners[kind].close()
        os.close(said)

    def _wait_ready(self) -> None:
        if self._said(_START_TIMEOUT) == b"1":
            return
        self._stop()
        tail = self._log.read_bytes()[-2000:].decode(errors="replace")
        raise StoreUnavailable(f"the object store did not start:\n{tail}")

    def _said(self, timeout: float) -> bytes | None:
        """Next byte of the processes: ``1`` when they serve, nothing when they are gone, None when time is out."""
        assert self._pipe is not None
        return os.read(self._pipe, 1) if select.select([self._pipe], [], [], timeout)[0] else None

    async def stop(self) -> None:
        """End the store's processes."""
        async with self._lock:
            await asyncio.to_thread(self._stop)
            self._release()

    def _release(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # its second process dies with it; every object is complete or absent on disk
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            while self._said(_STOP_TIMEOUT):  # until the second process has let go of the port
                continue
            os.close(self._pipe)
            self._pipe = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    async def bucket(self, user: str) -> str:
        """Name of *user*'s bucket, made when it is first asked for; starts the store."""
        await self.start()
        name = user if len(user) >= 3 else f"user-{user}"  # S3 wants three characters
        if name not in self._buckets:
            with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
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

    async def inject(self, rules: Mapping[str, Any]) -> None:
        """Inject the faults *rules* from now on; an empty mapping ends them.

        Names are those of `hpcbridge_sandbox.s3.faults`; besides, ``{"down": 1}`` ends the store and refuses its start.

        Raises:
            ValueError: an unknown name or a value that is no number of zero or more.
        """
        async with self._lock:
            self._rules = check_rules(rules)
            if self._rules.get("down"):
                await asyncio.to_thread(self._stop)
                self._release()
            self._write_rules()

    def seen(self) -> list[dict[str, Any]]:
        """What was asked for since the last `forget_seen`; see `hpcbridge_sandbox.s3.seen`."""
        return read_seen(self._layout.faults) if self._layout else []

    def forget_seen(self) -> None:
        """Begin to note requests anew."""
        if self._layout is not None:
            forget_seen(self._layout.faults)

    def _write_rules(self) -> None:
        if self._layout is None or not self._layout.root.exists():
            return
        path = self._layout.faults
        if not self._rules:
            path.unlink(missing_ok=True)
            return
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(self._rules, file)
        Path(file.name).replace(path)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it; else 40 ms an answer
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    listener.listen(256)
    return listener


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
