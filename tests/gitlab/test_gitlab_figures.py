"""Figures, measured by `make prove-gitlab` on a quiet machine: what a stage and the driver's start cost in time."""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import time

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


def test_a_stage_adds_less_than_one_and_a_half_seconds(host):
    host.sandbox.post("/latency", {"seconds": 0.05})
    runners = [host.runner(Recipe(["true"], ["true"]), driver={"tick": 1}).run() for _ in range(3)]
    took = [s.seconds for r in runners for s in r.stages if s.name in ("prepare_script", "after_script")]
    print(f"stages: {sorted(round(t, 2) for t in took)}")
    assert statistics.median(took) < 1.5


def test_the_drivers_start_takes_less_than_600_ms(host, tmp_path):
    """From the runner's call of a stage to its first request.

    Where httpx alone takes 300 ms and more for that, the figure is twice as long.
    """
    runner = host.runner(Recipe(["true"])).run()
    assert runner.outcome == "success", runner.log
    listener = socket.create_server(("127.0.0.1", 0))
    sites = host.root / "sites.toml"
    away = re.sub(r"(?m)^url = .*", f'url = "http://127.0.0.1:{listener.getsockname()[1]}"', sites.read_text())
    (host.root / "away.toml").write_text(away)
    config = host.config(driver={"sites": "away.toml"})
    response, script = tmp_path / "response.json", tmp_path / "script"
    response.write_text(json.dumps(host.job(runner).response))
    script.write_text("true\n")
    program = [*runner.spec.program[:2], str(config), "run", str(script), "prepare_script"]

    def until_connected(command: list[str]) -> float:
        began = time.monotonic()
        env = host.env | {"JOB_RESPONSE_FILE": str(response)}
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)
        listener.accept()[0].close()
        took = time.monotonic() - began
        process.kill()
        process.wait()
        return took

    bare = [sys.executable, "-c", _BARE.format(port=listener.getsockname()[1])]
    listener.settimeout(60)
    until_connected(program)  # the first one fetches the token that the others find
    pairs = [(until_connected(program), until_connected(bare)) for _ in range(9)]
    listener.close()
    took, httpx = (sorted(column) for column in zip(*pairs, strict=True))
    print(f"start: {[round(t, 2) for t in took]}; httpx alone: {[round(t, 2) for t in httpx]}")
    assert took[0] < max(0.6, 2 * httpx[0])
