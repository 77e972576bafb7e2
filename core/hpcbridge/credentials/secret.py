"""A string that does not show itself: not in a repr, a log, a traceback with local variables or a pickle."""

from __future__ import annotations

import weakref
from typing import NoReturn

_live: weakref.WeakValueDictionary[int, Secret] = weakref.WeakValueDictionary()
_SHORTEST = 8
"""Shorter values are not searched for in logs: "a" would redact everything."""


class Secret:
    """Wraps a token, a password or a presigned URL; `reveal()` is the only way to the value.

    `searchable=False` keeps the value out of the log filter's search: for presigned URLs, which come by the thousand
    and whose signatures the filter knows by their form.

    pydantic's SecretStr does the same, but importing pydantic costs more than all of this package, and live secrets
    are also known to `redact_values`, which the log filter uses.
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str, *, searchable: bool = True) -> None:
        self._value = value
        if searchable and len(value) >= _SHORTEST:
            _live[id(self)] = self

    def reveal(self) -> str:
        """The value itself; keep it out of local variables that outlive the call it is for."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __str__(self) -> str:
        return "**********"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(("hpcbridge.Secret", self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Secret is not pickled: pass the reference to it (file, environment variable, command) instead"
        )


def redact_values(text: str) -> str:
    """`text` without the value of any live secret."""
    for reference in _live.valuerefs():  # a snapshot: other threads make secrets meanwhile
        secret = reference()
        if secret is not None and secret.reveal() in text:
            text = text.replace(secret.reveal(), "**********")
    return text
