"""Setting up: URL and credential reference alone, no secret anywhere, clear words for what there is not."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from support.aiida_computers import SCHEDULER, TRANSPORT, installed_code, make_ours
from support.aiida_profile import AiidaProfile, VerdiFailed
from support.aiida_runs import ended_well, options
from support.sandbox import SandboxProcess

ROOT = Path(__file__).parents[2]


def test_by_aiidas_own_commands(
    profile: AiidaProfile, sandbox: SandboxProcess, credential: Path, tmp_path: Path
) -> None:
    """`verdi computer setup`, `configure`, `test`, `show`, `export`; the secret is in none of what they leave."""
    where = ["-H", sandbox.system, "-w", "/scratch/{username}/byhand"]
    profile.verdi_here("computer", "setup", "-n", "-L", "byhand", "-T", TRANSPORT, "-S", SCHEDULER, *where)
    reference = f"file:{credential}"
    profile.verdi_here(
        "computer", "configure", TRANSPORT, "byhand", "-n", "--url", sandbox.url, "--credential", reference
    )
    said = profile.verdi_here("computer", "test", "byhand")
    assert "tests succeeded" in said, said
    exported = tmp_path / "config.yml"
    profile.verdi_here("computer", "export", "config", "byhand", str(exported))
    shown = profile.verdi_here("computer", "show", "byhand") + exported.read_text()
    assert reference in exported.read_text()
    secret = sandbox.users["alice"]
    assert secret not in said + shown
    files = [path for path in profile.path.rglob("*") if path.is_file() and path != credential]
    assert len(files) > 5
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("value", ["hunter2-hunter2-hunter2", "plain:hunter2", "file:relative.toml"])
def test_a_secret_in_place_of_a_reference_is_refused(
    profile: AiidaProfile, sandbox: SandboxProcess, credential: Path, value: str
) -> None:
    label = f"refused-{abs(hash(value))}"
    profile.verdi_here(
        "computer", "setup", "-n", "-L", label, "-H", "x", "-T", TRANSPORT, "-S", SCHEDULER, "-w", "/scratch"
    )
    words = ("computer", "configure", TRANSPORT, label, "-n", "--url", sandbox.url, "--credential", value)
    with pytest.raises(VerdiFailed, match=r"(?i)reference|absolute"):
        profile.verdi_here(*words)


def test_a_secret_that_others_may_read_is_refused(
    profile: AiidaProfile, sandbox: SandboxProcess, credential: Path, tmp_path: Path
) -> None:
    open_to_all = tmp_path / "alice.toml"
    open_to_all.write_text(credential.read_text())
    open_to_all.chmod(0o644)
    computer = make_ours("readable", sandbox, open_to_all)
    with pytest.raises(OSError, match="chmod 600") as caught, computer.get_transport() as transport:
        transport.listdir("/scratch/alice")
    assert sandbox.users["alice"] not in str(caught.value)


def test_a_wrong_secret_is_said(profile: AiidaProfile, sandbox: SandboxProcess, tmp_path: Path) -> None:
    wrong = tmp_path / "alice.toml"
    wrong.touch(mode=0o600)
    wrong.write_text(f'client_id = "alice"\nclient_secret = "wrong-wrong-wrong"\ntoken_url = "{sandbox.token_url}"\n')
    computer = make_ours("wrong", sandbox, wrong)
    with (
        pytest.raises(OSError, match="Check the client id and its secret") as caught,
        computer.get_transport() as transport,
    ):
        transport.listdir("/scratch/alice")
    assert "wrong-wrong-wrong" not in str(caught.value)


def test_there_is_no_shell(profile: AiidaProfile, sandbox: SandboxProcess, credential: Path) -> None:
    """The message says what there is instead."""
    computer = make_ours("shell-less", sandbox, credential)
    with computer.get_transport() as transport:
        assert "hpcbridge" in transport.gotocomputer_command("/scratch/alice")
        with pytest.raises(NotImplementedError, match="shell"):
            transport.exec_command_wait("hostname")


def test_the_documentations_example(daemon: AiidaProfile, sandbox: SandboxProcess, tmp_path: Path) -> None:
    """What docs/aiida.md says to try, as it stands: calculation, work chain, aiida-shell."""
    page = (ROOT / "docs" / "aiida.md").read_text()
    match = re.search(r"^When it is ready, in a second one:\n\n((?:    .*\n)+)", page, re.MULTILINE)
    assert match is not None
    (tmp_path / "sandbox.env").write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sandbox.client_env().items())
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-e", "-c", match[1]],
        cwd=tmp_path,
        env=daemon.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=200,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "2 + 3 = 5" in done.stdout
    assert "2 * 3 + 4 = 10" in done.stdout
    assert "sorted: ['silicon', 'germanium', 'carbon']" in done.stdout


def test_shell_jobs_in_the_daemon(daemon: AiidaProfile, sandbox: SandboxProcess, credential: Path) -> None:
    """aiida-shell with files both ways, several outputs by a pattern, and a command that fails."""
    from aiida import orm
    from aiida_shell import launch_shell_job

    computer = make_ours("shells", sandbox, credential)
    metadata = {"computer": computer, **options()}
    words = orm.SinglefileData.from_string("silicon\ncarbon\ngermanium\n", filename="words.txt")
    _, split = launch_shell_job(
        "split",
        arguments="--lines=1 {words} part-",
        nodes={"words": words},
        outputs=["part-*"],
        metadata=metadata,
        submit=True,
    )
    _, failing = launch_shell_job("false", metadata=metadata, submit=True)
    outputs = ended_well(split, daemon).outputs
    texts = {name: outputs[name].get_content() for name in outputs if name.startswith("part")}
    assert texts == {"part_aa": "silicon\n", "part_ab": "carbon\n", "part_ac": "germanium\n"}
    from support.aiida_runs import wait

    wait([failing], daemon)
    assert failing.is_finished
    assert failing.exit_status == 400, "ERROR_COMMAND_FAILED of aiida-shell"


def test_a_portable_code(daemon: AiidaProfile, sandbox: SandboxProcess, credential: Path, tmp_path: Path) -> None:
    """A program that AiiDA brings along: uploaded, made executable, run."""
    from aiida import engine, orm

    from support.aiida_calcs import PlannedJob

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "run.sh").write_text('#!/bin/bash\necho "by $0"; bash "$1"\n')
    code = orm.PortableCode(label="portable", filepath_executable="run.sh", filepath_files=tmp_path / "bin").store()
    computer = make_ours("portable", sandbox, credential)
    node = engine.submit(
        PlannedJob, code=code, script=orm.Str("echo end"), metadata={"computer": computer, **options()}
    )
    assert ended_well(node, daemon).outputs.seen["retrieved"]["stdout.txt"] == "by ./run.sh\nend\n"


def test_a_workdir_that_cannot_be_is_said(daemon: AiidaProfile, sandbox: SandboxProcess, credential: Path) -> None:
    """Bad input in the computer: the process says what is wrong with which path; nothing hangs."""
    from aiida.common.exceptions import ConfigurationError

    computer = make_ours("odd", sandbox, credential, "/scratch/{username}/it's")
    code = installed_code(computer, "bash-odd")
    with code.computer.get_transport() as transport, pytest.raises((OSError, ConfigurationError), match="quote"):
        transport.makedirs("/scratch/alice/it's/x")
