"""Import now what is otherwise imported when first used.

For hosts whose event loop serves others too: an import of Authlib, pyfirecrest or what carries httpx holds it for a
good part of a second.
"""

from __future__ import annotations

from importlib import import_module

_MODULES = (
    "hpcbridge.credentials.factory",
    "hpcbridge.firecrest.client",
    "hpcbridge.http.session",
    "hpcbridge.jobs.logs",
    "hpcbridge.jobs.submit",
    "hpcbridge.jobs.watch",
    "hpcbridge.system",
    "certifi",
    "firecrest.v2",
    "platformdirs",
)


def preload() -> None:
    """Import them all; takes a second or so, once."""
    from hpcbridge.credentials import issuer

    issuer.preload()
    for name in _MODULES:
        import_module(name)
