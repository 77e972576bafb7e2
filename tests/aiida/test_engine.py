"""AiiDA's engine with its real daemon: what users run, the same on aiida-core's own plugins and on ours."""

from __future__ import annotations

import pytest

from support.aiida_batch import EXPECTED, Batch
from support.aiida_profile import AiidaProfile
from support.aiida_runs import ended_well


@pytest.fixture(scope="session")
def batches(request: pytest.FixtureRequest, daemon: AiidaProfile) -> dict[str, Batch]:
    """The same on every computer that a test of this run asks for, all of it at once."""
    wanted = {getattr(item, "callspec", None) and item.callspec.params.get("batch") for item in request.session.items}
    return {name: Batch.start(request.getfixturevalue(name)) for name in ("native", "ours", "slurm") if name in wanted}


@pytest.fixture(
    params=[
        pytest.param("native", marks=pytest.mark.prove),
        "ours",
        pytest.param("slurm", marks=[pytest.mark.slurm, pytest.mark.prove]),
    ]
)
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
