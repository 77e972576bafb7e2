"""AiiDA's engine with its real daemon: what users run, the same on aiida-core's own plugins and on ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from support.aiida_calcs import RestartChain
from support.aiida_profile import AiidaProfile
from support.aiida_runs import add, ended_well, options, planned

OUTPUTS = """
cat deep/down/single.txt a/nested.txt other/x 2>/dev/null
mkdir -p out/d1 out/d2; for d in d1 d2; do echo "$d" > out/$d/r.xml; echo skip > out/$d/skip; done
echo log > run.log; echo other > other.log; echo top > top.dat; printf '' > empty.dat
echo passing > out/big.tmp
"""
RETRIEVE = {
    "retrieve": [
        "top.dat",
        "empty.dat",
        "never-written.dat",
        ["*.log", ".", 0],
        ["out/*/r.xml", "kept", 3],
        ["out/d1/skip", ".", 2],
    ],
    "temporary": [["out/*.tmp", ".", 2]],
}
EXPECTED = {
    "retrieved": {
        "stdout.txt": "single\nnested\nfrom sub\n",
        "top.dat": "top\n",
        "empty.dat": "",
        "run.log": "log\n",
        "other.log": "other\n",
        "kept/out/d1/r.xml": "d1\n",
        "kept/out/d2/r.xml": "d2\n",
        "d1/skip": "skip\n",
    },
    "temporary": {"out/big.tmp": "passing\n"},
}


@dataclass
class Batch:
    """Everything that was handed to the daemon for one computer, at once."""

    code: Any
    add: Any
    chain: Any
    files: Any
    restarts: Any
    copied: Any
    packed: Any

    @classmethod
    def start(cls, code: Any) -> Batch:
        """Hand it over."""
        from aiida import engine, orm
        from aiida.plugins import WorkflowFactory

        folder = orm.FolderData()
        folder.base.repository.put_object_from_bytes(b"nested\n", "a/nested.txt")
        folder.base.repository.put_object_from_bytes(b"from sub\n", "sub/x")
        single = orm.SinglefileData.from_string("single\n", filename="one.txt")
        multiply_add = WorkflowFactory("core.arithmetic.multiply_add")
        base = code.computer.get_workdir().replace("{username}", "alice")
        stash = {"target_base": f"{base}-stash", "source_list": ["top.dat", "out"]}
        return cls(
            code=code,
            add=add(code),
            chain=engine.submit(multiply_add, x=orm.Int(2), y=orm.Int(3), z=orm.Int(4), code=code),
            files=planned(code, OUTPUTS, RETRIEVE, folder=folder, file=single),
            restarts=engine.submit(RestartChain, code=code, options=options()["options"]),
            copied=planned(code, OUTPUTS, {}, stash={**stash, "stash_mode": "copy"}),
            packed=planned(code, OUTPUTS, {}, stash={**stash, "stash_mode": "tar.gz", "dereference": False}),
        )


@pytest.fixture(scope="session")
def batches(request: pytest.FixtureRequest, daemon: AiidaProfile) -> dict[str, Batch]:
    """The same on every computer that a test of this run asks for, all of it at once."""
    wanted = {getattr(item, "callspec", None) and item.callspec.params.get("batch") for item in request.session.items}
    return {name: Batch.start(request.getfixturevalue(name)) for name in COMPUTERS if name in wanted}


COMPUTERS = ("native", "ours")


@pytest.fixture(params=COMPUTERS)
def batch(request: pytest.FixtureRequest, batches: dict[str, Batch]) -> Batch:
    """One computer's batch."""
    return batches[request.param]


def test_add(daemon: AiidaProfile, batch: Batch) -> None:
    assert ended_well(batch.add, daemon).outputs.sum.value == 3


def test_work_chain(daemon: AiidaProfile, batch: Batch) -> None:
    assert ended_well(batch.chain, daemon).outputs.result.value == 10


def test_inputs_arrive_and_outputs_are_retrieved(daemon: AiidaProfile, batch: Batch) -> None:
    """FolderData (the whole and a part of it), SinglefileData, patterns, nesting, files that are never written."""
    seen = ended_well(batch.files, daemon).outputs.seen.get_dict()
    assert seen == EXPECTED


@pytest.mark.parametrize("way", ["copied", "linked"])
def test_restart_data(daemon: AiidaProfile, batch: Batch, way: str) -> None:
    """By copies and by links, with patterns; what is missing is skipped, as aiida-core does, and nothing else."""
    chain = ended_well(batch.restarts, daemon)
    assert chain.outputs[way].get_dict()["retrieved"] == {"stdout.txt": "wfc1\nwfc2\ncharge\n"}


def test_stash_by_copies(daemon: AiidaProfile, batch: Batch) -> None:
    node = ended_well(batch.copied, daemon)
    stashed = node.outputs.remote_stash
    with batch.code.computer.get_transport() as transport:
        target = stashed.target_basepath
        assert sorted(transport.listdir(target)) == ["out", "top.dat"]
        assert sorted(transport.listdir(f"{target}/out")) == ["big.tmp", "d1", "d2"]


def test_stash_in_an_archive(daemon: AiidaProfile, batch: Batch) -> None:
    node = ended_well(batch.packed, daemon)
    archive = node.outputs.remote_stash.target_basepath
    assert archive.endswith(".tar.gz")
    with batch.code.computer.get_transport() as transport:
        assert transport.get_attribute(archive).st_size > 100
        transport.extract(archive, f"{archive}.d")
        found = transport.glob(f"{archive}.d/*/*/*/top.dat")
        assert len(found) == 1


def test_remote_folders_are_browsed(daemon: AiidaProfile, batch: Batch) -> None:
    """`verdi data core.remote ls|cat`, `verdi calcjob remotecat|outputls`."""
    node = ended_well(batch.files, daemon)
    pk, folder = str(node.pk), str(node.outputs.remote_folder.pk)
    assert "top.dat" in daemon.verdi_here("data", "core.remote", "ls", folder).split()
    assert "-rw" in daemon.verdi_here("data", "core.remote", "ls", "--long", folder)
    assert daemon.verdi_here("data", "core.remote", "cat", folder, "top.dat") == "top\n"
    assert daemon.verdi_here("calcjob", "remotecat", pk, "top.dat") == "top\n"
    assert "top.dat" in daemon.verdi_here("calcjob", "outputls", pk).split()


def test_remote_folders_are_cleaned(daemon: AiidaProfile, batch: Batch) -> None:
    """By `verdi` in another process, while this one knows the folder."""
    node = ended_well(batch.add, daemon)
    path = node.get_remote_workdir()
    with batch.code.computer.get_transport() as transport:
        assert transport.isdir(path)
    daemon.verdi("calcjob", "cleanworkdir", "--force", str(node.pk))
    with batch.code.computer.get_transport() as transport:
        assert not transport.path_exists(path)


def test_nothing_was_tried_twice(daemon: AiidaProfile, batches: dict[str, Batch]) -> None:
    """No failure that the engine's back-off hid."""
    for batch in batches.values():
        for node in (batch.add, batch.chain, batch.files, batch.restarts, batch.copied, batch.packed):
            ended_well(node, daemon)
    assert not daemon.failures()
