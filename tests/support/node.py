"""A node without a server: the jobs of a sync run by bash, as a scheduler would start them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from hpcbridge.staging.names import parse_remote
from hpcbridge.staging.trees.answers import Answer, Verdict, parse_answer
from hpcbridge.staging.trees.applying import Apply
from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.arriving import Arrival
from hpcbridge.staging.trees.comparing import Compare
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.extract import extract
from hpcbridge.staging.trees.jobscript import Payload, SyncJob
from hpcbridge.staging.trees.listing import identity, joined, rows
from hpcbridge.staging.trees.patterns import Filter, with_own
from hpcbridge.staging.trees.scan import scan
from support import trees


class Node:
    """A node with a tree and its state directory; `local` is the other side."""

    def __init__(self, root: Path) -> None:
        self.local, self.tree, self.state = root / "local", root / "there" / "tree", root / "there" / "state"
        self.local.mkdir()
        self.state.mkdir(parents=True)
        self.jobs = self.payloads = 0

    def plan(self, filter: Filter | None = None, **options: object) -> Apply:
        """A job for what is in `local` now, and that knows what was left in the tree."""
        self.jobs += 1
        here = scan(self.local, with_own(filter))
        return Apply(
            str(self.state),
            f"{self.jobs:08d}",
            1,
            parse_remote(str(self.tree)),
            identity(rows(here.manifest)),
            with_own(filter),
            **{"base": self.base(), **options},  # type: ignore[arg-type]
        )

    def base(self) -> str:
        """The identity of the manifest that is kept there."""
        kept = self.state / "manifest"
        return hashlib.sha256(kept.read_bytes()).hexdigest() if kept.exists() else "-"

    def payload(
        self,
        filter: Filter | None = None,
        paths: Collection[bytes] | None = None,
        members: list[Member] | None = None,
    ) -> Payload:
        """The whole manifest, and the content of these paths (None: of all); or `members`."""
        return self._packed(members if members is not None else self._members(filter, paths))

    def _members(self, filter: Filter | None, paths: Collection[bytes] | None) -> list[Member]:
        here = scan(self.local, with_own(filter))
        whole = joined(rows(here.manifest))
        members = [Member(Entry(b"full", Kind.FILE, 0o600, len(whole)), data=whole)]
        for member in here.members:
            if paths is None or member.entry.path in paths:
                members.append(replace(member, entry=replace(member.entry, path=b"tree/" + member.entry.path)))
        return members

    def _packed(self, members: list[Member]) -> Payload:
        archive = Archive(members)
        data = archive.read(0, archive.size)
        self.payloads += 1
        session = f"{self.payloads:07d}f"
        (self.state / f"{session}.000000").write_bytes(data)
        return Payload(str(self.state), session, 1, len(data), hashlib.sha256(data).hexdigest())

    def run(self, job: SyncJob, *, before: str = "") -> Answer:
        """Run a job to its end; `before` is put in front of its script."""
        self.script(job.script(), before=before)
        return self.answer(job)

    def answer(self, job: SyncJob) -> Answer:
        """What it has answered."""
        return parse_answer((self.state / job.answer_name).read_text())

    def script(self, text: str, *, before: str = "", check: bool = True) -> str:
        """Run a script from somewhere else; it must not complain unless `check` is False. Returns what it prints."""
        done = subprocess.run(
            ["bash", "-c", before + text],
            capture_output=True,
            cwd="/",
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            check=False,
        )
        assert not check or not done.stderr, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace")

    def up(self, filter: Filter | None = None, **options: object) -> Answer:
        """Ask first, then send what is missing."""
        job = self.plan(filter, payload=self.payload(filter, ()), **options)
        answer = self.run(job)
        if answer.verdict is Verdict.WANT:
            answer = self.run(replace(job, attempt=2, payload=self.payload(filter, answer.paths)))
        return answer

    def down(self, filter: Filter | None = None, *, delete: bool = False, before: str = "") -> Arrival:
        """The other way; what the client does with the answer included."""
        kept = with_own(filter)
        here = scan(self.local, kept)
        payload = self.payload(filter, ())
        job = Compare(
            str(self.state),
            f"{self.jobs + 1:08d}",
            1,
            parse_remote(str(self.tree)),
            identity(rows(here.manifest)),
            kept,
            payload,
        )
        self.jobs += 1
        archive = self.run(job, before=before).archive
        assert archive is not None
        assert archive.data is not None
        assert hashlib.sha256(archive.data).hexdigest() == archive.sha256
        staged = self.local.with_name("staged")
        staged.mkdir()
        try:
            extract(BytesIO(archive.data), staged)
            arrival = Arrival(staged, self.local, here.manifest, kept, archive.unsteady, delete, dry=False)
            arrival.plan()
            arrival.publish()
        finally:
            shutil.rmtree(staged)
        return arrival


@contextmanager
def node(where: Path | None = None) -> Iterator[Node]:
    """A new one, for the length of the block; `where` is on the file system that it has."""
    root = Path(tempfile.mkdtemp(prefix="hpcbridge-test-", dir=where))
    try:
        yield Node(root)
    finally:
        shutil.rmtree(root)


def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What a sync keeps: everything but times of directories and links."""
    found = trees.snapshot(root, directory_times=False)
    return {
        path: what[:1] + what[2:] if what[0] == "link" else what
        for path, what in found.items()
        if not path.split(b"/")[0].startswith(b".hpcbridge")
    }


def refill(root: Path, tree: trees.Directory) -> None:
    """Make a directory hold this tree, and nothing else."""
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    trees.make(root, tree)
