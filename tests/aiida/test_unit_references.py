"""Credential references: what is stored says where the secret is, and is refused where it may be the secret itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcbridge.errors import ConfigurationError
from hpcbridge_aiida import references
from hpcbridge_aiida.references import Endpoint

URL = "https://api.example.org/v2"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("site:daint", ("site", "daint")),
        ("env", ("env", "")),
        ("env:SECRET", ("env", "SECRET")),
        ("file:/home/me/secret", ("file", "/home/me/secret")),
        ("command:pass show hpc", ("command", "pass show hpc")),
        ("file:~/secret", ("file", "~/secret")),
        ("keyring:hpc/me", ("keyring", "hpc/me")),
        (" login ", ("login", "")),
    ],
)
def test_references(text: str, parsed: tuple[str, str]) -> None:
    assert references.parse(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "s3cr3t", "Bearer s3cr3t", "file:", "env:", "site", "login:s3cr3t", "keyring:s3cr3t"]
)
def test_what_is_no_reference_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        references.parse(text)
    assert "s3cr3t" not in str(caught.value)
    assert "file:/path" in str(caught.value) or "keyring:SERVICE/USER" in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "token-file"])
def test_a_path_means_the_same_to_the_daemon(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="absolute path"):
        references.parse(f"{kind}:secret.toml")


def test_the_transport_refuses_a_secret_too() -> None:
    from hpcbridge_aiida.transport import HpcbridgeTransport

    with pytest.raises(ConfigurationError):
        HpcbridgeTransport(machine="daint", url=URL, credential="s3cr3t")


class TestFile:
    def test_others_may_not_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_text("s3cr3t")
        path.chmod(0o640)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            references.connect(Endpoint(URL, f"file:{path}", "me", f"{URL}/token"))

    def test_it_is_named_where_it_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            references.connect(Endpoint(URL, f"file:{tmp_path}/none", "me", f"{URL}/token"))

    def test_the_secret_alone_is_read_again_at_each_use(self, tmp_path: Path) -> None:
        path = _private(tmp_path / "secret", "s3cr3t\n")
        site = references.connect(Endpoint(URL, f"file:{path}", "me", f"{URL}/token")).site
        assert site.credentials.client_secret_file == str(path)
        assert (site.client_id, site.token_url) == ("me", f"{URL}/token")

    def test_toml_names_client_and_token_endpoint(self, tmp_path: Path) -> None:
        text = f'client_id = "me"\nclient_secret = "s3cr3t"\ntoken_url = "{URL}/token"\n'
        site = references.connect(Endpoint(URL, f"file:{_private(tmp_path / 'c.toml', text)}")).site
        assert (site.client_id, site.token_url) == ("me", f"{URL}/token")
        assert "s3cr3t" not in repr(site)

    def test_an_unknown_key_is_named(self, tmp_path: Path) -> None:
        path = _private(tmp_path / "c.toml", 'client_secret = "s3cr3t"\nclientid = "me"\n')
        with pytest.raises(ConfigurationError, match="clientid") as caught:
            references.connect(Endpoint(URL, f"file:{path}"))
        assert "s3cr3t" not in str(caught.value)


def test_a_site_s_secret_goes_to_its_own_deployment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "sites.toml"
    config.write_text(
        f'[sites.hpc]\nurl = "{URL}"\nclient_id = "me"\ntoken_url = "{URL}/token"\nclient_secret_env = "X"\n'
    )
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(config))
    assert references.connect(Endpoint(URL + "/", "site:hpc")).site.name == "hpc"
    with pytest.raises(ConfigurationError, match="not that of the site"):
        references.connect(Endpoint("https://elsewhere.example.org", "site:hpc"))


def _private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path
