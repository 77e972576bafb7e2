"""The errors that the REST interface answers with, and the one body they all share.

    ApiError
    ├── SSHError           the "SSH connection" to the login node failed (424)
    ├── CommandTimeout     a command ran past its time limit (408)
    ├── OutputLimit        a command wrote more than 5 MiB (413)
    └── UnhandledError     an exception the real server does not catch: 500, and the connection is closed

Shapes: ``answers.json`` of a real FirecREST 2.5.7 server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

ErrorType = Literal["error", "validation"]


class ApiError(Exception):
    """An answer of the REST interface that is not a success.

    Attributes:
        status: HTTP status code.
        message: the body's ``message``.
        caused_by: the body's ``causedBy``: messages of the exceptions below, outermost first.
        data: the body's ``data``.
        headers: extra response headers.
        anonymous: leave ``user`` empty although the token was good (the real server loses it for some errors).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        caused_by: Sequence[str] | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        error_type: ErrorType = "error",
        anonymous: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.caused_by = list(caused_by) if caused_by is not None else None
        self.data = dict(data) if data is not None else None
        self.headers = dict(headers or {})
        self.error_type: ErrorType = error_type
        self.anonymous = anonymous

    def body(self, user: str | None) -> dict[str, Any]:
        """Return the JSON body: ``errorType``, ``message``, ``data``, ``causedBy``, ``user``."""
        return {
            "errorType": self.error_type,
            "message": self.message,
            "data": self.data,
            "causedBy": self.caused_by,
            "user": None if self.anonymous else user,
        }


class SSHError(ApiError):
    """The login node could not be reached: 424 from ``ops``; scheduler calls wrap it in a 500."""

    def __init__(self, message: str = "Unable to open a new SSH channel.", *, status: int = 424) -> None:
        super().__init__(status, message)


class CommandTimeout(ApiError):
    """A command ran longer than the SSH time limit: 408. What it did until then stays done."""

    def __init__(self, message: str = "Command execution timeout limit exceeded.") -> None:
        super().__init__(408, message)


class OutputLimit(ApiError):
    """A command wrote more than the server's buffer of 5 MiB: 413."""

    def __init__(self, message: str = "Command output exceeded buffer limit.") -> None:
        super().__init__(413, message)


class UnhandledError(ApiError):
    """An exception that the real server does not catch: 500 without a user, then the connection is closed."""

    def __init__(self, message: str) -> None:
        super().__init__(500, message, anonymous=True)
