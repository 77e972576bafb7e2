"""The jobs of a sync as a node runs them: bash alone, no server. Trees of every kind, killed and requeued jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hpcbridge.staging.names import parse_remote
from hpcbridge.staging.trees.answers import Answer, Verdict, parse_answer
from hpcbridge.staging.trees.applying import Apply
from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.jobscript import Payload
from hpcbridge.staging.trees.listing import LISTING, entry_of, identity, joined, records, rows
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.scan import scan
from hpcbridge.staging.trees.sync_up import with_own
from support import trees
from support.scale import PROVE

quick = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=400 if PROVE else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Node:
    """A node with a tree and its state directory; `local` is the other side."""

    def __init__(self, root: Path) -> None:
        self.local, self.tree, self.state = root / "local", root / "there" / "tree", root / "there" / "state"
        self.local.mkdir()
        self.state.mkdir(parents=True)
        self.jobs = 0

    def plan(self, filter: Filter | None = None, **options: object) -> Apply:
        """A job for what is in `local` now."""
        self.jobs += 1
        here = scan(self.local, with_own(filter))
        return Apply(
            str(self.state),
            f"{self.jobs:08x}",
            1,
            parse_remote(str(self.tree)),
            identity(rows(here.manifest)),
            with_own(filter),
            **options,  # type: ignore[arg-type]
        )

    def payload(self, filter: Filter | None = None, paths: Collection[bytes] | None = None) -> Payload:
        """The whole manifest, and the content of these paths (None: of all)."""
        here = scan(self.local, with_own(filter))
        whole = joined(rows(here.manifest))
        members = [Member(Entry(b"full", Kind.FILE, 0o600, len(whole)), data=whole)]
        for member in here.members:
            if paths is None or member.entry.path in paths:
                members.append(replace(member, entry=replace(member.entry, path=b"tree/" + member.entry.path)))
        archive = Archive(members)
        data = archive.read(0, archive.size)
        session = f"{self.jobs:07x}f"
        (self.state / f"{session}.000000").write_bytes(data)
        import hashlib

        return Payload(str(self.state), session, 1, len(data), hashlib.sha256(data).hexdigest())

    def run(self, plan: Apply, *, before: str = "") -> Answer:
        self.script(plan.script(), before=before)
        return parse_answer((self.state / plan.answer_name).read_text())

    def script(self, text: str, *, before: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["bash", "-c", before + text],
            capture_output=True,
            cwd="/",
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            check=False,
        )
        assert not check or not done.stderr, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace")

    def sync(self, filter: Filter | None = None, **options: object) -> Answer:
        """Ask first, then send what is missing."""
        answer = self.run(self.plan(filter, payload=self.payload(filter, ()), **options))
        if answer.verdict is Verdict.WANT:
            answer = self.run(self.plan(filter, payload=self.payload(filter, answer.paths), **options))
        return answer


@contextmanager
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="hpcbridge-test-"))
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


def empty(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@quick
@given(trees.trees)
def test_a_listing_is_what_python_sees(tree: trees.Directory) -> None:
    with node() as one:
        trees.make(one.local, tree)
        here = rows(scan(one.local).manifest)
        work = one.state
        (work / "want").write_bytes(joined(here))
        script = f"set -u -o pipefail; export LC_ALL=C; cd {work}\n{LISTING}\n"
        step = "list ../../local; recognize cache; read_wanted want ../../local; manifest >actual; cat errors\n"
        assert one.script(script + step + "remember cache known hashed") == ""
        assert list(records((work / "actual").read_bytes())) == here
        assert sorted(map(entry_of, here), key=lambda e: e.path) == sorted(
            (replace(e, mtime=e.mtime if e.kind is Kind.FILE else 0) for e in scan(one.local).manifest),
            key=lambda e: e.path,
        )
        one.script(script + step)
        assert list(records((work / "actual").read_bytes())) == here
        assert (work / "reading").read_bytes() == b""


@quick
@given(trees.trees, trees.trees, trees.trees, st.booleans())
def test_whatever_is_there_becomes_what_is_here(
    there: trees.Directory, first: trees.Directory, second: trees.Directory, delete: bool
) -> None:
    with node() as one:
        one.tree.mkdir()
        trees.make(one.tree, there)
        for tree in (first, second):
            empty(one.local)
            trees.make(one.local, tree)
            before, here = seen(one.tree), seen(one.local)
            answer = one.sync(delete=delete)
            after = seen(one.tree)
            if answer.verdict is Verdict.CONFLICT:
                assert not delete
                assert after == before
                return
            assert answer.verdict is Verdict.APPLIED, answer
            if delete:
                assert after == here
                continue
            assert {path: after.get(path) for path in here} == here
            gone = {path for path in before if path not in after}
            # Only what was in the way: below something that is no directory here, where everything was ours.
            assert all(any(path.startswith(each + b"/") for each in here) for path in gone)
            assert {p: w for p, w in after.items() if p not in here} == {
                p: w for p, w in before.items() if p not in here and p not in gone
            }
        assert {p.name for p in one.state.iterdir() if not p.name[:7].isdigit()} == {"manifest", "cache", "beat"}
