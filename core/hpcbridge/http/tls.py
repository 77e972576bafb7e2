"""Options of httpx clients for a site: trust, client certificate, proxy."""

from __future__ import annotations

import os
import ssl
from typing import Any
from urllib.parse import urlsplit

from hpcbridge.errors import ConfigurationError
from hpcbridge.sites import Site


def ssl_context(site: Site) -> ssl.SSLContext:
    """The context for a site: its `ca_file`, else SSL_CERT_FILE, else the public authorities; its client certificate.

    Raises:
        ConfigurationError: a file cannot be read or is not PEM.
    """
    ca_file = site.ca_file or os.environ.get("SSL_CERT_FILE")
    key, path = "ca_file", ca_file
    try:
        if ca_file:
            context = ssl.create_default_context(cafile=ca_file)
        else:
            import certifi

            context = ssl.create_default_context(cafile=certifi.where())
        if site.client_cert:
            key, path = "client_cert", site.client_cert
            context.load_cert_chain(site.client_cert, site.client_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{key} cannot be used: {error.strerror or error}", site=site.name, path=path
        ) from None
    return context


def client_options(site: Site, url: str | None = None) -> dict[str, Any]:
    """Keyword arguments for httpx.AsyncClient talking to `url` (default: the site's own).

    Without TLS no context is built: it costs 20 ms. Without a configured proxy, HTTPS_PROXY and its like hold.
    """
    plain = urlsplit(url or site.url).scheme == "http" and not (site.ca_file or site.client_cert)
    options: dict[str, Any] = {"verify": False if plain else ssl_context(site), "follow_redirects": False}
    if site.proxy:
        options["proxy"] = site.proxy
    return options
