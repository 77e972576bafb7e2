"""Figures, measured by `make prove-gitlab` on a quiet machine: what a stage and the driver's start cost in time.

A bare httpx client is measured beside them: how much of each figure is the machine's and Python's.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support.gitlab_scripts import Recipe

_BARE = """
import sys
sys.modules["httpx._main"] = None
import asyncio
import httpx

async def main():
    async with httpx.AsyncClient(verify=False) as client:
        await client.get("http://127.0.0.1:{port}/")

asyncio.run(main())
"""


class Door:
    """A listener, and how long a process takes until it knocks."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(60)
        self.port = self.listener.getsockname()[1]

    def seconds(self, command: list[str], **options: object) -> float:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
        self.listener.accept()[0].close()
        took = time.monotonic() - began
        process.kill()
        process.wait()
        return took

    def bare(self) -> float:
        """A process that does nothing but one request with httpx."""
        return self.seconds([sys.executable, "-c", _BARE.format(port=self.port)])


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.listener.close()


def rounded(values: list[float]) -> list[float]:
    return sorted(round(value, 2) for value in values)


@pytest.mark.timeout(600)
def test_a_stage_adds_less_than_one_and_a_half_seconds(host, door):
    """At a round trip of 50 ms, with the driver's own start in it."""
    host.sandbox.post("/latency", {"seconds": 0.05})
    took, bare = [], []
    for _ in range(3):
        runner = host.runner(Recipe(["true"], ["true"]), driver={"tick": 1, "agent_tick": 0.3}).run()
        took += [s.seconds for s in runner.stages if s.name in ("prepare_script", "after_script")]
        bare += [door.bare() for _ in range(3)]
    print(f"stages: {rounded(took)}; httpx alone: {rounded(bare)}")
    assert statistics.median(took) < 1.5


@pytest.mark.timeout(600)
def test_the_drivers_start_takes_less_than_600_ms(host, door, tmp_path):
    """From the runner's call of a stage to its first request."""
    runner = host.runner(Recipe(["true"])).run()
    assert runner.outcome == "success", runner.log
    away = re.sub(r"(?m)^url = .*", f'url = "http://127.0.0.1:{door.port}"', (host.root / "sites.toml").read_text())
    (host.root / "away.toml").write_text(away)
    config = host.config(driver={"sites": "away.toml"})
    response, script = tmp_path / "response.json", tmp_path / "script"
    response.write_text(json.dumps(host.job(runner).response))
    script.write_text("true\n")
    program = [*runner.spec.program[:2], str(config), "run", str(script), "prepare_script"]
    env = host.env | {"JOB_RESPONSE_FILE": str(response)}
    door.seconds(program, env=env, cwd=tmp_path)  # the first one fetches the token that the others find
    pairs = [(door.seconds(program, env=env, cwd=tmp_path), door.bare()) for _ in range(9)]
    took, bare = (list(column) for column in zip(*pairs, strict=True))
    print(f"start: {rounded(took)}; httpx alone: {rounded(bare)}")
    assert statistics.median(took) < 0.6
