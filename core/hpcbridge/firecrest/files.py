"""`/filesystem/{system}/ops/*`: quick operations, each one command of at most 5 s on the system."""

from __future__ import annotations

import io
import re
from typing import Any

import httpx

from hpcbridge.errors import (
    AlreadyExists,
    CommandTimeout,
    HpcBridgeError,
    InvalidRequest,
    PathNotFound,
    ServerError,
    TransferError,
)
from hpcbridge.firecrest.answers import explain
from hpcbridge.firecrest.models import FileContent, FileEntry, FileStat
from hpcbridge.firecrest.paths import check_name, check_path
from hpcbridge.firecrest.rest import Rest
from hpcbridge.firecrest.wire import Endpoints, output, part
from hpcbridge.http.answers import About
from hpcbridge.http.session import Quiet

_CHECKSUM_OF_ODD_NAME = re.compile(r"Invalid output: \\?([0-9a-f]{64})\s")
"""The server splits sha256sum's line at blanks and fails on a path that has one; the digest is in its complaint."""


class _Truncated(HpcBridgeError):
    """408 to the upload of an empty file: it exists by now, the server only waits for bytes that never come."""


class Files(Endpoints):
    """Files of one user, as the system's tools see them. Paths are absolute; see `paths` for what cannot be sent."""

    _rest: Rest

    async def ls(
        self,
        system: str,
        path: str,
        *,
        hidden: bool = False,
        recursive: bool = False,
        numeric: bool = False,
        dereference: bool = False,
        patience: float | None = None,
    ) -> list[FileEntry]:
        """Entries of a directory, or the one of a file. Newlines in names do not round-trip; over 5 MiB is TooLarge."""
        params = {"showHidden": hidden, "recursive": recursive, "numericUid": numeric, "dereference": dereference}
        response = await self._ops(system, "ls", path, {k: True for k, v in params.items() if v}, patience=patience)
        return [FileEntry.from_json(entry) for entry in output(response) or ()]

    async def stat(
        self, system: str, path: str, *, dereference: bool = False, patience: float | None = None, polling: bool = False
    ) -> FileStat:
        """Mode, size in bytes, owner and times of a path; of the link itself unless `dereference`."""
        params = {"dereference": True} if dereference else {}
        response = await self._ops(system, "stat", path, params, patience=patience, polling=polling)
        return FileStat.from_json(output(response))

    async def mkdir(self, system: str, path: str, *, parents: bool = True, patience: float | None = None) -> None:
        """Make a directory. With `parents` an existing one is fine, without it is AlreadyExists."""
        about = {"system": system, "path": check_path(path, system)}
        try:
            await self._write(
                "POST",
                f"/filesystem/{part(system)}/ops/mkdir",
                json={"path": path, "parent": parents},
                about=about,
                patience=patience,
            )
        except AlreadyExists as error:
            if not error.repeated:
                raise

    async def upload(
        self, system: str, directory: str, name: str, data: bytes, *, patience: float | None = None
    ) -> None:
        """Write `directory`/`name` in one request, replacing what is there; up to `SystemInfo.max_ops_file_size` bytes.

        Not atomic: a reader can see half of it. Verify by size. An empty file takes the server 5 s.

        Raises:
            TooLarge: over the limit. PathNotFound: no such directory. InvalidPath: a name that does not arrive as
                given.
        """
        check_path(directory, system)
        check_name(name, system)
        # As a file, the body goes out in blocks of 64 KiB; as bytes, it would be copied whole on its way down.
        body, size = io.BytesIO(data), len(data)
        payload = Quiet(files={"file": (name, body, "application/octet-stream")})
        del data  # it may be an environment file, and tracebacks can show local variables
        path = f"{directory.rstrip('/')}/{name}"
        try:
            await self._write(
                "POST",
                f"/filesystem/{part(system)}/ops/upload",
                params={"path": directory},
                payload=payload,
                about={"system": system, "path": path},
                patience=patience,
                explain=explain if size else _explain_empty_upload,
            )
        except _Truncated as error:
            if (await self.stat(system, path, dereference=True, patience=patience)).size == 0:
                return
            failure = TransferError("an empty upload left a file that is not empty", system=system, path=path)
            failure.request_id = error.request_id
        else:
            return
        finally:
            # The call's records refer to each other, and would keep the data until the next full collection.
            body.close()
        raise failure

    async def download(self, system: str, path: str, *, patience: float | None = None, polling: bool = False) -> bytes:
        """The whole file, byte for byte; up to 3,932,157 bytes with the default limit, TooLarge above."""
        response = await self._ops(system, "download", path, {}, patience=patience, polling=polling)
        content = response.content
        # A response and its stream refer to each other, and would keep the data until the next full collection.
        response.stream = httpx.ByteStream(b"")
        return content

    async def view(
        self,
        system: str,
        path: str,
        *,
        offset: int | None = None,
        size: int | None = None,
        patience: float | None = None,
        polling: bool = False,
    ) -> str:
        """A slice of a text file. Not byte-exact on non-ASCII text: the server slices decoded characters."""
        params = {"offset": offset, "size": size}
        return str(output(await self._ops(system, "view", path, params, patience=patience, polling=polling)) or "")

    async def head(
        self,
        system: str,
        path: str,
        *,
        lines: int | None = None,
        bytes_: int | None = None,
        skip_trailing: bool = False,
        patience: float | None = None,
    ) -> FileContent:
        """The first lines (10) or bytes; with `skip_trailing` all but the last ones."""
        params = _amount(lines, bytes_) | ({"skipTrailing": True} if skip_trailing else {})
        return FileContent.from_json(output(await self._ops(system, "head", path, params, patience=patience)))

    async def tail(
        self,
        system: str,
        path: str,
        *,
        lines: int | None = None,
        bytes_: int | None = None,
        skip_heading: bool = False,
        patience: float | None = None,
        polling: bool = False,
    ) -> FileContent:
        """The last lines (10) or bytes; with `skip_heading` from that one on, counted from 1.

        Undecodable bytes come back as U+FFFD: only `download` is exact.
        """
        params = _amount(lines, bytes_) | ({"skipHeading": True} if skip_heading else {})
        response = await self._ops(system, "tail", path, params, patience=patience, polling=polling)
        return FileContent.from_json(output(response))

    async def checksum(self, system: str, path: str, *, patience: float | None = None) -> str:
        """SHA-256 as 64 hex digits; CommandTimeout for files that take the system more than 5 s."""
        try:
            response = await self._ops(system, "checksum", path, {}, patience=patience)
        except ServerError as error:
            if found := _CHECKSUM_OF_ODD_NAME.search(error.message):
                return found.group(1)
            raise
        # sha256sum puts a backslash in front of the line when it has to escape the name.
        return str((output(response) or {}).get("checksum") or "").lower().lstrip("\\")

    async def rm(self, system: str, path: str, *, patience: float | None = None) -> None:
        """Remove a file, or a directory with all it holds, within 5 s."""
        about = {"system": system, "path": check_path(path, system)}
        try:
            await self._write(
                "DELETE", f"/filesystem/{part(system)}/ops/rm", params={"path": path}, about=about, patience=patience
            )
        except PathNotFound as error:
            if not error.repeated:  # else the first attempt did it, and only its answer was lost
                raise

    async def compress(
        self,
        system: str,
        path: str,
        target: str,
        *,
        pattern: str | None = None,
        dereference: bool = False,
        compression: str = "gzip",
        patience: float | None = None,
    ) -> None:
        """One source (or, with `pattern`, the plain files whose name matches it) into a tar file, within 5 s."""
        body: dict[str, Any] = {"path": path, "targetPath": check_path(target, system), "compression": compression}
        body |= {"dereference": dereference} | ({"matchPattern": pattern} if pattern else {})
        await self._ops_post(system, "compress", path, body, patience)

    async def extract(
        self, system: str, path: str, target: str, *, compression: str = "gzip", patience: float | None = None
    ) -> None:
        """Unpack a tar file into an existing directory, within 5 s."""
        body = {"path": path, "targetPath": check_path(target, system), "compression": compression}
        await self._ops_post(system, "extract", path, body, patience)

    async def chmod(self, system: str, path: str, mode: str) -> FileEntry:
        """Change the mode, given as chmod takes it (`640`, `u+x`)."""
        return FileEntry.from_json(await self._tool("chmod", system, path, mode))

    async def chown(self, system: str, path: str, owner: str = "", group: str = "") -> FileEntry:
        """Change owner, group or both."""
        return FileEntry.from_json(await self._tool("chown", system, path, owner, group))

    async def symlink(self, system: str, path: str, link: str) -> None:
        """Make `link` point at `path`; AlreadyExists if there is something."""
        check_path(link, system)
        try:
            await self._tool("symlink", system, path, link)
        except AlreadyExists as error:
            if not error.repeated:
                raise

    async def file(self, system: str, path: str) -> str:
        """The type of a file, in the words of `file(1)`; a missing one is no error there."""
        return str(await self._tool("file_type", system, path))

    # ----------------------------------------------------------------------------------------------------------------

    async def _ops(
        self,
        system: str,
        operation: str,
        path: str,
        params: dict[str, Any],
        *,
        patience: float | None,
        polling: bool = False,
    ) -> httpx.Response:
        return await self._get(
            f"/filesystem/{part(system)}/ops/{operation}",
            params={"path": check_path(path, system), **params},
            about={"system": system, "path": path},
            patience=patience,
            polling=polling,
        )

    async def _ops_post(
        self, system: str, operation: str, path: str, body: dict[str, Any], patience: float | None
    ) -> None:
        about = {"system": system, "path": check_path(path, system)}
        await self._write(
            "POST", f"/filesystem/{part(system)}/ops/{operation}", json=body, about=about, patience=patience
        )

    async def _tool(self, method: str, system: str, path: str, *arguments: str) -> Any:
        return await self._rest.call(method, system, check_path(path, system), *arguments, about={"path": path})


def _amount(lines: int | None, count: int | None) -> dict[str, Any]:
    if lines is not None and count is not None:
        raise InvalidRequest("either lines or bytes, not both")
    return {"lines": lines, "bytes": count}


def _explain_empty_upload(response: httpx.Response, about: About) -> HpcBridgeError:
    error = explain(response, about)
    if isinstance(error, CommandTimeout):
        return _Truncated(error.message, request_id=error.request_id, status=408)
    return error
