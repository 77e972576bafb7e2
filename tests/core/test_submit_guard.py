"""The script guards itself: one execution per key, an environment that arrives byte for byte, directives carried.

The scripts made by `guard` are run here as the scheduler runs them: by their own interpreter, with SLURM_JOB_ID set.
"""

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcbridge.errors import InvalidSpec
from hpcbridge.jobs import guard
from hpcbridge.jobs.guard import CANNOT_LOCK_EXIT, Interpreter, Places
from hpcbridge.jobs.prepare import call, render
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.state import LOST_RACE_EXIT

NAME = "relax.hb1aaaabbbbccccdddd"
_SPOOLING = threading.Lock()
WANTED = ("sh", "bash", "dash", "ksh", "zsh", "bash -eux", "bash -l", "bash -v", "dash -eu", "sh -x")
SHELLS = [shell for shell in WANTED if shutil.which(shell.split()[0])]


@pytest.fixture
def places(tmp_path):
    workdir = tmp_path / "work dir"
    workdir.mkdir()
    return Places(str(workdir), NAME)


def run(script, places, job="100", **environment):
    """Run a batch script as Slurm does: spooled elsewhere, started in the work directory."""
    spool = Path(places.workdir).parent / f"spooled-{job}-{len(environment)}"
    variables = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _SPOOLING:  # a child forked by another thread meanwhile would keep the file open, and it could not be run
        spool.write_bytes(script.encode())
        spool.chmod(0o700)
        process = subprocess.Popen([spool], cwd=places.workdir, env=variables, **pipes)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([spool], process.returncode, out, err)


def write_environment(places, env):
    Path(places.private).mkdir(parents=True)
    Path(places.private, "env").write_bytes(guard.environment_file(env))


def lines_of(places, name):
    return Path(places.workdir, name).read_text().splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_first_job_runs_the_second_loses_and_a_requeue_enters_again(places, shell):
    program, _, flags = shell.partition(" ")
    script = guard.guarded(f"#!{shutil.which(program)} {flags}\necho ran >> runs\nexit 7\n", places, [], env=False)
    assert run(script, places, "100").returncode == 7
    loser = run(script, places, "101")
    assert loser.returncode == LOST_RACE_EXIT
    assert b"job 101 lost to job 100" in loser.stderr
    assert run(script, places, "100", SLURM_RESTART_COUNT="1").returncode == 7
    assert lines_of(places, "runs") == ["ran", "ran"]


def test_every_task_of_an_array_enters(places):
    script = guard.guarded("#!/bin/bash\ntrue\n", places, [], env=False)
    tasks = [run(script, places, str(100 + n), SLURM_ARRAY_JOB_ID="100", SLURM_ARRAY_TASK_ID=str(n)) for n in range(3)]
    assert [task.returncode for task in tasks] == [0, 0, 0]
    assert run(script, places, "200", SLURM_ARRAY_JOB_ID="200").returncode == LOST_RACE_EXIT


def test_of_many_jobs_at_once_one_runs(places):
    script = guard.guarded("#!/bin/sh\necho $SLURM_JOB_ID >> runs\nsleep 0.2\n", places, [], env=False)
    with ThreadPoolExecutor(16) as pool:
        codes = [each.returncode for each in pool.map(lambda job: run(script, places, str(job)), range(1, 25))]
    assert sorted(codes) == [0] + [LOST_RACE_EXIT] * 23
    assert len(lines_of(places, "runs")) == 1


def test_a_lock_that_cannot_be_made_runs_nothing(places):
    Path(places.folder).touch()
    outcome = run(guard.guarded("#!/bin/sh\necho ran\n", places, [], env=False), places)
    assert outcome.returncode == CANNOT_LOCK_EXIT
    assert b"nothing was run" in outcome.stderr
    assert outcome.stdout == b""


def test_without_a_job_id_nothing_runs(places):
    outcome = run(guard.guarded("#!/bin/sh\necho ran\n", places, [], env=False), places, "")
    assert (outcome.returncode, outcome.stdout) == (CANNOT_LOCK_EXIT, b"")


def test_the_lock_folder_is_as_open_as_the_work_directory(places):
    Path(places.workdir).chmod(0o2775)
    run(guard.guarded("#!/bin/sh\ntrue\n", places, [], env=False), places)
    assert Path(places.folder).stat().st_mode & 0o777 == 0o775


ODD = "q'uo\"te,com ma\nnew line|pipe $HOME `id` $(id) \\ \\n * ~ ! é \udcff\t\r end "


@pytest.mark.parametrize("shell", SHELLS)
def test_environment_values_arrive_byte_for_byte(places, shell):
    program, _, flags = shell.partition(" ")
    write_environment(places, {"ODD": ODD, "EMPTY": ""})
    script = f'#!{shutil.which(program)} {flags}\nprintf "[%s][%s]" "$ODD" "${{EMPTY-unset}}" > got\n'
    outcome = run(guard.guarded(script, places, [], env=True), places)
    assert outcome.returncode == 0, outcome.stderr
    assert Path(places.workdir, "got").read_bytes() == b"[" + ODD.encode("utf-8", "surrogateescape") + b"][]"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50))
def test_any_text_arrives(tmp_path, value):
    (tmp_path / "env").write_bytes(guard.environment_file({"V": value}))
    got = subprocess.run(["sh", "-c", '. "$0"; printf %s "$V"', str(tmp_path / "env")], capture_output=True)
    assert got.stdout == value.encode()


@pytest.mark.parametrize("flags", ["-x", "-v", "-xv"])
def test_tracing_does_not_print_the_environment(places, flags):
    write_environment(places, {"TOKEN": "s3cr3t"})
    outcome = run(guard.guarded(f"#!/bin/bash {flags}\necho hello\n", places, [], env=True), places)
    assert outcome.stdout == b"hello\n"
    assert b"s3cr3t" not in outcome.stderr
    assert b"echo hello" in outcome.stderr


def test_the_environment_stays_for_a_requeue_and_goes_when_there_is_none(places):
    write_environment(places, {"A": "1"})
    spec = JobSpec(script='#!/bin/sh\n[ "$A" = 1 ]\n', workdir=places.workdir, env={"A": "1"})
    assert run(render(spec, places, spec.script).batch, places).returncode == 0
    assert run(render(spec, places, spec.script).batch, places).returncode == 0
    final = spec.replace(directives=["--no-requeue"])
    assert run(render(final, places, spec.script).batch, places).returncode == 0
    assert not Path(places.private).exists()
    assert guard.may_come_again(["--no-requeue", "--array=0-3"])


def test_the_script_sees_nothing_of_the_guard(places):
    script = guard.guarded("#!/bin/bash\nset\ndeclare -F\n", places, [], env=False)
    assert b"hpcbridge_once" not in run(script, places).stdout


def test_the_guard_comes_after_all_that_sbatch_reads(places):
    user = "#!/bin/bash\n#SBATCH --time=5\n\n# a comment\n#SBATCH -p debug\n##SBATCH --no\necho\n#SBATCH --late\n"
    text = guard.guarded(user, places, ["--nodes=2"], env=False)
    assert guard.directives_in(user) == ("--time=5", "-p debug")
    assert guard.directives_in(text) == ("--time=5", "-p debug", "--nodes=2")
    assert text.index("hpcbridge_once") < text.index("\necho\n") < text.index("--late")


def test_a_script_of_comments_only_still_takes_the_lock(places):
    assert run(guard.guarded("#!/bin/sh\n#SBATCH --wait", places, [], env=False), places).returncode == 0
    assert str(Path(places.lock).readlink()) == "100"


@pytest.mark.parametrize(
    ("line", "shell", "argv"),
    [
        ("#!/bin/bash -l", True, ("/bin/bash", "-l")),
        ("#! /usr/bin/env bash", True, ("/usr/bin/env", "bash")),
        ("#!/usr/bin/env -S FOO=1 bash -e", True, ("/usr/bin/env", "-S FOO=1 bash -e")),
        ("#!/usr/bin/env python3", False, ("/usr/bin/env", "python3")),
        ("#!/usr/bin/python3 -u", False, ("/usr/bin/python3", "-u")),
        ("#!/bin/csh", False, ("/bin/csh",)),
    ],
)
def test_interpreters_are_read_as_the_kernel_does(line, shell, argv):
    interpreter = Interpreter.of(line + "\n")
    assert (interpreter.is_shell, interpreter.argv) == (shell, argv)


def test_a_python_script_runs_behind_a_wrapper_that_carries_its_directives(places):
    spec = JobSpec(
        script="#!/usr/bin/env python3\n#SBATCH -t 5\nimport sys; sys.exit(9)\n", workdir=places.workdir, nodes=2
    )
    rendered = render(spec, places, spec.script)
    assert guard.directives_in(rendered.batch) == ("-t 5", "--nodes=2")
    Path(places.folder).mkdir()
    Path(places.script).write_text(rendered.script_file)
    assert run(rendered.batch, places).returncode == 9
    assert run(rendered.batch, places, "101").returncode == LOST_RACE_EXIT


def test_a_script_path_runs_where_it_is(places, tmp_path):
    own = tmp_path / "it is.sh"
    own.write_text("#!/bin/bash -e\n#SBATCH --mem=1G\necho $0 > where\n")
    spec = JobSpec(script_path=str(own), workdir=places.workdir)
    rendered = render(spec, places, own.read_text())
    assert rendered.script_file is None
    assert guard.directives_in(rendered.batch) == ("--mem=1G",)
    assert run(rendered.batch, places).returncode == 0
    assert lines_of(places, "where") == [str(own)]


def test_rest_schedulers_take_what_the_call_can_carry_and_refuse_the_rest(places):
    spec = JobSpec(script="#!/bin/sh\n#SBATCH -p debug -A chem\n#SBATCH --output=o.txt\ntrue\n", workdir=places.workdir)
    body = call(spec, NAME, render(spec, places, spec.script), "rest", places)
    assert (body["partition"], body["account"], body["standardOutput"]) == ("debug", "chem", "o.txt")
    assert (body["name"], body["workingDirectory"]) == (NAME, places.workdir)
    timed = spec.replace(nodes=2, time=5)
    rendered = render(timed, places, spec.script)
    with pytest.raises(InvalidSpec, match="--nodes 2, --time 5"):
        call(timed, NAME, rendered, "rest", places)


def test_hybrid_schedulers_get_the_batch_script_as_a_file():
    places = Places("/scratch/me", NAME)
    spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir="/scratch/me")
    body = call(spec, NAME, render(spec, places, spec.script), "hybrid", places)
    assert body["scriptPath"] == f"/scratch/me/.hpcbridge/{NAME}.batch"
    assert "script" not in body


def test_the_environment_is_never_in_the_call(places):
    spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir=places.workdir, env={"TOKEN": "s3cr3t"})
    for mode in ("ssh", "rest"):
        body = call(spec, NAME, render(spec, places, spec.script), mode, places)
        assert "s3cr3t" not in str(body)
        assert "env" not in body


@pytest.mark.parametrize(
    ("lines", "array"),
    [
        (["-a 0-3"], "0-3"),
        (["-a0-3"], "0-3"),
        (["--array=0-3%2"], "0-3%2"),
        (["--array 1", "--array=2"], "2"),
        (["-A x"], None),
    ],
)
def test_arrays_are_seen_in_directives(lines, array):
    assert guard.array_in(lines) == array


@pytest.mark.parametrize("odd", ["\x0c", "\x0b", "\x1c", "\x85", "\u2028", "\r"])
def test_only_newlines_end_the_lines_of_a_script(places, odd):
    """As for sbatch and the shell; a comment with another separator must not become a command."""
    script = f"#!/bin/sh\n# one {odd}touch made\n#SBATCH --time=5\necho ran\n"
    assert guard.directives_in(script) == ("--time=5",)
    outcome = run(guard.guarded(script, places, [], env=False), places)
    assert (outcome.returncode, outcome.stdout) == (0, b"ran\n")
    assert not Path(places.workdir, "made").exists()


def test_quotes_in_directives(places):
    spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir=places.workdir, directives=['--comment="a b"', "--no-requeue"])
    assert not guard.may_come_again(spec.directives)
    assert 'comment="a b"' in render(spec, places, spec.script).batch
    with pytest.raises(InvalidSpec, match="--comment=Bob's"):
        guard.array_in(["--comment=Bob's"])
