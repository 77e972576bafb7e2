"""Configuration: one order, secrets by reference, errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcbridge import sites
from hpcbridge.credentials import ClientCredentials, DeviceCode, TokenCommand, TokenFile
from hpcbridge.credentials.logins import AuthorizationCodePKCE
from hpcbridge.errors import ConfigurationError
from hpcbridge.sites import Site, load_site, resolve_site

FILE = """
default = "cscs"

[sites.cscs]
url = "https://api.cscs.example/hpc/firecrest/v2/"
token_url = "https://auth.cscs.example/realms/x/protocol/openid-connect/token"
client_id = "mine"
client_secret_file = "secrets/cscs"
system = "daint"
polling_rate = 2
max_in_flight = 12
accounts = { daint = "proj1", eiger = "proj2" }

[sites.lab]
url = "https://lab.example"
token_command = ["lab-token", "--short"]

[sites.person]
url = "https://person.example"
token_url = "https://person.example/token"
client_id = "public"
grant = "browser"
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (*sites.ENVIRONMENT.values(), "HPCBRIDGE_CONFIG", "HPCBRIDGE_SITE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sites.toml"
    path.write_text(FILE)
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(path))
    return path


def environment(monkeypatch: pytest.MonkeyPatch, url: str = "http://env.example:1/f7t") -> None:
    for variable, value in {
        "FIRECREST_URL": url,
        "AUTH_TOKEN_URL": "http://env.example:1/auth/token",
        "FIRECREST_CLIENT_ID": "env-client",
        "FIRECREST_CLIENT_SECRET": "env-secret-value",
        "FIRECREST_SYSTEM": "env-system",
    }.items():
        monkeypatch.setenv(variable, value)


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    site, credential = load_site()
    assert (site.url, site.system, site.client_id) == ("http://env.example:1/f7t", "env-system", "env-client")
    assert isinstance(credential, ClientCredentials)
    assert "env-secret-value" not in f"{site!r} {credential!r} {credential.identity}"


def test_arguments_before_environment_before_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, "https://api.cscs.example/hpc/firecrest/v2")
    site = resolve_site(system="eiger")
    assert site.name == "cscs"
    assert site.system == "eiger"  # argument
    assert site.client_id == "env-client"  # environment
    assert site.accounts["eiger"] == "proj2"  # file, of the same deployment
    assert site.credentials.client_secret is not None


def test_the_environment_of_another_deployment_is_not_mixed_in(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    site = resolve_site("cscs")
    assert (site.client_id, site.system) == ("mine", "daint")
    assert site.credentials.client_secret is None
    assert resolve_site().url == "http://env.example:1/f7t"


def test_a_url_given_as_argument_does_not_get_the_environments_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch)
    site = resolve_site(url="https://elsewhere.example")
    assert (site.client_id, site.credentials.client_secret) == (None, None)


def test_the_environment_completes_a_site_that_it_does_not_contradict(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRECREST_SYSTEM", "santis")
    assert resolve_site("cscs").system == "santis"


def test_the_files_default_and_the_named_site(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = resolve_site()
    assert (site.name, site.url) == ("cscs", "https://api.cscs.example/hpc/firecrest/v2")
    assert (site.polling_rate, site.max_in_flight) == (2.0, 12)
    assert site.account_for("daint") == "proj1"
    assert site.credentials.client_secret_file == str(file.parent / "secrets" / "cscs")
    monkeypatch.setenv("HPCBRIDGE_SITE", "lab")
    assert resolve_site().name == "lab"


def test_each_grant_makes_its_credential(file: Path, tmp_path: Path) -> None:
    assert isinstance(load_site("cscs")[1], ClientCredentials)
    assert isinstance(load_site("lab")[1], TokenCommand)
    assert isinstance(load_site("person")[1], AuthorizationCodePKCE)
    assert isinstance(load_site("person", grant="device")[1], DeviceCode)
    assert isinstance(load_site("lab", grant="token_file", token_file=str(tmp_path / "t"))[1], TokenFile)


def test_a_client_without_a_secret_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    _, credential = load_site(url="http://h", token_url="http://h/token", client_id="public")
    assert isinstance(credential, DeviceCode)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sites.a]\nurl = 'https://h'\nsytem = 'x'", ["sites.a.sytem", "unknown key"]),
        ("sitess = 1", ["sitess", "unknown key"]),
        ("[sites.a]\nsystem = 'x'", ["sites.a.url", "required"]),
        ("[sites.a]\nurl = 'https://h'\npolling_rate = 'fast'", ["sites.a.polling_rate"]),
        ("[sites.a]\nurl = 'https://h'\npolling_rate = 0", ["sites.a.polling_rate", "greater than 0"]),
        ("[sites.a]\nurl = 'https://h'\ngrant = 'magic'", ["sites.a.grant", "client_credentials"]),
        ("[sites.a]\nurl = 'https://h'\nclient_secret = 'hunter2hunter2'", ["sites.a.client_secret", "by reference"]),
        ("[sites.a]\nurl = 'https://h'\nclient_secret_command = 'pass show x'", ["sites.a.client_secret_command"]),
        ("[sites.a\nurl", ["not TOML"]),
        ("default = 'b'\n[sites.a]\nurl = 'https://h'", ["default", "'b'"]),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_key(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(path))
    with pytest.raises(ConfigurationError) as refused:
        resolve_site()
    for word in [*words, str(path)]:
        assert word in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FIRECREST_URL"):
        load_site()
    with pytest.raises(ConfigurationError, match="client id"):
        load_site(url="http://h", token_url="http://h/t", client_secret="s")
    with pytest.raises(ConfigurationError, match="AUTH_TOKEN_URL"):
        load_site(url="http://h", client_id="c", client_secret="s")
    with pytest.raises(ConfigurationError, match="no client secret"):
        load_site(url="http://h", token_url="http://h/t", client_id="c", grant="client_credentials")
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load_site("cscs")
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigurationError, match=r"HPCBRIDGE_CONFIG.*nowhere\.toml"):
        load_site()


def test_an_unknown_site_lists_the_known_ones(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no site 'csc'.*cscs, lab, person"):
        resolve_site("csc")


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown setting 'sytem'"):
        resolve_site(url="http://h", sytem="x")


@pytest.mark.parametrize("url", ["ftp://h", "h/x", "https://user:pass@h", "https://h/x?y=1", ""])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve_site(url=url)
    assert "pass@" not in str(refused.value)


def test_a_wrong_url_is_shown_with_its_variable() -> None:
    with pytest.raises(
        ConfigurationError, match=r"token_url is not an http\(s\) URL: 'localhost:8000'.*AUTH_TOKEN_URL"
    ):
        resolve_site(url="http://h", token_url="localhost:8000")


def test_a_site_hashes_and_compares_by_what_matters() -> None:
    one, two = Site(url="https://h/x/"), Site(url="https://h/x", accounts={"a": "b"})
    assert hash(one) == hash(Site(url="https://h/x"))
    assert one != two
