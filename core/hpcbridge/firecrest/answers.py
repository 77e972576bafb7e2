"""What FirecREST's error answers mean: statuses and the words of the tools behind them, mapped to our errors.

The words come from recorded answers of real servers (2.5.7 over Slurm 22.05). FirecREST answers 500 for much that is
the request's own fault (wrong partition, a directory where a file is meant), so the text decides there.
"""

from __future__ import annotations

import re
from typing import Any

import httpx

from hpcbridge.errors import (
    AlreadyExists,
    AmbiguousOutcome,
    Conflict,
    HpcBridgeError,
    InvalidPath,
    InvalidRequest,
    JobNotFound,
    PathNotFound,
    PermissionDenied,
    SubmitRejected,
    SystemNotFound,
    TooLarge,
    Unavailable,
)
from hpcbridge.http.answers import About, explain_status, message_of

_SSH_HINT = "The server got no SSH session on the system: too many at once, or the user's SSH credential is refused"
_ROOTS_HINT = "`hpcbridge systems` lists the file systems of each system; paths begin with one of them"

_WORDS: tuple[tuple[re.Pattern[str], type[HpcBridgeError], str | None], ...] = (
    (re.compile(r"No such file or directory|file_not_found"), PathNotFound, None),
    (re.compile(r"File exists|already exists"), AlreadyExists, None),
    (re.compile(r"Invalid job id|Job not found|Bad job/step specified"), JobNotFound, None),
    (re.compile(r"already completing or completed"), Conflict, "The job has ended"),
    (re.compile(r"Access/permission denied|Permission denied|Operation not permitted"), PermissionDenied, None),
    (re.compile(r"No SSH credentials found"), PermissionDenied, "Ask the site to set up SSH access for this user"),
    (re.compile(r"Is a directory|Not a directory|Directory not empty|File name too long"), InvalidPath, None),
    (re.compile(r"unexpected EOF while looking for matching"), InvalidPath, "Quotes in paths do not reach this server"),
    (re.compile(r"not an absolute path|does not match any of the defined filesystem"), InvalidPath, _ROOTS_HINT),
    (re.compile(r"invalid mode|invalid spec|invalid user|invalid group|not in gzip format"), InvalidRequest, None),
    (re.compile(r"exceeded buffer limit"), TooLarge, "The answer is over the server's limit of 5 MiB"),
    (re.compile(r"Unable to open a new SSH channel|Unable to establish SSH connection"), Unavailable, _SSH_HINT),
    (re.compile(r"Connection refused|Connection lost|Connection reset|Could not connect"), Unavailable, None),
)
"""Words -> error, first match wins; looked at for 400, 403, 404 and 500."""

_REFUSAL = re.compile(r"exit_status:(?!0\b)\d+\b.*?(?:sbatch|qsub): ", re.DOTALL)
"""sbatch (PBS: qsub) ran, said so itself, and ended with a failure."""

_UNDECIDED = re.compile(
    r"Socket timed out|timed out|Zero Bytes were transmitted|Unable to contact|Unexpected message received"
    r"|Communication connection failure|Message (?:send|receive) failure|Connection (?:reset|refused)"
    r"|Transport endpoint"
    r"|Insane message length|Resource temporarily unavailable|Interrupted system call|Broken pipe",
    re.IGNORECASE,
)
"""sbatch lost its connection to the controller: the job may have been accepted although sbatch failed."""

_FRAME = re.compile(
    r"(?:Unexpected Slurm command response\. exit_status:\d+ std_err:|"
    r"Remote process failed with exit status:\d+ and error message:)"
)

_REFUSED_UNREAD = frozenset({400, 404, 405, 406, 411, 413, 414, 415, 422, 431, 501})
"""The request itself was refused: HTTP says that it had no effect."""


def explain(response: httpx.Response, about: About) -> HpcBridgeError:
    """The error for an answer to a request that may be repeated."""
    error = explain_status(response, about)
    status, text = response.status_code, error.message
    error.message = _own_words(text)
    if status == 404 and re.search(r"System not found", text):
        return _remake(error, SystemNotFound)
    if status in (400, 403, 404, 424, 500):
        for words, kind, hint in _WORDS:
            if words.search(text):
                made = _remake(error, kind, hint)
                if isinstance(made, Unavailable):
                    made.lasting = "Unable to establish SSH connection" in text
                return made
    if status == 404 and about.get("job_id") is not None:
        return _remake(error, JobNotFound)
    if status == 503:
        error.hint = (
            "The site reports a service as unhealthy: `hpcbridge systems`" if "unhealthy" in text else error.hint
        )
    if status == 408:
        error.hint = "The server allows a command 5 s by default; ask for less at a time or use a job"
    return error


def explain_once(response: httpx.Response, about: About) -> HpcBridgeError:
    """The error for an answer to a request that must not happen twice: a definite no, RateLimited, or AmbiguousOutcome.

    Definite: 400, 401, 403, 404 (and the statuses that refuse a request as such), 503 "unhealthy", 424 "Unable to
    establish SSH connection", and 500 with the refusal of sbatch itself, unless sbatch lost its connection to the
    controller. Everything else is ambiguous: 408, other 424 and 5xx.
    """
    status, text = response.status_code, message_of(response)
    if status == 429 or status == 401 or 300 <= status < 400:
        return explain_status(response, about)
    if status in _REFUSED_UNREAD:
        return explain(response, about)
    if status == 403:
        return _remake(explain(response, about), SubmitRejected) if "rejected" in text else explain(response, about)
    if (status == 503 and "unhealthy" in text) or (status == 424 and "Unable to establish SSH connection" in text):
        return explain(response, about)
    if status == 500 and _REFUSAL.search(text) and not _UNDECIDED.search(text):
        return SubmitRejected(_own_words(text), **{**about, "status": status})
    return AmbiguousOutcome(f"the answer does not tell whether it was done: {text}", **{**about, "status": status})


def _own_words(text: str) -> str:
    """The tool's standard error without FirecREST's frame around it."""
    return _FRAME.sub("", text).strip() or text


def _remake(error: HpcBridgeError, kind: type[HpcBridgeError], hint: str | None = None) -> HpcBridgeError:
    context: dict[str, Any] = {
        name: getattr(error, name) for name in ("site", "system", "path", "job_id", "request_id", "status")
    }
    if issubclass(kind, Unavailable):
        context["retry_after"] = getattr(error, "retry_after", None)
    return kind(error.message, hint=hint, **context)
