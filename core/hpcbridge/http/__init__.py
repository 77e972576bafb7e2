"""HTTP to one site: time-outs, limiter, retries, circuit breaker, traces, and no secret in any log."""

from __future__ import annotations

from hpcbridge.http.answers import About, Explain, explain_status, message_of
from hpcbridge.http.policy import HttpPolicy
from hpcbridge.http.redaction import redact
from hpcbridge.http.session import Counters, HttpSession, trace_id

__all__ = [
    "About",
    "Counters",
    "Explain",
    "HttpPolicy",
    "HttpSession",
    "explain_status",
    "message_of",
    "redact",
    "trace_id",
]
