"""File operations answer as the recorded server does, and nothing in a path or name ever reaches a shell."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from support.sandbox import SandboxProcess

LIMIT = 5 * 1024 * 1024
REMOTE = "Remote process failed with exit status:"


class Ops:
    """The operations of one user, below one directory."""

    def __init__(self, client: httpx.Client, system: str, base: str) -> None:
        self.client, self.base = client, base
        self.url = f"/filesystem/{system}/ops"

    def get(self, operation: str, path: str, **params: Any) -> httpx.Response:
        return self.client.get(f"{self.url}/{operation}", params={"path": path, **params})

    def put(self, operation: str, **body: Any) -> httpx.Response:
        return self.client.put(f"{self.url}/{operation}", json=body)

    def post(self, operation: str, **body: Any) -> httpx.Response:
        return self.client.post(f"{self.url}/{operation}", json=body)

    def rm(self, path: str) -> httpx.Response:
        return self.client.delete(f"{self.url}/rm", params={"path": path})

    def upload(self, name: str, data: bytes, directory: str | None = None) -> httpx.Response:
        files = {"file": (name, data)}
        return self.client.post(f"{self.url}/upload", params={"path": directory or self.base}, files=files)


@pytest.fixture
def ops(sandbox: SandboxProcess, request: pytest.FixtureRequest) -> Iterator[Ops]:
    with sandbox.client() as client:
        base = f"/home/alice/t{abs(hash(request.node.name)) % 10**10}"
        made = Ops(client, sandbox.system, base)
        assert made.post("mkdir", path=base, parent=True).status_code == 201
        assert made.upload("s.txt", b"hello world\n" * 100).status_code == 204
        assert made.upload("bin", bytes(range(256)) * 4).status_code == 204
        yield made
        made.rm(base)


def said(answer: httpx.Response, status: int, message: str) -> None:
    assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert answer.json()["errorType"] == "error"
    assert answer.json()["user"] == answer.headers["f7t-authusername"] == "alice"


def test_mkdir(ops: Ops) -> None:
    answer = ops.post("mkdir", sourcePath=f"{ops.base}/a/b", parent=True)
    assert answer.status_code == 201
    made = answer.json()["output"]
    assert made == {
        "name": f"{ops.base}/a/b",
        "type": "d",
        "linkTarget": None,
        "user": "alice",
        "group": "users",
        "permissions": "rwxr-xr-x",
        "lastModified": made["lastModified"],
        "size": "4096",
    }
    path = f"{ops.base}/a"
    said(
        ops.post("mkdir", path=path),
        400,
        f"{REMOTE}1 and error message:mkdir: cannot create directory '{path}': File exists",
    )
    path = f"{ops.base}/n/n"
    text = f"mkdir: cannot create directory '{path}': No such file or directory"
    said(ops.post("mkdir", path=path), 404, f"{REMOTE}1 and error message:{text}")
    text = "mkdir: cannot create directory '/home/zzz': Permission denied"
    said(ops.post("mkdir", path="/home/zzz"), 403, f"{REMOTE}1 and error message:{text}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x/y", "The provided path (x/y) is not an absolute path."),
        ("~/x", "The provided path (~/x) is not an absolute path."),
        (
            "/etc",
            "The provided path (/etc) does not match any of the defined filesystem paths for the requested system",
        ),
        ("/home/../etc", "The provided path (/etc) does not match any of the defined filesystem paths"),
        ("/homework", "The provided path (/homework) does not match any of the defined filesystem paths"),
        ("/home/alice/../../etc/passwd", "The provided path (/etc/passwd) does not match any of the defined"),
    ],
)
def test_paths_outside_the_file_systems(ops: Ops, path: str, message: str) -> None:
    for answer in (ops.get("ls", path), ops.post("mkdir", path=path), ops.get("download", path), ops.rm(path)):
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(message)


def test_without_a_path(ops: Ops) -> None:
    message = "Unable to decode request and retreive the required path or source_path parameter."
    said(ops.client.get(f"{ops.url}/ls"), 400, message)
    said(ops.post("mkdir"), 400, message)


def test_validation_errors_are_400_in_the_recorded_shape(ops: Ops) -> None:
    answer = ops.client.post(f"{ops.url}/mkdir", content=b"{bad", headers={"content-type": "application/json"})
    body = answer.json()
    assert (answer.status_code, body["errorType"], body["user"]) == (400, "validation", None)
    assert body["data"] == {"fields": [{"location": "body", "message": "JSON decode error", "name": 1}]}
    answer = ops.client.post(f"{ops.url}/upload", params={"path": ops.base})
    assert answer.json()["data"] == {"fields": [{"location": "body", "message": "Field required", "name": "file"}]}
    assert answer.json()["message"].startswith("1 validation error:\n  {'type': 'missing', 'loc': ('body', 'file')")
    answer = ops.post("compress", path=f"{ops.base}/s.txt", targetPath=f"{ops.base}/x", compression="zip")
    field = {"location": "body", "message": "Input should be 'none', 'bzip2', 'gzip' or 'xz'", "name": "compression"}
    assert (answer.status_code, answer.json()["data"]) == (400, {"fields": [field]})


def test_ls(ops: Ops) -> None:
    ops.upload(".hidden", b"h")
    ops.post("mkdir", path=f"{ops.base}/d")
    ops.upload("inner", b"12345", f"{ops.base}/d")
    entries = ops.get("ls", ops.base).json()["output"]
    assert [entry["name"] for entry in entries] == ["bin", "d", "s.txt"]
    assert [entry["size"] for entry in entries if entry["name"] == "s.txt"] == ["1200"]
    everything = ops.get("ls", ops.base, showHidden="true", recursive="true", numericUid="true").json()["output"]
    assert [entry["name"] for entry in everything] == [".hidden", "bin", "d", "s.txt", "d/inner"]
    assert {(entry["user"], entry["group"]) for entry in everything} == {("2001", "100")}
    (single,) = ops.get("ls", f"{ops.base}/s.txt").json()["output"]
    assert single["name"] == f"{ops.base}/s.txt"
    text = f"ls: cannot access '{ops.base}/nope': No such file or directory"
    said(ops.get("ls", f"{ops.base}/nope"), 404, f"{REMOTE}2 and error message:{text}")


def test_ls_shows_names_c_quoted(ops: Ops) -> None:
    for name in ("sp ace é.txt", 'a"b', "back\\slash", "new\nline"):
        ops.post("mkdir", path=f"{ops.base}/odd/{name}", parent=True)
    names = {entry["name"] for entry in ops.get("ls", f"{ops.base}/odd").json()["output"]}
    assert names == {r"sp ace \303\251.txt", 'a"b', "back\\slash", r"new\nline"}


def test_symlink_and_dereference(ops: Ops) -> None:
    answer = ops.post("symlink", path=f"{ops.base}/s.txt", linkPath=f"{ops.base}/l")
    assert answer.status_code == 201
    link = answer.json()["output"]
    assert (link["name"], link["type"], link["linkTarget"]) == (f"{ops.base}/l", "l", f"{ops.base}/s.txt")
    again = ops.post("symlink", path=f"{ops.base}/s.txt", link_path=f"{ops.base}/l")
    text = f"ln: failed to create symbolic link '{ops.base}/l': File exists"
    said(again, 400, f"{REMOTE}1 and error message:{text}")
    assert ops.get("stat", f"{ops.base}/l").json()["output"]["size"] == len(f"{ops.base}/s.txt")
    assert ops.get("stat", f"{ops.base}/l", dereference="true").json()["output"]["size"] == 1200
    followed = ops.get("ls", ops.base, dereference="true").json()["output"]
    assert {entry["name"]: entry["type"] for entry in followed}["l"] == "-"


@pytest.mark.skipif(os.geteuid() != 0, reason="other users' files: real uids need root")
def test_stat_chmod_chown(ops: Ops) -> None:
    path = f"{ops.base}/s.txt"
    stat = ops.get("stat", path).json()["output"]
    assert (stat["mode"], stat["size"], stat["uid"], stat["gid"], stat["nlink"]) == (0o100644, 1200, 2001, 100, 1)
    assert abs(stat["mtime"] - time.time()) < 60
    assert ops.put("chmod", path=path, mode="640").json()["output"]["permissions"] == "rw-r-----"
    text = "chmod: invalid mode: 'zzz'\nTry 'chmod --help' for more information."
    said(ops.put("chmod", path=path, mode="zzz"), 500, f"{REMOTE}1 and error message:{text}")
    text = "chmod: changing permissions of '/home/bob': Operation not permitted"
    said(ops.put("chmod", path="/home/bob", mode="777"), 403, f"{REMOTE}1 and error message:{text}")
    assert ops.put("chown", path=path, owner="alice", group="users").json()["output"]["user"] == "alice"
    assert ops.put("chown", path=path).status_code == 200
    said(
        ops.put("chown", path=path, owner="nosuch"), 500, f"{REMOTE}1 and error message:chown: invalid spec: 'nosuch:'"
    )
    text = f"chown: changing ownership of '{path}': Operation not permitted"
    said(ops.put("chown", path=path, owner="root"), 403, f"{REMOTE}1 and error message:{text}")


def test_head_and_tail(ops: Ops) -> None:
    path = f"{ops.base}/s.txt"

    def content(operation: str, **params: Any) -> tuple[Any, ...]:
        output = ops.get(operation, path, **params).json()["output"]
        return output["content"], output["contentType"], output["startPosition"], output["endPosition"]

    line = "hello world\n"
    assert content("head", lines=2) == (line * 2, "lines", 0, 2)
    assert content("head", bytes=5) == ("hello", "bytes", 0, 5)
    assert content("head") == (line * 10, "lines", 0, 10)
    assert content("head", lines=98, skipTrailing="true") == (line * 2, "lines", 0, -98)
    assert content("tail", lines=2) == (line * 2, "lines", -2, -1)
    assert content("tail", bytes=6) == ("world\n", "bytes", -6, -1)
    assert content("tail", bytes=1195, skipHeading="true") == ("world\n", "bytes", 1195, -1)
    assert content("tail") == (line * 10, "lines", 10, -1)
    said(ops.get("head", path, lines=1, bytes=1), 400, "Only one of `bytes` or `lines` can be specified.")
    text = f"head: error reading '{ops.base}': Is a directory"
    said(ops.get("head", ops.base, lines=1), 500, f"{REMOTE}1 and error message:{text}")


def test_view(ops: Ops) -> None:
    path = f"{ops.base}/s.txt"
    assert ops.get("view", path).json() == {"output": "hello world\n" * 100}
    assert ops.get("view", path, offset=6, size=5).json() == {"output": "world"}
    said(ops.get("view", path, offset=-1), 400, "`offset` value must be an integer value equal or greater than 0")
    said(ops.get("view", path, size=99999999), 400, "`size` value must be less than 5242880 bytes")
    binary = ops.get("view", f"{ops.base}/bin").json()["output"]
    assert binary[:4] == "\x00\x01\x02\x03"
    assert binary[128:132] == "\ufffd" * 4


def test_view_cuts_characters_not_bytes(ops: Ops) -> None:
    ops.upload("utf", "éé123456".encode())
    assert ops.get("view", f"{ops.base}/utf", offset=4, size=4).json() == {"output": "1234"}
    assert ops.get("view", f"{ops.base}/utf", offset=2, size=4).json() == {"output": "1234"}  # not é12


@pytest.mark.needs("file")
def test_checksum_and_file(ops: Ops) -> None:
    path = f"{ops.base}/s.txt"
    digest = hashlib.sha256(b"hello world\n" * 100).hexdigest()
    assert ops.get("checksum", path).json() == {"output": {"algorithm": "SHA256", "checksum": digest}}
    ops.upload("sp ace é.txt", b"x")
    answer = ops.get("checksum", f"{ops.base}/sp ace é.txt")
    said(answer, 500, f"Invalid output: {hashlib.sha256(b'x').hexdigest()}  {ops.base}/sp ace é.txt\n ")
    assert ops.get("file", path).json() == {"output": "ASCII text"}
    missing = ops.get("file", f"{ops.base}/nope")
    assert (missing.status_code, missing.json()["output"][:11]) == (200, "cannot open")


def test_direct_download_is_exact_up_to_its_limit(ops: Ops) -> None:
    answer = ops.get("download", f"{ops.base}/bin")
    assert (answer.status_code, answer.content) == (200, bytes(range(256)) * 4)
    assert answer.headers["content-type"] == "application/octet-stream"
    ops.upload("largest", b"x" * 3932157)
    assert len(ops.get("download", f"{ops.base}/largest").content) == 3932157
    ops.upload("over", b"x" * 3932159)
    for operation in ("download", "view"):
        if operation == "view":
            ops.upload("over", b"x" * LIMIT)
        said(ops.get(operation, f"{ops.base}/over"), 413, "Command output exceeded buffer limit.")
    said(ops.get("head", f"{ops.base}/over", bytes=LIMIT), 413, "Command output exceeded buffer limit.")
    text = f"base64: {ops.base}/nope: No such file or directory"
    said(ops.get("download", f"{ops.base}/nope"), 404, f"{REMOTE}1 and error message:{text}")
    said(ops.get("download", ops.base), 500, f"{REMOTE}1 and error message:base64: read error: Is a directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="other users' files: real uids need root")
def test_direct_upload_and_its_limit(ops: Ops) -> None:
    assert ops.upload("max", b"y" * LIMIT).status_code == 204
    assert ops.get("stat", f"{ops.base}/max").json()["output"]["size"] == LIMIT
    said(ops.upload("more", b"y" * (LIMIT + 1)), 413, "File to upload is too large.")
    text = f"bash: line 1: {ops.base}/no/f: No such file or directory"
    said(ops.upload("f", b"x", f"{ops.base}/no"), 404, f"{REMOTE}1 and error message:{text}")
    said(
        ops.upload("f", b"x", "/home/bob"),
        403,
        f"{REMOTE}1 and error message:bash: line 1: /home/bob/f: Permission denied",
    )


def test_an_empty_upload_hangs_until_the_limit_and_leaves_an_empty_file(ops: Ops) -> None:
    start = time.monotonic()
    said(ops.upload("empty", b""), 408, "Command execution timeout limit exceeded.")
    assert 4.5 < time.monotonic() - start < 8
    assert ops.get("stat", f"{ops.base}/empty").json()["output"]["size"] == 0


def test_a_multipart_name_arrives_as_the_client_escaped_it(ops: Ops) -> None:
    assert ops.upload('a"b\nc', b"x").status_code == 204
    assert "a%22b%0Ac" in {entry["name"] for entry in ops.get("ls", ops.base).json()["output"]}


ATTACKS = [
    "it's",
    "'; touch PWNED; '",
    "$(touch PWNED)",
    "`touch PWNED`",
    '";touch PWNED;"',
    "a;touch PWNED",
    "x\ntouch PWNED",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_path_reaches_a_shell(ops: Ops, attack: str) -> None:
    path = f"{ops.base}/{attack}"
    answers = [ops.get(name, path) for name in ("ls", "head", "tail", "view", "stat", "checksum", "download", "file")]
    answers += [
        ops.post("mkdir", path=path),
        ops.put("chmod", path=path, mode="700"),
        ops.put("chmod", path=ops.base, mode=attack),
    ]
    answers += [ops.post("symlink", path=path, linkPath=f"{path}.l"), ops.upload(attack, b"x"), ops.rm(path)]
    answers += [ops.put("chown", path=ops.base, owner=attack), ops.post("extract", path=path, targetPath=ops.base)]
    answers += [ops.post("compress", path=f"{ops.base}/s.txt", targetPath=path, matchPattern=attack)]
    assert all(answer.status_code < 600 for answer in answers)
    if "'" in attack:
        quoted = f"{REMOTE}2 and error message:bash: -c: line 1: unexpected EOF while looking for matching `''"
        for answer in answers:
            said(answer, 500, quoted)
    found = ops.get("ls", "/home/alice", recursive="true", showHidden="true").json()["output"]
    assert not [entry for entry in found if entry["name"].split("/")[-1] == "PWNED"]


@pytest.mark.parametrize("name", ["--help", "-rf", "-", "--reference=s.txt"])
def test_leading_dashes_are_names(ops: Ops, name: str) -> None:
    assert ops.upload(name, b"dash").status_code == 204
    assert ops.get("download", f"{ops.base}/{name}").content == b"dash"
    assert ops.put("chmod", path=f"{ops.base}/s.txt", mode=name).status_code in {200, 500}
    assert ops.rm(f"{ops.base}/{name}").status_code == 204


def test_strange_bytes_are_refused_without_harm(ops: Ops) -> None:
    assert ops.get("ls", "/home/alice/\x00x").status_code == 400
    answer = ops.client.post(f"{ops.url}/mkdir", content=b'{"path": "/home/alice/\\ud800"}')
    assert answer.status_code == 400


def test_rm(ops: Ops) -> None:
    assert ops.rm(f"{ops.base}/bin").status_code == 204
    text = f"rm: cannot remove '{ops.base}/bin': No such file or directory"
    said(ops.rm(f"{ops.base}/bin"), 404, f"{REMOTE}1 and error message:{text}")


@pytest.mark.needs("xz", "bzip2")
def test_compress_and_extract(ops: Ops) -> None:
    for kind in ("gzip", "bzip2", "xz", "none"):
        archive = f"{ops.base}/s.{kind}"
        body = {"path": f"{ops.base}/s.txt", "targetPath": archive, "compression": kind}
        assert ops.post("compress", **body).status_code == 204
        ops.post("mkdir", path=f"{ops.base}/{kind}")
        assert ops.post("extract", path=archive, targetPath=f"{ops.base}/{kind}", compression=kind).status_code == 204
        assert ops.get("stat", f"{ops.base}/{kind}/s.txt").json()["output"]["size"] == 1200
    body = {"path": f"{ops.base}/", "targetPath": f"{ops.base}/p.tgz", "matchPattern": r".*\.txt"}
    assert ops.post("compress", **body).status_code == 204
    missing = ops.post("compress", path=f"{ops.base}/nope", targetPath=f"{ops.base}/n.tgz")
    text = "tar: nope: Cannot stat: No such file or directory\ntar: Exiting with failure status due to previous errors"
    said(missing, 404, f"{REMOTE}2 and error message:{text}")
    text = "gzip: stdin: not in gzip format\ntar: Child returned status 1\ntar: Error is not recoverable: exiting now"
    said(ops.post("extract", path=f"{ops.base}/bin", targetPath=ops.base), 500, f"{REMOTE}2 and error message:{text}")


def test_a_listing_past_five_mebibytes_is_413(ops: Ops, sandbox: SandboxProcess) -> None:
    folder = sandbox.host_path(f"{ops.base}/many")
    folder.mkdir()
    folder.chmod(0o755)
    for index in range(22_000):
        (folder / f"{index:06}{'n' * 190}").touch()
    said(ops.get("ls", f"{ops.base}/many"), 413, "Command output exceeded buffer limit.")


def test_a_thousand_entries_are_listed_quickly(ops: Ops, sandbox: SandboxProcess) -> None:
    folder = sandbox.host_path(f"{ops.base}/thousand")
    folder.mkdir()
    folder.chmod(0o755)
    for index in range(1000):
        (folder / f"f{index}").touch()
    start = time.monotonic()
    assert len(ops.get("ls", f"{ops.base}/thousand").json()["output"]) == 1000
    assert time.monotonic() - start < 1


def test_forty_parallel_uploads_of_five_mebibytes(ops: Ops) -> None:
    start = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(lambda index: ops.upload(f"part{index}", b"z" * LIMIT).status_code, range(40)))
    seconds = time.monotonic() - start
    assert statuses == [204] * 40
    sizes = {entry["size"] for entry in ops.get("ls", ops.base).json()["output"] if entry["name"].startswith("part")}
    assert sizes == {str(LIMIT)}
    assert seconds < 10, f"200 MiB in {seconds:.1f} s"


@pytest.mark.parametrize("path", ["/nosuch", "/filesystem/sandbox/ops/nosuch"])
def test_unknown_routes(ops: Ops, path: str) -> None:
    answer = ops.client.get(path)
    assert (answer.status_code, answer.json()["message"], answer.json()["user"]) == (404, "Not Found", None)


def test_wrong_method_and_trailing_slash(ops: Ops) -> None:
    answer = ops.client.patch("/status/systems")
    assert (answer.status_code, answer.json()["message"], answer.headers["allow"]) == (405, "Method Not Allowed", "GET")
    answer = ops.client.get(f"{ops.url}/ls/", params={"path": ops.base})
    assert answer.status_code == 307
    assert answer.headers["location"].endswith(f"/ops/ls?path={ops.base.replace('/', '%2F')}")


def test_unknown_system_and_capital_letters(ops: Ops) -> None:
    said(ops.client.get("/filesystem/nosuch/ops/ls", params={"path": "/home"}), 404, "System not found")
    assert ops.client.get("/filesystem/SANDBOX/ops/ls", params={"path": "/home"}).status_code == 200


def test_request_ids_come_back(ops: Ops) -> None:
    given = "6f1c0e9e7b7c4b5e8f0b3a5d5c1d2e3f"
    answer = ops.client.get(f"{ops.url}/ls", params={"path": "/home"}, headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == given
    assert len(ops.client.get("/nosuch").headers["x-request-id"]) == 32
