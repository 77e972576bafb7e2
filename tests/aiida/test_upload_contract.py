"""aiida-core's own upload and retrieval, step by step, over its transport and over ours.

What `upload_calculation` promises to plugins (local, remote and sandbox copies, their order, what wins) and what
`retrieve_files_from_list` does with nesting: the same body, the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import make_computer
from support.aiida_profile import AiidaProfile
from support.aiida_sides import Side, fill, tree

FOLDER = ("top", "dir/a", "dir/deep/b")
"""A FolderData; every file contains its own name."""
PARENT = ("old", "rdir/c", "rdir/deep/d")
"""What an earlier calculation left there."""


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A coroutine function of the engine, in the loop in which AiiDA's synchronous calls run."""
    from plumpy import get_or_create_event_loop, run_until_complete

    return run_until_complete(get_or_create_event_loop(), function(*args, **kwargs))


@dataclass(frozen=True)
class Case:
    """What a plugin asks for, and the tree that comes of it."""

    expected: Mapping[str, str] | type[Exception]
    sandbox: tuple[str, ...] = ()
    local: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    order: tuple[str, ...] = ()


WHOLE = {"top": "top", "dir": "/", "dir/a": "dir/a", "dir/deep": "/", "dir/deep/b": "dir/deep/b"}
RDIR = {"rdir": "/", "rdir/c": "rdir/c", "rdir/deep": "/", "rdir/deep/d": "rdir/deep/d"}
CASES = {
    "nothing": Case({}),
    "sandbox": Case({"x": "x", "s": "/", "s/y": "s/y"}, sandbox=("x", "s/y")),
    "empty directories": Case({"e": "/"}, sandbox=("e/",)),
    "whole folder": Case(WHOLE, local=(("", ""),)),
    "whole folder as dot": Case(WHOLE, local=((".", "."),)),
    "whole folder below": Case({"new": "/", **{f"new/{k}": v for k, v in WHOLE.items()}}, local=(("", "new"),)),
    "one file": Case({"top": "top"}, local=(("top", "top"),)),
    "one file renamed": Case({"other": "top"}, local=(("top", "other"),)),
    "one file into depths": Case({"p": "/", "p/q": "/", "p/q/r": "dir/a"}, local=(("dir/a", "p/q/r"),)),
    "part of a folder": Case({"a": "dir/a", "deep": "/", "deep/b": "dir/deep/b"}, local=(("dir", "."),)),
    "part of a folder renamed": Case(
        {"new": "/", "new/a": "dir/a", "new/deep": "/", "new/deep/b": "dir/deep/b"}, local=(("dir", "new"),)
    ),
    "a folder into one that is there": Case(
        {"dir": "/", "dir/x": "dir/x", "dir/a": "dir/a", "dir/deep": "/", "dir/deep/b": "dir/deep/b"},
        sandbox=("dir/x",),
        local=(("dir", "dir"),),
    ),
    "two folders merge": Case(
        {"n": "/", "n/a": "dir/a", "n/deep": "/", "n/deep/b": "dir/deep/b", "n/b": "dir/deep/b"},
        local=(("dir", "n"), ("dir/deep", "n")),
    ),
    "the later one wins": Case({"x": "dir/a"}, local=(("top", "x"), ("dir/a", "x"))),
    "local wins over sandbox": Case({"x": "top"}, sandbox=("x",), local=(("top", "x"),)),
    "sandbox may come last": Case({"x": "x"}, sandbox=("x",), local=(("top", "x"),), order=("LOCAL", "SANDBOX")),
    "a file onto a directory": Case(IsADirectoryError, sandbox=("s/y",), local=(("top", "s"),)),
    "remote file": Case({"new": "old"}, copies=(("old", "new"),)),
    "remote directory": Case(RDIR, copies=(("rdir", "rdir"),)),
    "remote directory into one that is there": Case(
        {"s": "/", "s/y": "s/y", **{f"s/{k}": v for k, v in RDIR.items()}}, sandbox=("s/y",), copies=(("rdir", "s"),)
    ),
    "remote matches": Case({"s": "/", "s/y": "s/y", "s/c": "rdir/c"}, sandbox=("s/y",), copies=(("rdir/c*", "s"),)),
    "remote file that is missing": Case({"x": "x"}, sandbox=("x",), copies=(("missing", "new"),)),
    "remote wins over local": Case({"x": "old"}, local=(("top", "x"),), copies=(("old", "x"),)),
    "local wins over remote in another order": Case(
        {"x": "top"}, local=(("top", "x"),), copies=(("old", "x"),), order=("REMOTE", "LOCAL", "SANDBOX")
    ),
    "links": Case({"n": "/", "n/old": "-> old", "l": "-> rdir"}, links=(("old", "n/old"), ("rdir", "l"))),
    "links to matches": Case(
        {"s": "/", "s/y": "s/y", "s/c": "-> rdir/c", "s/deep": "-> rdir/deep"},
        sandbox=("s/y",),
        links=(("rdir/*", "s"),),
    ),
}


@dataclass
class Bench:
    """A calculation of a plugin, on one side."""

    side: Side
    node: Any
    computer: Any
    folder: Any
    parent: str

    def upload(self, case: Case) -> None:
        """`upload_calculation`, as the engine calls it."""
        from aiida.common.datastructures import CalcInfo, FileCopyOperation
        from aiida.common.folders import SandboxFolder
        from aiida.engine.daemon.execmanager import upload_calculation

        with SandboxFolder() as sandbox:
            fill(Path(sandbox.abspath), *case.sandbox)
            info = CalcInfo()
            info.uuid, info.codes_info = self.node.uuid, []
            info.local_copy_list = [(self.folder.uuid, *pair) for pair in case.local]
            for name, pairs in (("remote_copy_list", case.copies), ("remote_symlink_list", case.links)):
                info[name] = [(self.computer.uuid, f"{self.parent}/{source}", target) for source, target in pairs]
            if case.order:
                info.file_copy_operation_order = [FileCopyOperation[name] for name in case.order]
            run(upload_calculation, self.node, self.side.transport, info, sandbox)

    def there(self) -> dict[str, str]:
        """The work directory, from behind; links without the way to the parent."""
        workdir = self.node.get_remote_workdir().removeprefix(f"{self.side.remote}/")
        found = tree(self.side.there(workdir))
        return {name: text.replace(f"{self.parent}/", "") for name, text in found.items()}


@pytest.fixture
def bench(side: Side) -> Bench:
    """A new calculation whose computer works in the test's directory."""
    from aiida import orm

    scheduler = "core.direct" if side.plugin == "core.local" else "hpcbridge.slurm"
    options = {name: value for name, value in side.options.items() if name != "machine"}
    workdir = side.path("work")
    computer = make_computer(
        side.remote[1:].replace("/", "."), side.plugin, scheduler, workdir, host=side.options["machine"], **options
    )
    node = orm.CalcJobNode(computer=computer, process_type="aiida.calculations:core.arithmetic.add").store()
    folder = orm.FolderData()
    for name in FOLDER:
        folder.base.repository.put_object_from_bytes(name.encode(), name)
    for name in PARENT:
        side.write(f"parent/{name}", name)
    return Bench(side, node, computer, folder.store(), side.path("parent"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_upload(profile: AiidaProfile, bench: Bench, case: Case) -> None:
    if isinstance(case.expected, type):
        with pytest.raises(case.expected):
            bench.upload(case)
        return
    bench.upload(case)
    assert bench.there() == case.expected


def test_what_an_upload_left_is_moved_away(profile: AiidaProfile, bench: Bench) -> None:
    """A worker died in the middle of it: the next one starts with a clean directory, and keeps what was there."""
    bench.upload(Case({}, sandbox=("x", "half")))
    bench.there()
    bench.upload(Case({}, sandbox=("x",)))
    assert bench.there() == {"x": "x"}
    lost = tree(bench.side.there("work/lost+found"))
    assert lost == {bench.node.uuid: "/", f"{bench.node.uuid}/x": "x", f"{bench.node.uuid}/half": "half"}


RETRIEVED = ("a", "b.log", "c.log", "s/a", "s/t/u", "s/t/v.log", "other/w.log")
LISTS = {
    "names": (["a", "s/t/u"], {"a": "a", "u": "s/t/u"}),
    "a directory": (["s"], {"s": "/", "s/a": "s/a", "s/t": "/", "s/t/u": "s/t/u", "s/t/v.log": "s/t/v.log"}),
    "patterns": (["*.log"], {"b.log": "b.log", "c.log": "c.log"}),
    "patterns in directories": (["s/*"], {"a": "s/a", "t": "/", "t/u": "s/t/u", "t/v.log": "s/t/v.log"}),
    "missing": (["missing", "none*"], {}),
    "depth 0": ([["s/t/u", ".", 0]], {"u": "s/t/u"}),
    "depth 1": ([["s/t/u", ".", 1]], {"u": "s/t/u"}),
    "depth 2": ([["s/t/u", ".", 2]], {"t": "/", "t/u": "s/t/u"}),
    "depth 3": ([["s/t/u", "in", 3]], {"in": "/", "in/s": "/", "in/s/t": "/", "in/s/t/u": "s/t/u"}),
    "patterns, depth 0": ([["*.log", ".", 0]], {"b.log": "b.log", "c.log": "c.log"}),
    "patterns, depth 2": ([["*/*.log", ".", 2]], {"other": "/", "other/w.log": "other/w.log"}),
    "patterns, every depth": (
        [["s/t/*", "k", None]],
        {"k": "/", "k/s": "/", "k/s/t": "/", "k/s/t/u": "s/t/u", "k/s/t/v.log": "s/t/v.log"},
    ),
}


@pytest.mark.parametrize(("wanted", "expected"), LISTS.values(), ids=LISTS.keys())
def test_retrieve(profile: AiidaProfile, bench: Bench, wanted: list[Any], expected: dict[str, str]) -> None:
    from aiida.engine.daemon.execmanager import retrieve_files_from_list

    for name in RETRIEVED:
        bench.side.write(f"work/{name}", name)
    bench.node.set_remote_workdir(bench.side.path("work"))
    run(retrieve_files_from_list, bench.node, bench.side.transport, str(bench.side.local), wanted)
    assert tree(bench.side.local) == expected
