"""TLS to a site of its own authority, mutual TLS, proxies; wrong files are named."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hpcbridge import errors
from hpcbridge.credentials import ClientCredentials, TokenCallable
from hpcbridge.credentials.factory import issuer_of
from hpcbridge.http import HttpPolicy, HttpSession
from hpcbridge.sites import Site, resolve_site
from support.httpd import Answer, Httpd, Request, httpd

QUICK = HttpPolicy(connect=2, read=2, patience=0)


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        (folder / "ca.pem").write_bytes(self._sign(self.name, self.key, authority=True))

    def issue(self, name: str) -> tuple[str, str]:
        """Certificate and key file for `name` on 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(self._sign(subject, key))
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return str(certificate), str(private)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False) -> bytes:
        import ipaddress

        now = datetime.datetime.now(datetime.UTC)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@asynccontextmanager
async def tls_server(authority: Authority, *, mutual: bool = False) -> AsyncIterator[str]:
    """An https server (the issuer too); with `mutual` it asks for a client's certificate."""

    async def handler(request: Request) -> Answer:
        if request.path == "/token":
            return Answer(200, {"access_token": "over-tls", "token_type": "Bearer", "expires_in": 300})
        return Answer(200, {"authorization": request.headers["authorization"]})

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(str(authority.folder / "ca.pem"))
    server = await asyncio.start_server(Httpd(handler).serve, "127.0.0.1", 0, ssl=context)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def session(**settings: str) -> HttpSession:
    site = resolve_site(client_id="me", client_secret="shhhhhhh", **settings)
    return HttpSession(site, ClientCredentials(issuer_of(site)), policy=QUICK)


async def test_a_sites_own_authority_serves_api_and_issuer(tmp_path: Path) -> None:
    async with tls_server(Authority(tmp_path)) as url:
        trusting = session(url=url, token_url=url + "/token", ca_file=str(tmp_path / "ca.pem"))
        assert (await trusting.request("GET", "/x")).json() == {"authorization": "Bearer over-tls"}
        assert (await trusting.storage.get(url + "/x", headers={"authorization": "none"})).status_code == 200
        await trusting.aclose()


async def test_an_unknown_authority_is_a_matter_of_configuration(tmp_path: Path) -> None:
    async with tls_server(Authority(tmp_path)) as url:
        with pytest.raises(errors.ConfigurationError, match=r"issuer's certificate is not trusted.*ca_file"):
            await session(url=url, token_url=url + "/token").request("GET", "/x", patience=60)
        plain = HttpSession(Site(url=url), TokenCallable(lambda: "x"), policy=QUICK)
        with pytest.raises(errors.ConfigurationError, match=r"site's certificate is not trusted.*ca_file"):
            await plain.request("GET", "/x", patience=60)
        await plain.aclose()


async def test_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    async with tls_server(authority, mutual=True) as url:
        settings = {"url": url, "token_url": url + "/token", "ca_file": str(tmp_path / "ca.pem")}
        known = session(**settings, client_cert=certificate, client_key=key)
        assert (await known.request("GET", "/x")).status_code == 200
        await known.aclose()
        with pytest.raises(errors.Unavailable):
            await session(**settings).request("GET", "/x")


@pytest.mark.parametrize("key", ["ca_file", "client_cert"])
async def test_a_wrong_file_is_named(tmp_path: Path, key: str) -> None:
    for content in (None, "not PEM"):
        path = tmp_path / "wrong.pem"
        if content is not None:
            path.write_text(content)
        site = Site(url="https://127.0.0.1:1", **{key: str(path)})
        with pytest.raises(errors.ConfigurationError, match=rf"{key} cannot be used.*wrong\.pem"):
            await HttpSession(site, TokenCallable(lambda: "x"), policy=QUICK).request("GET", "/x")


async def test_a_proxy_gets_the_requests() -> None:
    async def proxy(_request: Request) -> Answer:
        return Answer(200, {"via": "proxy"})

    async with httpd(proxy) as server:
        site = Site(url="http://far.example/f7t", proxy=server.url)
        proxied = HttpSession(site, TokenCallable(lambda: "x"), policy=QUICK)
        assert (await proxied.request("GET", "/status/systems")).json() == {"via": "proxy"}
        assert server.requests[0].path == "http://far.example/f7t/status/systems"
        await proxied.aclose()
