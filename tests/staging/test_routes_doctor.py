"""`hpcbridge doctor` explains which route a file would take, and why not another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcbridge.staging.seen import Seen
from support.cli import run_cli
from support.sandbox import SandboxProcess, start_sandbox


def test_doctor_shows_the_route_of_common_sizes(sandbox: SandboxProcess, tmp_path: Path):
    done = run_cli("doctor", env=sandbox.client_env(), cwd=tmp_path)
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    taken = {(size, way): route.split()[0] for size, way, route, _ in rows}
    assert taken == {
        ("1.0 MB", "up"): "direct",
        ("1.0 MB", "down"): "direct",
        ("50.0 MB", "up"): "chunked",
        ("50.0 MB", "down"): "s3",
        ("1.0 GB", "up"): "chunked",
        ("1.0 GB", "down"): "s3",
        ("100.0 GB", "up"): "s3",
        ("100.0 GB", "down"): "s3",
    }


def test_doctor_says_of_one_size_what_each_route_would_cost(sandbox: SandboxProcess, tmp_path: Path):
    done = run_cli("doctor", "--size", "20GB", "--up", env=sandbox.client_env(), cwd=tmp_path)
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert [row[1] for row in rows] == ["s3", "chunked", "direct", "streamer"]
    assert "until the server looks 30 s" in rows[0][4]
    assert "twice" in rows[1][4]
    assert rows[2][2] == rows[3][2] == "not possible"
    assert "no streamer" in rows[3][4]


def test_doctor_tells_programs_the_same_with_what_was_seen(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    env = sandbox.client_env() | {"HPCBRIDGE_STATE_DIR": str(tmp_path / "state")}
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    Seen(sandbox.url, sandbox.system).learn(store_down=1e4, queue=20.0)
    done = run_cli("doctor", "--size", "50MB", "--json", env=env, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["ok"], found["queue"]) == (True, {"partition": "xfer", "state": "UP"})
    assert found["figures"]["store_down"] == 1e4
    assert [(each["direction"], each["route"]) for each in found["routes"]] == [("up", "chunked"), ("down", "chunked")]
    s3 = next(each for each in found["routes"][1]["options"] if each["route"] == "s3")
    assert s3["usable"]
    assert s3["steps"]["receiving"] == pytest.approx(5000)
    assert s3["steps"]["in the queue"] == 20


def test_what_is_no_size_is_refused(sandbox: SandboxProcess, tmp_path: Path):
    done = run_cli("doctor", "--size", "20Q", env=sandbox.client_env(), cwd=tmp_path)
    assert done.returncode == 2
    assert "20Q" in done.stderr


def test_up_and_down_need_a_size(sandbox: SandboxProcess, tmp_path: Path):
    done = run_cli("doctor", "--up", env=sandbox.client_env(), cwd=tmp_path)
    assert done.returncode == 2
    assert "--size" in done.stderr


def test_a_site_with_a_streamer_has_it_in_the_table(tmp_path: Path):
    with start_sandbox("--transfer", "streamer") as sandbox:
        done = run_cli("doctor", "--size", "200G", env=sandbox.client_env(), cwd=tmp_path)
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    routes = {(row[0], row[1]): row[2] for row in rows}
    assert routes["up", "s3"] == "not possible"
    assert routes["up", "streamer"] == "not possible"  # over its inbound limit
    assert routes["down", "streamer"] != "not possible"
