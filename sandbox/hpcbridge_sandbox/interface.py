"""The OpenAPI document that the REST interface serves: a real FirecREST 2.5.7 server's, put right for this server."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcbridge_sandbox.settings import Settings

_DOWNLOAD = "/filesystem/{system_name}/ops/download"
_JOBS = "/compute/{system_name}/jobs"
_SINCE_2_5_7 = frozenset({"name", "time_window"})
"""Parameters of the job listing that 2.5.6 does not know."""


@cache
def _recorded() -> str:
    return resources.files("hpcbridge_sandbox").joinpath("openapi.json").read_text("utf-8")


def document(settings: Settings, base_url: str, token_url: str) -> dict[str, Any]:
    """Return the document for a server at *base_url* whose tokens come from *token_url*."""
    found: dict[str, Any] = json.loads(_recorded())
    found["info"]["version"] = settings.server_version
    found["info"]["description"] = "A FirecREST v2 sandbox on one machine: for trying and testing, not for production."
    found["servers"] = [{"url": base_url, "description": "sandbox"}]
    flows = found["components"]["securitySchemes"]["APIAuthDependency"]["flows"]
    flows["clientCredentials"]["tokenUrl"] = token_url
    # The real document says JSON, where its server sends the file's bytes.
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    found["paths"][_DOWNLOAD]["get"]["responses"]["200"]["content"] = binary
    # It also says "write only" of keys that its server answers with, masked.
    for field in found["components"]["schemas"]["S3DataTransfer"]["properties"].values():
        field.pop("writeOnly", None)
    if settings.server_version == "2.5.6":
        listing = found["paths"][_JOBS]["get"]
        listing["parameters"] = [entry for entry in listing["parameters"] if entry["name"] not in _SINCE_2_5_7]
    return found
