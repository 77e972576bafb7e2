"""Every failure of the remote side is an OSError: AiiDA's engine treats nothing else as a transport's own trouble.

The text is hpcbridge's: what happened, site, system and path, the id of the request in the server's log, what to do.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from hpcbridge import errors

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_ERRNO: tuple[tuple[type[errors.HpcBridgeError], int], ...] = (
    (errors.PathNotFound, errno.ENOENT),
    (errors.AlreadyExists, errno.EEXIST),
    (errors.PermissionDenied, errno.EACCES),
    (errors.IsDirectory, errno.EISDIR),
    (errors.TooLarge, errno.EFBIG),
    (errors.CommandTimeout, errno.ETIMEDOUT),
    (errors.Unavailable, errno.EHOSTDOWN),
    (errors.InvalidRequest, errno.EINVAL),
    (errors.AuthenticationError, errno.EACCES),
)


def as_oserror(error: errors.HpcBridgeError) -> OSError:
    """The OSError (FileNotFoundError, FileExistsError, PermissionError … by kind) with all that `error` says."""
    number = next((number for kind, number in _ERRNO if isinstance(error, kind)), errno.EIO)
    return OSError(number, str(error))


def plain(error: OSError) -> OSError:
    """The same as no FileNotFoundError: where AiiDA takes that for "the source is missing" and goes on without it."""
    return OSError(str(error))


def remote(method: F) -> F:
    """Decorate a coroutine method: what hpcbridge raises comes out as an OSError."""

    @functools.wraps(method)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except errors.HpcBridgeError as error:
            raise as_oserror(error) from error

    return cast(F, wrapper)
