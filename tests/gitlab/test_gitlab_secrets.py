"""Secrets: what others, the scheduler and our own records can see of them while a job runs, and afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcbridge_gitlab import credentials
from support.gitlab_coordinator import wait_for
from support.gitlab_runner import wait_for_log
from support.gitlab_scripts import Recipe

SECRET = "s3cr3t-value-of-a-masked-variable"


def holders(root: Path, *needles: bytes) -> list[tuple[Path, int]]:
    """Files below `root` that hold one of these, with their modes."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            try:
                if path.is_file() and not path.is_symlink() and any(n in path.read_bytes() for n in needles):
                    found.append((path, path.stat().st_mode & 0o777))
            except OSError:
                continue
    return found


def reachable(path: Path, root: Path) -> bool:
    """Whether others may come to a file: every directory on the way lets them, and the file does."""
    inside = [parent for parent in path.parents if parent.is_relative_to(root)]
    return all(parent.stat().st_mode & 0o001 for parent in inside) and bool(path.stat().st_mode & 0o004)


def command_lines() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


@pytest.mark.timeout(1200)
def test_no_secret_is_seen_while_the_script_runs_nor_left_afterwards(any_host):
    recipe = Recipe(["echo started; for i in $(seq 600); do [ -e go ] && break; sleep 0.2; done"], ["true"])
    recipe.secrets = {"API_KEY": SECRET}
    runner = any_host.runner(recipe)
    job = any_host.job(runner)
    needles = [SECRET.encode(), job.token.encode(), any_host.sandbox.users["alice"].encode()]
    runner.start()
    wait_for_log(runner, "started\n", 600)

    (row,) = any_host.rows(runner)
    with any_host.sandbox.client("alice") as client:
        metadata = client.get(f"/compute/{any_host.sandbox.system}/jobs/{row['jobId']}/metadata")
    for text in (metadata.text, str(row), command_lines(), any_host.sandbox.log.read_text(errors="replace")):
        assert not [needle for needle in needles if needle.decode() in text]

    cluster = any_host.sandbox.host_path("/")
    place = any_host.place(runner)
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "box").stat().st_mode & 0o777 == 0o700
    seen = holders(cluster, *needles[:2])
    assert not [path for path, _ in seen if reachable(path, cluster)]
    # The script itself is gone, and the clone came without the credentials that the runner's script puts into it.
    assert not seen
    config = place / "builds" / "group" / "project" / ".git" / "config"
    assert git_config(config, "remote.origin.url") == f"{any_host.gitlab.url}/group/project.git"

    (place / "builds" / "group" / "project" / "go").touch()
    runner.join(600)
    assert runner.outcome == "success", runner.log
    wait_for(lambda: not place.exists(), 60)
    assert not holders(cluster, *needles)
    assert not [needle for needle in needles if needle.decode() in runner.log]
    ours = [path for path, _ in holders(any_host.root / "state", *needles) if "builds" not in path.parts]
    assert not ours
    for path in (any_host.root / "state").rglob("*"):
        if path.is_file() and "builds" not in path.parts:
            assert not path.stat().st_mode & 0o077, path


def test_a_stage_on_the_runners_host_sees_no_credentials(host):
    """Hooks are a user's own code: under bubblewrap it finds neither our files nor our environment."""
    look = f"cat {host.root}/secrets/alice {host.root}/state/token-* {host.root}/sites.toml 2>&1 || true; env; ls -a ~"
    hooks = [{"name": "pre_get_sources_script", "script": [look, "echo hook ran"]}]
    runner = host.runner(Recipe(["true"], hooks=hooks), driver={"isolate": "bwrap", "hide": [str(host.root)]}).run()
    assert "hook ran" in runner.log, runner.log
    assert host.sandbox.users["alice"] not in runner.log
    assert "access_token" not in runner.log
    assert "FIRECREST" not in runner.log
    assert runner.outcome == "success"


def test_hooks_without_isolation_are_refused(host):
    hooks = [{"name": "pre_get_sources_script", "script": ["id"]}]
    runner = host.runner(Recipe(["true"], hooks=hooks), driver={"isolate": "none"}).run()
    assert runner.outcome == "script_failure"
    assert "POLICY (the job): `hooks` (pre_get_sources_script) would run on the runner's host" in runner.log


GIT_CONFIG = """\
[core]
\tbare = false
[remote "origin"]
\turl = https://gitlab-ci-token:glcbt-1@gitlab.example.org/group/project.git
\tpushurl = "ssh://git:glcbt-2@gitlab.example.org:22/group/project.git"
\tfetch = +refs/heads/*:refs/remotes/origin/*
[http "https://gitlab.example.org/"]
\textraHeader = AUTHORIZATION: basic glcbt-3
[http]
\tsslVerify = true
\textraheader = "X: glcbt-4\\
 glcbt-5"
[url "https://gitlab-ci-token:glcbt-6@gitlab.example.org/"]
\tinsteadOf = https://gitlab.example.org/
[credential]
\thelper = "!f() { echo password=glcbt-7; }; f"
\tusername = gitlab-ci-token
[submodule "lib"]
\turl = https://oauth2:glcbt-8@other.example.org/lib.git # glcbt-9@x
[includeIf "gitdir:/builds/**"]
\tpath = /builds/group/project.tmp/.gitlab-runner.ext.conf
[odd "a.b\\"c\\\\d"]
\tvalue = "  two\\nlines \\"quoted\\" ; \\\\ "
\tnone
"""
KEPT = {
    "remote.origin.url": "https://gitlab.example.org/group/project.git",
    "remote.origin.pushurl": "ssh://git@gitlab.example.org:22/group/project.git",
    "remote.origin.fetch": "+refs/heads/*:refs/remotes/origin/*",
    "http.sslVerify": "true",
    "submodule.lib.url": "https://other.example.org/lib.git",
    "core.bare": "false",
    'odd.a.b"c\\d.value': '  two\nlines "quoted" ; \\ ',
}


def git_config(path: Path, key: str) -> str:
    words = ["git", "config", "--file", str(path), "--get", key]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.removesuffix("\n")


def test_a_clone_is_sent_without_credentials(tmp_path):
    """Whatever git has: remotes, submodules, headers, rewritten URLs, helpers."""
    project = tmp_path / "group" / "project"
    places = [
        project / ".git" / "config",
        project / ".git" / "modules" / "lib" / "config",
        project / "lib.git" / "config",
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_text(GIT_CONFIG)
    (project / "config").write_text("of the user's own: https://a:b@c\n")
    (tmp_path / "elsewhere").write_text("[a]\n\tsecret = of this host\n")
    (project / ".git" / "config.worktree").symlink_to(tmp_path / "elsewhere")
    credentials.strip(tmp_path)
    for place in places[:2]:
        assert "glcbt" not in place.read_text()
        for key, value in KEPT.items():
            assert git_config(place, key) == value
        assert git_config(place, "include.path") == ""
    assert (project / ".git" / "config.worktree").exists() is False
    assert (project / "config").read_text() == "of the user's own: https://a:b@c\n"
