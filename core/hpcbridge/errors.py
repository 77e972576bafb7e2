"""The one hierarchy of hpcbridge's errors. Hosts map it once; nothing else leaves the library for what can go wrong.

::

    HpcBridgeError
     ├─ ConfigurationError        a setting is missing, unknown or wrong; names the file and the key
     ├─ AuthenticationError       the issuer or the server does not accept who we are
     │   └─ LoginRequired         nobody has logged in yet, or the login has ended: `hpcbridge login`
     ├─ PermissionDenied          known, but not allowed
     ├─ InvalidRequest            refused before or by the server: it can never succeed as it stands
     │   ├─ InvalidName
     │   ├─ InvalidPath
     │   │   └─ IsDirectory       a directory where only a file will do
     │   └─ InvalidSpec
     ├─ NotFound
     │   ├─ SystemNotFound
     │   ├─ JobNotFound
     │   └─ PathNotFound
     ├─ Conflict                  the state over there is not what the request supposes
     │   ├─ KeyConflict           the same key with another script
     │   └─ AlreadyExists
     ├─ TooLarge                  over a limit of the server (body, file, listing)
     ├─ SubmitRejected            the scheduler said no, in its own words; no job exists
     ├─ Unavailable               not now: the same request may succeed later (`retry_after`, seconds)
     │   ├─ NotSent               nothing was sent (DNS, connect, TLS, circuit open): always safe to repeat
     │   └─ RateLimited           429
     ├─ AmbiguousOutcome          no answer that tells: the request may have been carried out
     ├─ ServerError               an unexpected answer (`status`)
     │   └─ CommandTimeout        408: the server's own limit on a command (5 s) has passed
     ├─ JobFailed                 the job has ended, and not well (`info`, `tail`)
     │   ├─ OutOfMemory
     │   ├─ TimeLimit
     │   ├─ NodeFailure
     │   ├─ JobCancelled
     │   ├─ JobVanished           confirmed absent: neither the scheduler nor its accounting knows it
     │   └─ LostRace              exit code 75: another job holds this key's lock
     ├─ TransferError
     │   └─ IntegrityError        size or SHA-256 differ
     ├─ SomeFailed                of several paths some failed (`failures`: path -> error); the others are done
     └─ BlockingInsideLoop        hpcbridge.blocking called where an event loop is running

Every error knows the site, system, path or job it is about, the id of the request in the server's logs, and a hint:
what to do next. This module imports nothing but the standard library, so that hosts can map errors without paying for
an HTTP client.
"""

from __future__ import annotations

from typing import Any


class HpcBridgeError(Exception):
    """The base of all; `str()` says everything the error knows.

    Args:
        message: what happened, in one sentence without a full stop.
        site: name of the FirecREST deployment.
        system: name of the cluster behind it.
        path: remote (or local) path.
        job_id: the scheduler's id.
        request_id: the `X-Request-ID` under which the server logged the request.
        status: HTTP status of the answer, where there was one.
        hint: what the reader can do next, a sentence.

    `repeated` is set where the error answers a repeat of a request whose first outcome is unknown: "not found" after
    such a removal, or "exists" after such a mkdir, is what success looks like.
    """

    _hint: str | None = None

    def __init__(
        self,
        message: str,
        *,
        site: str | None = None,
        system: str | None = None,
        path: str | None = None,
        job_id: str | None = None,
        request_id: str | None = None,
        status: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.site = site
        self.system = system
        self.path = path
        self.job_id = job_id
        self.request_id = request_id
        self.status = status
        self.hint = hint if hint is not None else self._hint
        self.repeated = False

    def __str__(self) -> str:
        facts = [
            f"{label} {value}"
            for label, value in (
                ("site", self.site),
                ("system", self.system),
                ("path", self.path),
                ("job", self.job_id),
                ("HTTP", self.status),
                ("request id", self.request_id),
            )
            if value is not None
        ]
        text = self.message.rstrip().rstrip(".")
        if facts:
            text += f" ({', '.join(facts)})"
        return f"{text}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        # Hosts carry errors between processes; keyword-only arguments do not survive Exception's own pickling.
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(cls: type[HpcBridgeError], message: str, state: dict[str, Any]) -> HpcBridgeError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigurationError(HpcBridgeError):
    """A setting is missing, unknown or wrong."""


class AuthenticationError(HpcBridgeError):
    """The issuer refused the credential, or the server refused the token twice in a row."""

    _hint = "Check the client id and secret, or log in again with `hpcbridge login`"


class LoginRequired(AuthenticationError):
    """There is no login, or it has ended."""

    _hint = "Run `hpcbridge login`"


class PermissionDenied(HpcBridgeError):
    """The user is known but may not do this (403, EACCES, EPERM)."""


class InvalidRequest(HpcBridgeError):
    """The request can never succeed as it stands."""


class InvalidName(InvalidRequest):
    """A job name or label that the scheduler or the server would mangle."""


class InvalidPath(InvalidRequest):
    """A path that is not absolute, outside the system's file systems, or that the server's shell would mangle."""


class IsDirectory(InvalidPath):
    """The path of a directory where only a file will do."""


class InvalidSpec(InvalidRequest):
    """A job specification that the chosen scheduler mode cannot carry."""


class NotFound(HpcBridgeError):
    """What the request is about does not exist."""


class SystemNotFound(NotFound):
    """The site has no system of this name."""

    _hint = "`hpcbridge systems` lists the systems of a site"


class JobNotFound(NotFound):
    """The scheduler knows no such job (now: accounting lags by seconds)."""


class PathNotFound(NotFound):
    """No such file or directory on the system."""


class Conflict(HpcBridgeError):
    """The state on the other side is not what the request supposes."""


class KeyConflict(Conflict):
    """The same key was used for another script."""

    _hint = "Use another key for another job"


class AlreadyExists(Conflict):
    """The target exists."""


class TooLarge(HpcBridgeError):
    """Over a limit of the server (413, or a command output past 5 MiB)."""


class SubmitRejected(HpcBridgeError):
    """A definite no: the scheduler refused the job, and the message is its own. No job exists."""

    _hint = "Correct the script or its options and submit again"


class Unavailable(HpcBridgeError):
    """Not now: refused, 503, 424, time-out of a safe request, outage. The same request may succeed later.

    `retry_after`: seconds to wait, where the server said so. `lasting`: it rarely passes by itself (the user's SSH
    credential is refused), so it is repeated for half a minute at most, whatever the patience.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, lasting: bool = False, **context: Any
    ) -> None:
        super().__init__(message, **context)
        self.retry_after = retry_after
        self.lasting = lasting


class NotSent(Unavailable):
    """Nothing was sent (DNS, connect, TLS, circuit open, no token to be had): always safe to repeat."""


class RateLimited(Unavailable):
    """429 from the server or a gateway before it."""


class AmbiguousOutcome(HpcBridgeError):
    """The request may have been carried out: its answer was lost or does not tell. Look before repeating it."""

    _hint = "It may have been carried out: look before repeating it"


class ServerError(HpcBridgeError):
    """An answer that no rule explains; `status` is its HTTP status."""


class CommandTimeout(ServerError):
    """408: the command behind the request took longer than the server allows (5 s by default)."""


class JobFailed(HpcBridgeError):
    """The job has ended and not well.

    `info` is the job's JobInfo (state, exit code, signal, reason, times); `tail` the last lines it wrote.
    """

    def __init__(self, message: str, *, info: Any = None, tail: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.info = info
        self.tail = tail

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n{self.tail.rstrip()}" if self.tail else text


class OutOfMemory(JobFailed):
    """OUT_OF_MEMORY."""

    _hint = "Ask for more memory"


class TimeLimit(JobFailed):
    """TIMEOUT or DEADLINE."""

    _hint = "Ask for more time"


class NodeFailure(JobFailed):
    """NODE_FAIL or BOOT_FAIL."""

    _hint = "Submit it again"


class JobCancelled(JobFailed):
    """CANCELLED, by the user, an operator or us."""


class JobVanished(JobFailed):
    """Confirmed absent from listings and by-id reads past the accounting lag."""


class LostRace(JobFailed):
    """Exit code 75: another job holds the lock of this key."""

    _hint = "Follow the owner that the job's output names"


class TransferError(HpcBridgeError):
    """A file did not arrive."""


class IntegrityError(TransferError):
    """Size or SHA-256 of the two sides differ."""

    _hint = "Transfer it again"


class SomeFailed(HpcBridgeError):
    """Of several paths some failed; the others are done. `failures` says of each path (str) why, as an error."""

    def __init__(self, message: str, *, failures: dict[str, HpcBridgeError] | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.failures = failures or {}

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *map(str, self.failures.values())])


class BlockingInsideLoop(HpcBridgeError):
    """`hpcbridge.blocking` was called in a thread whose event loop is running."""

    _hint = "Use the asynchronous API (`hpcbridge.connect`) inside a running event loop"
