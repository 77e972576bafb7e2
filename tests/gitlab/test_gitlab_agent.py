"""The agent alone, as a scheduler would start it: what it does with its box."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcbridge_gitlab import agent
from hpcbridge_gitlab.agent import State
from hpcbridge_gitlab.settings import Driver
from support.gitlab_coordinator import wait_for


class Node:
    """A process of the agent and its box."""

    def __init__(self, home: Path, **constants: float) -> None:
        self.home, self.box = home, home / "box"
        self.box.mkdir(parents=True)
        home.chmod(0o700)
        self.seq = 0
        (self.box / "lease").write_text("x")
        driver = Driver(agent_tick=0.05, kill_after=1, **constants)
        script = home / "agent"
        script.write_text(agent.script(str(home), driver).replace("#!/bin/bash -l", "#!/bin/bash"))
        self.process = subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, start_new_session=True)
        wait_for(self.state, what="the agent")

    def state(self) -> State | None:
        try:
            return State.parse((self.box / "state").read_bytes())
        except FileNotFoundError:
            return None

    def post(self, script: str | bytes, kind: str = "main", *, seq: int | None = None, digest: str = "") -> int:
        self.seq = seq or self.seq + 1
        data = script.encode() if isinstance(script, str) else script
        file = self.box / f"{self.seq:04d}"
        file.write_bytes(data)
        commit = file.with_suffix(".ready")
        commit.write_text(f"{kind} {len(data)} {digest or hashlib.sha256(data).hexdigest()} stage\n")
        time.sleep(0.2)  # half a commit is none
        assert self.state().seq != self.seq  # type: ignore[union-attr]
        with commit.open("a") as half:
            half.write("end\n")
        return self.seq

    def until(self, status: str, seconds: float = 30) -> State:
        return wait_for(lambda: (s := self.state()) and s.seq == self.seq and s.status == status and s, seconds, status)

    def output(self, state: State) -> bytes:
        return b"".join((self.box / f"{state.seq:04d}.{n}").read_bytes() for n in range(1, state.chunks + 1))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "home")
    yield made
    made.process.kill()
    made.process.wait()
    made.process.stderr.close()  # type: ignore[union-attr]


def test_a_script_runs_and_is_gone_before_its_first_line(node):
    node.post(f"ls {node.box}/0001 2>&1; ps -ef | grep -c 'SECRET[0-9]' || true; echo out; exit 7 # SECRET1\n")
    done = node.until("done")
    assert (done.code, done.reason) == (7, "none")
    assert b"No such file" in node.output(done)
    assert b"\n0\nout\n" in node.output(done)


def test_bytes_of_any_kind_arrive_as_they_are(node):
    data = bytes(range(256)) * 40_000
    (node.home / "data").write_bytes(data)
    node.post(f"head -c 5000000 {node.home}/data; sleep 0.3; tail -c +5000001 {node.home}/data")
    done = node.until("done")
    assert node.output(done) == data
    assert done.size == len(data)
    assert done.chunks > 3


def test_a_damaged_file_is_refused_and_the_next_one_runs(node):
    node.post("echo never", digest="0" * 64)
    assert node.until("done").reason == "damaged"
    node.post("echo well", seq=5)
    assert node.output(node.until("done")) == b"well\n"


def test_a_cancel_kills_all_of_the_session_and_the_next_script_runs(node):
    node.post(
        "trap '' TERM; bash -c 'set -m; trap \"\" TERM; sleep 77.25 & wait' & echo on; while :; do sleep 0.1; done"
    )
    node.until("running")
    wait_for(lambda: node.state().chunks)
    (node.box / "0001.cancel").write_text("x")
    assert node.until("done").reason == "cancelled"
    left = subprocess.run(["pgrep", "-f", "sleep 77.25"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    node.post("echo after", "after")
    assert node.output(node.until("done")) == b"after\n"


def test_the_next_file_ends_a_script_whose_cancel_got_lost(node):
    node.post("sleep 60")
    node.until("running")
    node.post("echo after", "after")
    assert node.output(node.until("done")) == b"after\n"


def test_the_schedulers_warning_ends_the_script_and_leaves_after_script_alone(node):
    node.post("echo on; sleep 60")
    node.until("running")
    node.process.send_signal(signal.SIGUSR1)
    assert node.until("done").reason == "timelimit"
    node.post("sleep 0.5; echo after", "after")
    assert node.until("done").reason == "none"


def test_an_old_lease_ends_everything_and_leaves_nothing(tmp_path):
    node = Node(tmp_path / "home", lease=2)
    node.post("sleep 78.5")
    node.until("running")
    old = time.time() - 60
    os.utime(node.box / "lease", (old, old))
    assert node.process.wait(20) == 4
    assert not node.home.exists()
    assert subprocess.run(["pgrep", "-f", "sleep 78.5"], capture_output=True, check=False).stdout == b""


def test_stop_removes_everything(node):
    node.post("exit 0", "stop")
    assert node.process.wait(20) == 0
    assert not node.home.exists()


def test_a_terminated_agent_says_so_and_keeps_what_was_printed(node):
    node.post("echo last words; sleep 60")
    wait_for(lambda: node.state().chunks)
    node.process.terminate()
    assert node.process.wait(20) == 0
    ended = node.until("ended")
    assert ended.reason == "terminated"
    assert node.output(ended).startswith(b"last words\n")


def test_nothing_in_the_box_is_open_to_others(node):
    node.post("echo x; umask > mask; sleep 1")
    node.until("running")
    for path in [node.home, *node.home.rglob("*")]:
        if path.name not in ("0001", "lease", "0001.ready", "agent", "mask"):  # written by this test, or by the script
            assert not path.stat().st_mode & 0o077, path
    node.until("done")
    assert (node.home / "mask").read_text().strip() == f"{_umask():04o}"


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now
