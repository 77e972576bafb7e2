"""The page about `hpcbridge run`, and the examples for CI services, work as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.docs import ROOT, environment, run_snippet, snippets
from support.runs import Runs
from support.sandbox import SandboxProcess

CI = ROOT / "examples/ci"


@pytest.fixture
def checkout(sandbox: SandboxProcess, tmp_path: Path) -> Path:
    """A checkout of a project that uses the example's script."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "data/model.txt").write_text("lattice 5.63\n")
    shutil.copy(CI / "test.sh", tmp_path / "ci/test.sh")
    variables = "".join(f"export {name}='{value}'\n" for name, value in sandbox.client_env("alice").items())
    (tmp_path / "sandbox.env").write_text(variables)
    return tmp_path


def step(checkout: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A step as a CI service runs it: bash that stops at the first failure."""
    env = environment(checkout) | more
    command = f"source ./sandbox.env; cat > step.sh <<'END'\n{script}\nEND\nexec bash -e step.sh"
    done = subprocess.run(
        ["bash", "-c", command], env=env, cwd=checkout, capture_output=True, text=True, timeout=200, check=False
    )
    print(f"{script}\n--- {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def test_the_page_works_as_it_stands(checkout: Path) -> None:
    printed = [
        run_snippet(language, text, checkout) for language, _, text in snippets("docs/run.md") if language == "sh"
    ]
    assert "checked on" in printed[0]
    assert printed[0].rstrip().endswith("2")
    assert "exit code 3" in printed[1]
    assert "checked on" in printed[2]
    assert "words.txt" in printed[2]


def test_the_github_workflow(checkout: Path) -> None:
    workflow = yaml.safe_load((CI / "github/hpc-tests.yml").read_text())
    steps = {each.get("name"): each for each in workflow["jobs"]["hpc-tests"]["steps"]}
    test, end = steps["Test on the cluster"]["run"], steps["End the job"]["run"]
    github = {"GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "1", "GITHUB_JOB": "hpc-tests"}
    good = step(checkout, test, **github, GITHUB_OUTPUT=str(checkout / "outputs"))
    assert good.returncode == 0
    assert "testing on" in good.stdout
    assert "<testsuite>" in (checkout / "results/model.xml").read_text()
    assert "exit-code=0" in (checkout / "outputs").read_text()
    assert step(checkout, end, **github).returncode == 0
    (checkout / "data/model.txt").write_text("nothing\n")
    assert step(checkout, test, **github).returncode == 1
    assert "<failure" in (checkout / "results/model.xml").read_text()


def test_the_gitlab_pipeline(checkout: Path, sandbox: SandboxProcess) -> None:
    pipeline = yaml.safe_load((CI / "gitlab/.gitlab-ci.yml").read_text())
    gitlab = {"GITLAB_CI": "true", "CI_JOB_ID": "1", "CI_JOB_NAME": "hpc-tests"}

    def script(job: str, part: str = "script") -> str:
        return "\n".join(line for line in pipeline[job][part] if not line.startswith("pip "))

    assert step(checkout, script("hpc-tests"), **gitlab).returncode == 0
    assert (checkout / "results/model.xml").exists()
    assert step(checkout, script("hpc-tests", "after_script"), **gitlab, CI_JOB_STATUS="canceled").returncode == 0
    shutil.rmtree(checkout / "results")
    assert step(checkout, script("long-submit"), **gitlab).returncode == 0
    collect = script("long-collect").replace("collect", "collect --wait")  # else it may come too early, with 75
    assert "testing on" in step(checkout, collect, **gitlab).stdout
    assert (checkout / "results/model.xml").exists()


def test_the_jenkinsfile(checkout: Path) -> None:
    texts = re.findall(r"sh '''(.*?)'''", (CI / "jenkins/Jenkinsfile").read_text(), re.DOTALL)
    (test,) = [text.replace("\\\\", "\\").replace(".venv/bin/", "") for text in texts if "hpcbridge run" in text]
    assert step(checkout, test, JENKINS_URL="https://ci.example.org", BUILD_TAG="x").returncode == 0
    assert (checkout / "results/model.xml").exists()


def test_the_script_in_python(checkout: Path, sandbox: SandboxProcess) -> None:
    runs = Runs(sandbox, checkout)
    command = f"{sys.executable} {CI / 'ci_script.py'} --system {sandbox.system} job.sh"
    runs.script("echo hello from the job")
    good = step(checkout, command, CI_JOB_ID=runs.name)
    assert good.returncode == 0
    assert "hello from the job" in good.stdout
    runs.script("exit 3")
    bad = step(checkout, command, CI_JOB_ID=runs.name + "b")
    assert bad.returncode == 1
    assert "exit code 3" in bad.stderr
    assert step(checkout, command.replace(sandbox.system, "nowhere")).returncode == 1
