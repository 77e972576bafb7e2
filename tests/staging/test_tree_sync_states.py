"""Random edits on both sides, and syncs both ways in between: whatever happened before, each ends as it promises."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import hpcbridge
from hpcbridge.errors import AlreadyExists
from support.node import seen
from support.pair import Pair, wiped
from support.sandbox import SandboxProcess
from support.scale import PROVE
from support.staging import connected

NAMES = ["a", "b", "c", "-x", "new\nline", "\udcff", "n" * 255, "it's"]
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: Path(*parts))
sides = st.sampled_from(["here", "there"])
contents = st.sampled_from([b"", b"one", b"two", b"1" * 5000])


class Edits(RuleBasedStateMachine):
    """Both trees are real, and so are the jobs."""

    sandbox: SandboxProcess
    loop: asyncio.Runner
    system: hpcbridge.System

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hpcbridge-test-"))
        self.pair = Pair(wiped(self.sandbox), self.folder / "tree")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.pair.local.mkdir()
        self.loop.run(self.pair.up(self.system))

    def _at(self, side: str, path: Path) -> Path:
        """Where to put something: other kinds on the way there go."""
        root = self.pair.local if side == "here" else self.pair.there
        for above in reversed(path.parents[:-1]):
            if (root / above).is_symlink() or (root / above).is_file():
                (root / above).unlink()
            (root / above).mkdir(exist_ok=True)
        return root / path

    def _clear(self, place: Path) -> None:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    @rule(side=sides, path=paths, content=contents)
    def write(self, side: str, path: Path, content: bytes) -> None:
        place = self._at(side, path)
        if place.is_symlink() or place.is_dir():
            self._clear(place)
        place.write_bytes(content)

    @rule(side=sides, path=paths, to=names)
    def link(self, side: str, path: Path, to: str) -> None:
        place = self._at(side, path)
        self._clear(place)
        place.symlink_to(to)

    @rule(side=sides, path=paths)
    def make_directory(self, side: str, path: Path) -> None:
        place = self._at(side, path)
        if not place.is_dir() or place.is_symlink():
            self._clear(place)
            place.mkdir()

    @rule(side=sides, path=paths)
    def remove(self, side: str, path: Path) -> None:
        self._clear(self._at(side, path))

    @rule(side=sides, path=paths, to=paths)
    def rename(self, side: str, path: Path, to: Path) -> None:
        if path in (to, *to.parents) or to in path.parents:
            return
        source, target = self._at(side, path), self._at(side, to)
        if os.path.lexists(source):
            self._clear(target)
            source.rename(target)

    @rule(side=sides, path=paths, mode=st.sampled_from([0o644, 0o600, 0o755, 0o400]), when=st.integers(0, 10**9))
    def touch(self, side: str, path: Path, mode: int, when: int) -> None:
        place = self._at(side, path)
        if place.is_file() and not place.is_symlink():
            place.chmod(mode)
            os.utime(place, (when, when))
        elif place.is_dir() and not place.is_symlink():
            place.chmod(mode | 0o700)

    @rule(delete=st.booleans(), forget=st.sampled_from([None, None, "record", "state"]))
    def sync_up(self, delete: bool, forget: str | None) -> None:
        self._forget(forget)
        self._promise(self.pair.local, self.pair.there, delete, self.pair.up)

    @rule(delete=st.booleans(), forget=st.sampled_from([None, None, "record", "state"]))
    def sync_down(self, delete: bool, forget: str | None) -> None:
        self._forget(forget)
        self._promise(self.pair.there, self.pair.local, delete, self.pair.down)

    def _forget(self, what: str | None) -> None:
        if what == "record":
            shutil.rmtree(Path(os.environ["XDG_STATE_HOME"]) / "hpcbridge" / "trees", ignore_errors=True)
        elif what == "state":
            shutil.rmtree(self.pair.state, ignore_errors=True)

    def _promise(self, origin: Path, target: Path, delete: bool, sync: object) -> None:
        self.pair.give(self.pair.there)
        wanted, before = seen(origin), seen(target)
        try:
            self.loop.run(sync(self.system, delete=delete))  # type: ignore[operator]
        except AlreadyExists:
            assert not delete
            assert seen(target) == before
            return
        after = seen(target)
        assert seen(origin) == wanted
        if delete:
            assert after == wanted
            return
        assert {path: after.get(path) for path in wanted} == wanted
        for path in before.keys() - wanted.keys():
            in_the_way = any(path.startswith(each + b"/") and wanted[each][0] != "directory" for each in wanted)
            assert in_the_way or after[path] == before[path], path


def test_random_edits_and_syncs(local_queue: SandboxProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcbridge.staging import keyed_jobs

    monkeypatch.setattr(keyed_jobs, "ANSWER_LAG", 1.0)
    with asyncio.Runner() as runner:
        opened = connected(local_queue)
        Edits.sandbox, Edits.loop, Edits.system = local_queue, runner, runner.run(opened.__aenter__())
        try:
            run_state_machine_as_test(
                Edits,
                settings=settings(
                    max_examples=40 if PROVE else 4,
                    stateful_step_count=40 if PROVE else 25,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
            local_queue.reset()
