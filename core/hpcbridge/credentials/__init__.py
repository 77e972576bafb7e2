"""Ways to a bearer token. Authlib speaks the protocol; this room caches, shares and keeps secrets out of sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcbridge.credentials.base import Credential
from hpcbridge.credentials.secret import Secret

if TYPE_CHECKING:
    from hpcbridge.credentials.factory import credential_for, login_for
    from hpcbridge.credentials.flows import ClientCredentials, TokenCallable, TokenCommand, TokenFile
    from hpcbridge.credentials.issuer import Issuer
    from hpcbridge.credentials.logins import AuthorizationCodePKCE, DeviceCode, DevicePrompt, RefreshToken
    from hpcbridge.credentials.store import FileStore, Login, LoginStore, MemoryStore

_HOMES = {
    "credential_for": "factory",
    "login_for": "factory",
    "ClientCredentials": "flows",
    "TokenCallable": "flows",
    "TokenCommand": "flows",
    "TokenFile": "flows",
    "Issuer": "issuer",
    "AuthorizationCodePKCE": "logins",
    "DeviceCode": "logins",
    "DevicePrompt": "logins",
    "RefreshToken": "logins",
    "FileStore": "store",
    "Login": "store",
    "LoginStore": "store",
    "MemoryStore": "store",
}

__all__ = [
    "AuthorizationCodePKCE",
    "ClientCredentials",
    "Credential",
    "DeviceCode",
    "DevicePrompt",
    "FileStore",
    "Issuer",
    "Login",
    "LoginStore",
    "MemoryStore",
    "RefreshToken",
    "Secret",
    "TokenCallable",
    "TokenCommand",
    "TokenFile",
    "credential_for",
    "login_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hpcbridge.credentials.{_HOMES[name]}"), name)
