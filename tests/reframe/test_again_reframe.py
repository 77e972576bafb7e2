"""One run after the other: only what changed travels, what failed stays to be looked at, no output is mixed up."""

from __future__ import annotations

from pathlib import Path

from support.reframe_runs import SCALE, SUITE, check, configuration, run
from support.sandbox import SandboxProcess


def test_only_what_changed_is_shipped(sandbox: SandboxProcess, folder: Path, tmp_path: Path) -> None:
    """A large input that many tests share travels once; one that changed, alone."""
    (folder / "settings.py").write_text(configuration(options={"firecrest_stage_prefix": "/scratch/alice/changes"}))
    suite = tmp_path / "suite"
    (suite / "src").mkdir(parents=True)
    (suite / "many.py").write_text((SCALE / "many.py").read_text())
    (suite / "src/work.sh").write_text((SCALE / "src/work.sh").read_text())
    (suite / "src/work.sh").chmod(0o755)
    noise = [str(number * 7919 % 1000003) for number in range(60_000)]
    (suite / "src/a.txt").write_text("\n".join(noise))
    client = sandbox.client_env() | {"MANY_TESTS": "5"}
    assert run(folder, suite, client).shipped()[0] == 8
    assert run(folder, suite, client).shipped()[0] == 0
    (suite / "src/b.txt").write_text("a new file\n")
    contents, sent = run(folder, suite, client).shipped()
    assert contents == 1
    assert sent < 50_000


def test_the_same_stage_directory_again(sandbox: SandboxProcess, folder: Path) -> None:
    """Runs again in what the run before has left, here and there: the output is that of the last."""
    (folder / "settings.py").write_text(configuration(general={"clean_stagedir": False}))
    chosen = ("-n", "Hello", "-n", "ArrayJob", "--keep-stage-files")
    check(run(folder, SUITE, sandbox.client_env(), *chosen, "--reruns=1"))
    again = run(folder, SUITE, sandbox.client_env(), *chosen)
    check(again)
    assert (folder / "rfm/output/cluster/normal/gnu/Hello/rfm_job.out").read_text().count("hello world") == 1


def test_what_stays_on_the_cluster(sandbox: SandboxProcess, folder: Path) -> None:
    """Stage directories of tests that failed, and the store; nothing of this machine is named in it."""
    (folder / "settings.py").write_text(configuration(options={"firecrest_stage_name": "what-stays"}))
    outcome = run(folder, SUITE, sandbox.client_env(), "-n", "^Wrong", "-n", "^Hello", "-n", "First")
    assert [case["result"] for case in outcome.cases].count("fail") == 1
    root = sandbox.host_path("/home/alice/reframe")
    stage = root / "what-stays"
    left = {path.name for path in stage.glob("*/*/*/*")}
    assert left == {"Wrong"}
    assert not list(root.glob(".hpcbridge-*"))
    assert not list((folder / "rfm/stage").glob(".hpcbridge-*"))
    for path in (stage / "cluster/normal/gnu/Wrong").iterdir():
        assert not path.is_file() or str(folder) not in path.read_text()
    # The next run, in which it passes (here: is not run), and a test whose remains are there starts from nothing.
    (stage / "cluster/normal/gnu/Wrong/old").write_text("of an earlier run")
    again = run(folder, SUITE, sandbox.client_env(), "-n", "^Wrong")
    assert again.case("Wrong")["result"] == "fail"
    assert not (stage / "cluster/normal/gnu/Wrong/old").exists()
