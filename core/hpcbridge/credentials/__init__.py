"""Ways to a bearer token. Authlib speaks the protocol; this room caches, shares and keeps secrets out of sight."""

from __future__ import annotations

from hpcbridge.credentials.base import Credential
from hpcbridge.credentials.secret import Secret

__all__ = ["Credential", "Secret"]
