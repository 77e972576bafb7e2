"""The coordinates of a streamer: where a job of the server's may be reached, and the secret that it takes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from hpcbridge.credentials.secret import Secret
from hpcbridge.firecrest.models import Json, TransferJob, WithJob


@dataclass(frozen=True, slots=True)
class Stream(WithJob):
    """Directives of a transfer over the streamer.

    `ips` and `ports` (first and last) are where the job may listen. Whoever knows the secret may send or receive the
    file, so it is handled like a token.
    """

    ips: tuple[str, ...]
    ports: tuple[int, int]
    secret: Secret
    job: TransferJob

    @classmethod
    def from_json(cls, data: Json) -> Stream:
        """Parse the answer of `transfer/upload` or `transfer/download` with method streamer.

        Raises ValueError for coordinates that are not those of a streamer.
        """
        job = TransferJob.from_json(data["transferJob"])
        try:
            return cls(*_coordinates(str(data["transferDirectives"]["coordinates"])), job)
        except (ValueError, KeyError, TypeError):
            # Without its cause, which would show what could not be read.
            raise ValueError("the coordinates of the streamer cannot be read") from None


def _coordinates(text: str) -> tuple[tuple[str, ...], tuple[int, int], Secret]:
    """URL-safe base64 of `{"ips": [...], "ports": [first, last], "secret": ...}` (firecrest-streamer 0.0.21)."""
    told = json.loads(base64.urlsafe_b64decode(text))
    first, last = told["ports"]
    return tuple(map(str, told["ips"])), (int(first), int(last)), Secret(str(told["secret"]))
