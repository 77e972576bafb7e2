"""`get_tree` against a real sandbox: what it refuses, what is named, what is left, and hostile archives."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    AlreadyExists,
    Conflict,
    IntegrityError,
    InvalidPath,
    InvalidRequest,
    JobFailed,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging import Progress, keyed_jobs
from hpcbridge.staging.trees import download
from hpcbridge.staging.trees.download import get_tree
from hpcbridge.staging.trees.entries import Kind
from hpcbridge.staging.trees.patterns import Filter
from support.sandbox import SandboxProcess
from support.staging import clear_leftovers, connected, leftovers
from support.trees import Directory, File, Link, make, snapshot

TREE = Directory(
    {
        b"a": Directory({b"x": File((b"1",), 0o600), b"closed": Directory({b"y": File((b"2",), 0o400)}, 0o555)}, 0o750),
        b"empty": Directory({}, 0o700),
        b"new\nline 'quoted'": File((b"3",)),
        b"-rf": File((b"dash",)),
        b"back\\n": File((b"backslash",)),
        b"link": Link(b"/etc/passwd"),
        b"hole": File((None, b"x", None)),
    }
)
HOME = "/home/alice/gets"


@pytest.fixture
async def system(sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setattr(keyed_jobs, "ANSWER_LAG", 2.0)
    async with connected(sandbox) as system:
        yield system
    clear_leftovers(sandbox)


def place(sandbox: SandboxProcess, name: str, tree: Directory = TREE) -> Path:
    """A tree of alice's on the cluster, as this machine sees it."""
    there = sandbox.host_path(f"{HOME}/{name}")
    if not there.parent.exists():
        there.parent.mkdir()
        shutil.copystat(there.parents[1], there.parent)
        home = there.parents[1].stat()
        os.chown(there.parent, home.st_uid, home.st_gid)
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir(mode=0o750)
    make(there, tree)
    own(sandbox, there)
    return there


def own(sandbox: SandboxProcess, there: Path) -> None:
    home = sandbox.host_path(HOME).stat()
    subprocess.run(["chown", "-hR", f"{home.st_uid}:{home.st_gid}", there], check=True)


def calls(sandbox: SandboxProcess) -> dict[str, int]:
    """Requests besides the token and /status/systems; downloads are pieces, and looks at the answer."""
    counts = sandbox.get("/requests")["counts"]
    return {name: count for name, count in counts.items() if not name.startswith(("GET /compute", "GET /status"))}


def strays(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


async def test_what_a_kill_while_unpacking_left_is_replaced(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "unpacked")
    half = tmp_path / ".out.hpcbridge-tree" / "a"
    half.mkdir(parents=True)
    (half / "x").write_bytes(b"hal")
    half.chmod(0o500)
    await get_tree(system, f"{HOME}/unpacked", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(there)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_a_small_tree_comes_back_whole(any_sandbox: SandboxProcess, tmp_path: Path, own_state: Path) -> None:
    there = place(any_sandbox, "small")
    seen: list[Progress] = []
    async with connected(any_sandbox) as system:
        any_sandbox.delete("/requests")
        got = await get_tree(system, f"{HOME}/small", tmp_path / "not" / "there" / "out", progress=seen.append)
    counts = calls(any_sandbox)
    counts.pop("GET /filesystem/{}/ops/download")
    assert counts == {
        "GET /filesystem/{}/ops/stat": 1,
        "POST /filesystem/{}/ops/mkdir": 1,
        "POST /compute/{}/jobs": 1,
        "DELETE /filesystem/{}/ops/rm": 1,
    }
    out = tmp_path / "not" / "there" / "out"
    assert snapshot(out) == snapshot(there)
    assert out.stat().st_mode & 0o777 == 0o750
    assert (out / "hole").stat().st_blocks * 512 < 100_000
    assert (got.files, got.directories, got.links, got.skipped) == (6, 3, 1, [])
    assert got.sha256
    assert leftovers(any_sandbox) == []
    assert strays(out.parent) == []
    assert list((own_state / "hpcbridge" / "transfers").glob("*")) == []
    phases = [p.phase for p in seen]
    assert [each for i, each in enumerate(phases) if each not in phases[:i]][:2] == ["checking", "queued"]
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("done", got.bytes, got.bytes)
    shutil.rmtree(there)


async def test_the_same_again_is_merged_with_what_is_here(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "twice")
    out = tmp_path / "out"
    await get_tree(system, f"{HOME}/twice", out)
    (out / "a" / "mine").write_text("kept")
    (out / "a" / "x").write_text("replaced")
    (there / "a" / "new").write_text("new")
    own(sandbox, there)
    await get_tree(system, f"{HOME}/twice/", out)
    found, wanted = snapshot(out), snapshot(there)
    assert {path: found[path] for path in wanted} == wanted
    assert found.keys() - wanted.keys() == {b"a/mine"}
    assert strays(tmp_path) == []


async def test_refused_before_any_work(system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path) -> None:
    place(sandbox, "refused")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to("nowhere")
    sandbox.delete("/requests")
    for error, remote, local, options in [
        (PathNotFound, f"{HOME}/missing", "out", {}),
        (InvalidPath, f"{HOME}/refused/a/x", "out", {}),
        (InvalidPath, "refused", "out", {}),
        (InvalidPath, f"{HOME}/it's", "out", {}),
        (InvalidPath, "/etc", "out", {}),
        (AlreadyExists, f"{HOME}/refused", "file", {}),
        (AlreadyExists, f"{HOME}/refused", "link", {}),
        (InvalidRequest, f"{HOME}/refused", "out", {"route": "pigeon"}),
        (TransferError, f"{HOME}/refused", "out", {"route": "streamer"}),
    ]:
        with pytest.raises(error):
            await get_tree(system, remote, tmp_path / local, **options)
    assert not any(name.startswith(("POST", "DELETE")) for name in calls(sandbox))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


async def test_too_large_is_said_before_it_is_packed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    place(sandbox, "large")
    with pytest.raises(TooLarge, match="more than 5"):
        await get_tree(system, f"{HOME}/large", tmp_path / "out", max_size=5)
    assert leftovers(sandbox) == []
    assert list(tmp_path.iterdir()) == []
    got = await get_tree(system, f"{HOME}/large", tmp_path / "out", max_size=200_000)
    assert got.files == 6


async def test_what_cannot_be_read_is_an_error_that_names_it(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "secret")
    (there / "root's").write_text("x")
    (there / "root's").chmod(0o600)
    with pytest.raises(PermissionDenied, match="root's"):
        await get_tree(system, f"{HOME}/secret", tmp_path / "out")
    assert leftovers(sandbox) == []
    assert list(tmp_path.iterdir()) == []
    got = await get_tree(system, f"{HOME}/secret", tmp_path / "out", filter=Filter(exclude=("root's",)))
    assert got.files == 6


async def test_patterns_sizes_and_what_cannot_be_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "part")
    os.mkfifo(there / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(there)
        one.bind("sock\n")
    os.chdir(tmp_path)
    (there / "large").write_bytes(bytes(200_000))
    own(sandbox, there)
    got = await get_tree(
        system, f"{HOME}/part", tmp_path / "out", filter=Filter(exclude=("/a/closed",), max_file_size=150_000)
    )
    missing = {b"pipe", b"sock\n", b"large", b"a/closed", b"a/closed/y"}
    assert snapshot(tmp_path / "out").keys() == snapshot(there).keys() - missing
    assert sorted(got.skipped) == [
        (b"large", "larger than the limit"),
        (b"pipe", "a named pipe"),
        (b"sock\n", "a socket"),
    ]


async def test_a_dry_run_lists_and_receives_nothing(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "dry")
    said = await get_tree(system, f"{HOME}/dry", tmp_path / "out", dry_run=True, filter=Filter(include=("x", "hole")))
    assert (said.route, said.files, said.directories) == (None, 2, 1)
    assert {(c.path, c.kind, c.size) for c in said.changes} == {
        (b"a", Kind.DIRECTORY, 0),
        (b"a/x", Kind.FILE, 1),
        (b"hole", Kind.FILE, (there / "hole").stat().st_size),
    }
    assert list(tmp_path.iterdir()) == []
    assert leftovers(sandbox) == []


async def test_into_a_directory_whose_parent_is_closed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And through a link to it."""
    there = place(sandbox, "inside")
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != inner.parent)  # root may write everywhere
    (tmp_path / "link").symlink_to(inner)
    await get_tree(system, f"{HOME}/inside", tmp_path / "link")
    assert snapshot(inner) == snapshot(there)
    assert (tmp_path / "link").is_symlink()


async def test_a_source_that_is_not_ours_is_packed_in_the_users_own_directory(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "theirs")
    outer = sandbox.host_path(f"{HOME}/outer")
    outer.mkdir(mode=0o755)
    shutil.move(there, outer / "inner")
    shutil.rmtree(outer / "inner" / "a" / "closed")
    subprocess.run(["chown", "-hR", "root:root", outer], check=True)
    subprocess.run(["chmod", "-R", "a+rX,a-w", outer], check=True)
    await get_tree(system, f"{HOME}/outer/inner", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(outer / "inner")
    assert leftovers(sandbox) == []
    shutil.rmtree(outer)


@pytest.mark.needs("curl")
async def test_through_the_object_store(system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path) -> None:
    there = place(sandbox, "store", Directory({**TREE.children, b"data": File((os.urandom(9_000_000),))}))
    got = await get_tree(system, f"{HOME}/store", tmp_path / "out", route="s3")
    assert got.route == "s3"
    assert snapshot(tmp_path / "out") == snapshot(there)
    assert leftovers(sandbox) == []
    assert strays(tmp_path) == []


async def test_files_that_change_meanwhile_are_named(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    there = place(sandbox, "moving", Directory({b"log": File((os.urandom(40_000_000),))}))
    with (there / "log").open("ab") as log:

        def write(progress: Progress) -> None:
            log.write(b"more" * 1000)
            log.flush()

        import threading

        stop = threading.Event()

        def go_on() -> None:
            while not stop.wait(0.001):
                write(None)  # type: ignore[arg-type]

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            got = await get_tree(system, f"{HOME}/moving", tmp_path / "out")
        finally:
            stop.set()
            writer.join()
    assert [skipped.path for skipped in got.skipped] == [b"log"]
    assert "changed" in got.skipped[0].why
    whole = (there / "log").read_bytes()
    assert whole.startswith((tmp_path / "out" / "log").read_bytes())


def hostile() -> dict[str, Callable[[tarfile.TarFile, Path], None]]:
    """Name -> what a cluster might put into an archive to get out of the directory it is meant for."""

    def add(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, data = kind, target, b"bad" if kind == tarfile.REGTYPE else b""
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))

    def through_link(archive: tarfile.TarFile, outside: Path) -> None:
        add(archive, "way", tarfile.SYMTYPE, str(outside))
        add(archive, "way/bad")

    return {
        "absolute": lambda archive, outside: add(archive, f"{outside}/bad"),
        "climbing": lambda archive, _: add(archive, "../outside/bad"),
        "climbing within": lambda archive, _: add(archive, "a/../../outside/bad"),
        "link": through_link,
        "hard link": lambda archive, outside: add(archive, "bad", tarfile.LNKTYPE, f"{outside}/victim"),
        "device": lambda archive, _: add(archive, "bad", tarfile.CHRTYPE),
    }


@pytest.mark.parametrize("kind", hostile())
async def test_a_hostile_archive_never_writes_outside(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, kind: str
) -> None:
    place(sandbox, "hostile")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        hostile()[kind](archive, outside)
    before = snapshot(tmp_path)

    def replace(stage: Path) -> None:
        (piece,) = stage.glob("*.000000")
        piece.write_bytes(buffer.getvalue())
        (answer,) = stage.glob("*.answer")
        words = answer.read_text().split()
        words[1:5] = [str(len(buffer.getvalue())), hashlib.sha256(buffer.getvalue()).hexdigest(), "1", "-"]
        answer.write_text(" ".join(words) + "\n")

    await get_with(system, sandbox, "hostile", out, replace, IntegrityError)
    assert snapshot(tmp_path) == before
    assert leftovers(sandbox) == []


async def get_with(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    name: str,
    out: Path,
    change: Callable[[Path], None],
    error: type[Exception],
) -> None:
    """A download whose remote stage is changed once its job has answered; the client's first looks are held up."""
    import asyncio

    async def meddle() -> None:
        while not (found := list(sandbox.host_path(HOME).glob(".hpcbridge-get-*/*.answer"))):
            await asyncio.sleep(0.01)
        change(found[0].parent)

    sandbox.post("/faults", [{"method": "GET", "path": "*/ops/download", "kind": "status", "status": 503, "count": 1}])
    sandbox.post("/faults", [{"method": "GET", "path": "*/ops/download", "kind": "latency", "seconds": 0.5}])
    meddling = asyncio.ensure_future(meddle())
    with pytest.raises(error):
        await get_tree(system, f"{HOME}/{name}", out)
    await meddling
    sandbox.delete("/faults")


async def test_a_damaged_archive_is_never_published(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    place(sandbox, "damaged")

    def spoil(stage: Path) -> None:
        (piece,) = stage.glob("*.000000")
        piece.write_bytes(bytes(piece.stat().st_size))

    await get_with(system, sandbox, "damaged", tmp_path / "out", spoil, IntegrityError)
    assert list(tmp_path.iterdir()) == []
    assert leftovers(sandbox) == []


async def test_a_job_that_somebody_cancels_is_an_error_and_the_next_call_goes_on(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    # Large, so that its job still runs when it is cancelled.
    there = place(sandbox, "cancelled", Directory({b"data": File((os.urandom(60_000_000),))}))
    cancelled: list[str] = []
    with sandbox.client() as client:

        def cancel(progress: Progress) -> None:
            if progress.detail.startswith("job ") and not cancelled:
                cancelled.append(progress.detail.split()[1])
                client.delete(f"/compute/{sandbox.system}/jobs/{cancelled[0]}").raise_for_status()

        with pytest.raises(JobFailed):
            await get_tree(system, f"{HOME}/cancelled", tmp_path / "out", progress=cancel)
    await get_tree(system, f"{HOME}/cancelled", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(there)
    assert leftovers(sandbox) == []
    assert strays(tmp_path) == []


class Enough(Exception):
    pass


def stop_at(phase: str, detail: str = "") -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.phase == phase and detail in progress.detail:
            raise Enough

    return stop


async def test_an_archive_is_not_packed_twice_unless_it_is_old_or_another_is_wanted(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(sandbox, "resumed")

    async def jobs(local: str, **options: object) -> int:
        with pytest.raises(Enough):
            await get_tree(system, f"{HOME}/resumed", tmp_path / local, progress=stop_at("verifying", "unpacking"))
        sandbox.delete("/requests")
        await get_tree(system, f"{HOME}/resumed", tmp_path / local, **options)  # type: ignore[arg-type]
        assert leftovers(sandbox) == []
        assert strays(tmp_path) == []
        return calls(sandbox).get("POST /compute/{}/jobs", 0)

    assert await jobs("again") == 0
    assert snapshot(tmp_path / "again") == snapshot(there)
    assert await jobs("other", filter=Filter(exclude=("a",))) == 1
    assert snapshot(tmp_path / "other").keys() == {path for path in snapshot(there) if not path.startswith(b"a")}
    assert await jobs("no", resume=False) == 1
    monkeypatch.setattr(download, "FRESH", 0.0)
    assert await jobs("old") == 1


async def test_two_downloads_into_one_directory_are_a_conflict(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    import asyncio

    place(sandbox, "conflict")
    outcomes = await asyncio.gather(
        *(get_tree(system, f"{HOME}/conflict", tmp_path / "out") for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["Conflict", "TreeResult"]
    assert isinstance(next(each for each in outcomes if isinstance(each, Exception)), Conflict)
