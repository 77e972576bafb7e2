"""Keeps secrets out of logs, whoever writes them: us, httpx, httpcore, Authlib or pyfirecrest.

httpcore logs response headers at DEBUG (the server echoes the bearer token in `auth-token` of a 401), httpx logs
whole URLs at INFO (presigned ones carry their signature). A filter on their loggers rewrites each record before any
handler sees it. Two nets: the form of a secret (header names, signature parameters, `Bearer …`) and the value of
every live `Secret`.
"""

from __future__ import annotations

import logging
import re

from hpcbridge.credentials.secret import redact_values

STARS = "**********"

_HEADERS = "authorization|proxy-authorization|auth-token|x-auth-token|set-cookie|cookie|x-amz-security-token"
_FORM = (
    "client_secret|refresh_token|access_token|id_token|device_code|code_verifier|password|assertion|client_assertion|"
    "subject_token"
)
_QUERY = "X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|Signature|AWSAccessKeyId|sig|temp_url_sig|code"
_PATTERNS = (
    # b'auth-token', b'eyJ…' as httpcore lists headers; 'auth-token': 'eyJ…' as in dicts; auth-token: eyJ… on the wire
    (re.compile(rf"(?i)(['\"](?:{_HEADERS})['\"]\s*[,:]\s*b?)(?:'[^']*'|\"[^\"]*\")"), rf"\1'{STARS}'"),
    (re.compile(rf"(?im)^(\s*(?:{_HEADERS})\s*:\s*)\S.*$"), rf"\1{STARS}"),
    (re.compile(rf"(?i)([?&](?:{_QUERY})=)[^&\s'\"<>)]+"), rf"\1{STARS}"),
    (re.compile(rf"(?i)(\b(?:{_FORM})['\"]?\s*[=:]\s*b?['\"]?)[^&\s'\",}}]+"), rf"\1{STARS}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {STARS}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), STARS),  # a JWT, wherever it stands
    (re.compile(r"(https?://[^\s/:@'\"]+:)[^\s/@'\"]+@"), rf"\1{STARS}@"),
)

LOGGERS = (
    "httpx",
    "httpx2",
    *(f"{core}{part}" for core in ("httpcore", "httpcore2") for part in ("", ".connection", ".http11", ".http2")),
    *(f"{core}.{part}" for core in ("httpcore", "httpcore2") for part in ("proxy", "socks")),
    "authlib",
    "firecrest",
    "firecrest.v2._async.Client",
    "firecrest.utilities",
    "urllib3",
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "hpcbridge",
)
"""A logger's filter sees only what is logged on that very logger, so each child that logs is listed."""


_FAMILIES = frozenset({"hpcbridge", "httpx", "httpx2", "httpcore", "httpcore2", "authlib", "firecrest", "urllib3"})


def redact(text: str) -> str:
    """`text` without anything that looks like a secret or is a live one."""
    text = redact_values(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """Rewrites a record's message, and the text of the exception it carries."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through, rewritten."""
        message = record.getMessage()
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            record.exc_text = _formatter.formatException(record.exc_info)  # handlers reuse it
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


_formatter = logging.Formatter()
_filter = RedactingFilter()


def install() -> None:
    """Put the filter on every logger that can see a secret, also those that modules have made since the last call."""
    made = [name for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] in _FAMILIES]
    for name in (*LOGGERS, *made):
        logger = logging.getLogger(name)
        if _filter not in logger.filters:
            logger.addFilter(_filter)
