"""How a file is cut, and what a system lets through: plain arithmetic, no I/O. `routes` chooses among the routes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.errors import InvalidRequest

GIB = 1 << 30
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
MAX_CUT: int = 10**PIECE_NAME_DIGITS
"""Pieces that a job can cut a file into: their names have so many digits. Nobody lists them."""
INBOUND = 5 << 30
"""Most bytes that a streamer takes where its site does not say; FirecREST's default."""


class Route(StrEnum):
    """How the bytes travel."""

    DIRECT = "direct"
    """One request, up to the server's own limit."""
    CHUNKED = "chunked"
    """Pieces by direct requests and one job that joins (or cuts) them."""
    S3 = "s3"
    """Through the object store, moved by the server's own job."""
    STREAMER = "streamer"
    """Over a connection to a job of the server's on the cluster."""


class Direction(StrEnum):
    """Which way the bytes go."""

    UP = "up"
    DOWN = "down"


class Verify(StrEnum):
    """What is compared after the transfer."""

    AUTO = "auto"
    """SHA-256 where it is free or quick, else the size."""
    SIZE = "size"
    SHA256 = "sha256"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a system lets through.

    Bytes in one direct upload and download; whether it has an object store or a streamer, and the most bytes that the
    streamer takes (`inbound`). A site offers one of the two, or neither.
    """

    upload: int
    download: int
    s3: bool
    streamer: bool = False
    inbound: int = INBOUND

    @property
    def piece(self) -> int:
        """Bytes in one piece of a chunked upload: memory is bounded where a server allows much more at a time."""
        return min(self.upload, PIECE)

    @classmethod
    def of(cls, max_ops_file_size: int, transfer_method: str | None, inbound: int | None = None) -> Limits:
        """From `/status/systems`: `max_ops_file_size` in bytes, the transfer kind, the streamer's inbound limit."""
        return cls(
            max_ops_file_size,
            download_limit(max_ops_file_size),
            transfer_method == "s3",
            transfer_method == "streamer",
            inbound or INBOUND,
        )


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


def verification(verify: str | None) -> Verify | None:
    """`verify` as given by a caller. Raises InvalidRequest for an unknown word."""
    if verify is None:
        return None
    try:
        return Verify(verify)
    except ValueError:
        raise InvalidRequest(f"{verify!r} is no way to verify", hint="one of: auto, size, sha256, None") from None
