"""Which route a file takes and how it is cut: plain arithmetic, no I/O.

The figures behind the choice were measured on one deployment (200 MB on loopback, server 2.5.7-dev, Slurm 22.05):
up, S3 62 s (the ingress job looks for the object once and then every 60 s), pieces by direct upload and one joining job
4-6 s; down, S3 3-4 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.errors import InvalidRequest, TooLarge, TransferError

GIB = 1 << 30
CHUNKED_PREFERRED = 4 * GIB
"""Bytes up to which pieces beat S3 on the way up: 40 MB/s from the start against a look every 60 s."""
MAX_PIECES = 24_000
"""One listing of the staging directory (about 210 bytes per entry) has to stay under the server's 5 MiB."""
PIECE = 5 << 20
"""Most bytes in one piece; FirecREST's default limit."""
AUTO_SHA256 = GIB
"""Bytes up to which a checksum that costs an extra command is compared without being asked for.

The server's checksum call has five seconds; sha256sum reads at 0.3-2 GB/s.
"""
RANGE = 8 << 20
"""Bytes of one ranged read from the object store, and of one bit in the journal."""
READERS = 4
"""Requests to the object store in flight; more gain nothing on one link, and a store answers too many with 503."""
SPAN = 128 << 20
"""Most bytes of one ranged read.

Each costs the store work of its own (a manifest of parts to look up); longer ones gain nothing more, and leave the hash
of the whole further behind.
"""
PIECE_NAME_DIGITS = 6


class Route(StrEnum):
    """How the bytes travel."""

    DIRECT = "direct"
    """One request, up to the server's own limit."""
    CHUNKED = "chunked"
    """Pieces by direct requests and one job that joins (or cuts) them."""
    S3 = "s3"
    """Through the object store, moved by the server's own job."""


class Verify(StrEnum):
    """What is compared after the transfer."""

    AUTO = "auto"
    """SHA-256 where it is free or quick, else the size."""
    SIZE = "size"
    SHA256 = "sha256"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a system lets through: bytes in one direct upload and download, and whether it has an object store."""

    upload: int
    download: int
    s3: bool

    @property
    def piece(self) -> int:
        """Bytes in one piece of a chunked upload: memory is bounded where a server allows much more at a time."""
        return min(self.upload, PIECE)

    @classmethod
    def of(cls, max_ops_file_size: int, transfer_method: str | None) -> Limits:
        """From `/status/systems`: `max_ops_file_size` in bytes and the transfer kind."""
        return cls(max_ops_file_size, download_limit(max_ops_file_size), transfer_method == "s3")


def download_limit(max_ops_file_size: int) -> int:
    """The largest file in bytes that a direct download delivers: its base64 must stay *under* the server's limit.

    3,932,157 for the default 5,242,880 (measured: 3,932,159 is answered with 413).
    """
    return max(0, (max_ops_file_size - 1) // 4 * 3)


def piece_count(size: int, piece: int) -> int:
    """How many pieces of `piece` bytes a file of `size` bytes has; an empty file has none."""
    return -(-size // piece)


def piece_size(size: int, piece: int, index: int) -> int:
    """Bytes in piece `index`."""
    return min(piece, size - index * piece)


def spans(size: int, step: int) -> list[tuple[int, int]]:
    """(offset, length) of each range of `step` bytes; the last is shorter."""
    return [(offset, min(step, size - offset)) for offset in range(0, size, step)]


def longest_run(count: int, readers: int = READERS) -> int:
    """How many neighbouring ranges one read fetches, so that `readers` share a file of `count` ranges."""
    return max(1, min(SPAN // RANGE, -(-count // readers)))


def put_route(size: int, limits: Limits, *, wanted: str | None = None, needs_job: bool = False) -> Route:
    """The route up for `size` bytes; `needs_job` when the name or `atomic=True` asks for a publishing job.

    Raises InvalidRequest for a route that does not exist or cannot take the file, TransferError when the system has no
    object store, TooLarge when no route is left.
    """
    route = _known(wanted)
    if route is None:
        if size <= limits.upload and not needs_job:
            return Route.DIRECT
        fits = piece_count(size, limits.piece) <= MAX_PIECES
        route = Route.CHUNKED if fits and (size <= CHUNKED_PREFERRED or not limits.s3) else Route.S3
        if route is Route.S3 and not limits.s3:
            raise TooLarge(_too_many(size, limits.piece), hint="split the file, or ask the site for an object store")
        return route
    if route is Route.DIRECT and size > limits.upload:
        raise TooLarge(f"{size} bytes are over the server's {limits.upload} for one direct upload", hint=_LEAVE)
    if route is Route.DIRECT and needs_job:
        raise InvalidRequest("a direct upload is not atomic and cannot carry this name", hint="use route='chunked'")
    if route is Route.CHUNKED and piece_count(size, limits.piece) > MAX_PIECES:
        raise TooLarge(_too_many(size, limits.piece), hint="use route='s3'")
    _check_s3(route, size, limits)
    return route


def get_route(size: int, limits: Limits, *, wanted: str | None = None) -> Route:
    """The route down for `size` bytes. Raises like `put_route`."""
    route = _known(wanted)
    if route is None:
        if size <= limits.download:
            return Route.DIRECT
        return Route.S3 if limits.s3 else Route.CHUNKED
    if route is Route.DIRECT and size > limits.download:
        raise TooLarge(f"{size} bytes are over the server's {limits.download} for one direct download", hint=_LEAVE)
    _check_s3(route, size, limits)
    return route


_LEAVE = "leave the route out and the best one is taken"


def _known(wanted: str | None) -> Route | None:
    if wanted is None:
        return None
    try:
        return Route(wanted)
    except ValueError:
        raise InvalidRequest(f"{wanted!r} is no route", hint="one of: " + ", ".join(Route)) from None


def _check_s3(route: Route, size: int, limits: Limits) -> None:
    if route is not Route.S3:
        return
    if not limits.s3:
        raise TransferError("this system has no object store", hint=_LEAVE)
    if size == 0:
        # Upload: the ingress job polls until its time limit. Download: exit 70, a division by zero.
        raise InvalidRequest("an empty file cannot go through the object store", hint=_LEAVE)


def _too_many(size: int, piece: int) -> str:
    return f"{size} bytes are {piece_count(size, piece)} pieces of {piece}, more than {MAX_PIECES}"


def verification(verify: str | None) -> Verify | None:
    """`verify` as given by a caller. Raises InvalidRequest for an unknown word."""
    if verify is None:
        return None
    try:
        return Verify(verify)
    except ValueError:
        raise InvalidRequest(f"{verify!r} is no way to verify", hint="one of: auto, size, sha256, None") from None
