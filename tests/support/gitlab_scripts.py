"""The scripts of a job's stages, as gitlab-runner's bash writer makes them (17.9 and 19.3), and the job itself."""

from __future__ import annotations

import posixpath
import shlex
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

FORMS = ("17.9", "19.3")

PROJECT = "group/project"


@dataclass
class Recipe:
    """A .gitlab-ci.yml job, in short."""

    script: list[str]
    after_script: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    cache: list[dict[str, Any]] = field(default_factory=list)
    dependencies: list[dict[str, Any]] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    id_tokens: dict[str, str] = field(default_factory=dict)
    timeout: int = 3600
    project: str = PROJECT
    project_id: int = 7
    sha: str = ""
    git: bool = True

    def response(self, number: int, token: str, url: str) -> dict[str, Any]:
        """What `POST /jobs/request` answers; JOB_RESPONSE_FILE is the same."""
        parts = urlsplit(url)
        public = {
            "CI": "true",
            "CI_JOB_ID": str(number),
            "CI_PROJECT_PATH": self.project,
            "CI_SERVER_URL": url,
            "CI_JOB_TIMEOUT": str(self.timeout),
            "GIT_STRATEGY": "fetch" if self.git else "none",
        } | self.variables
        hidden = {"CI_JOB_TOKEN": token} | self.secrets
        steps = [("script", self.script, "on_success"), ("after_script", self.after_script, "always")]
        return {
            "id": number,
            "token": token,
            "allow_git_fetch": True,
            "job_info": {
                "id": number,
                "name": "job",
                "stage": "test",
                "project_id": self.project_id,
                "project_name": "project",
            },
            "git_info": {
                "repo_url": f"{parts.scheme}://gitlab-ci-token:{token}@{parts.netloc}/{self.project}.git",
                "ref": "main",
                "ref_type": "branch",
                "sha": self.sha,
                "before_sha": "0" * 40,
                "depth": 20,
                "refspecs": ["+refs/heads/main:refs/remotes/origin/main"],
            },
            "runner_info": {"timeout": self.timeout, "runner_session_url": ""},
            "variables": [
                *({"key": k, "value": v, "public": True, "masked": False} for k, v in public.items()),
                *({"key": k, "value": v, "public": False, "masked": True} for k, v in hidden.items()),
            ],
            "steps": [
                {
                    "name": name,
                    "script": lines,
                    "timeout": self.timeout,
                    "when": when,
                    "allow_failure": name != "script",
                }
                for name, lines, when in steps
                if lines
            ],
            "artifacts": self.artifacts,
            "cache": self.cache,
            "dependencies": self.dependencies,
            "services": [{"name": name} for name in self.services],
            "image": {},
            "hooks": self.hooks,
            "credentials": [],
            "features": {"trace_sections": True, "failure_reasons": ["script_failure", "runner_system_failure"]},
        }


class Writer:
    """Makes the scripts of one job. `builds` and `cache` are what config_exec has answered."""

    def __init__(self, response: dict[str, Any], url: str, builds: str, cache: str, form: str) -> None:
        self.response, self.url, self.form = response, url, form
        path = urlsplit(response["git_info"]["repo_url"]).path.strip("/").removesuffix(".git")
        self.project = f"{builds}/{path}"
        self.temporary = f"{self.project}.tmp"
        self.cache = f"{cache}/{path}"
        self.variables = {item["key"]: item["value"] for item in response["variables"]}

    def stage(self, name: str) -> bytes | None:
        """The script of a stage; None when it is skipped."""
        lines: list[str] | None = getattr(self, f"_{name.replace('-', '_')}")()
        return self._finish(lines) if lines is not None else None

    def _finish(self, lines: list[str]) -> bytes:
        exports = [f"export {name}={quoted(value)}" for name, value in self.variables.items()]
        exports += [f"export CI_PROJECT_DIR={quoted(self.project)}", f"export CI_BUILDS_DIR={quoted(self.project)}"]
        exports += [f"mkdir -p {quoted(self.temporary)}"]
        body = "\n".join([*exports, *lines]) + "\n"
        evaluated = f": | eval {ansi(body)}\n" if self.form == "17.9" else f": | (eval {ansi(body)})\n"
        head = "#!/usr/bin/env bash\n\ntrap exit 1 TERM\n\n"
        options = "if set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit\nset +o noclobber\n"
        return (head + options + evaluated + "exit 0\n").encode("utf-8", "surrogateescape")

    def _prepare_script(self) -> list[str]:
        return ['echo "Running on $(hostname)..."']

    def _clear_worktree(self) -> list[str]:
        return [f"rm -rf {quoted(self.project)}"]

    def _get_sources(self) -> list[str]:
        hooks = [line for hook in self.response["hooks"] for line in hook["script"]]
        if self.variables["GIT_STRATEGY"] == "none":
            return [*hooks, f"mkdir -p {quoted(self.project)}"]
        git, project = self.response["git_info"], quoted(self.project)
        url = quoted(git["repo_url"])
        return [
            *hooks,
            "echo 'Fetching changes...'",
            f"mkdir -p {project}",
            f"rm -f {quoted(self.project + '/.git/index.lock')}",
            f"git init -q {project}",
            f"cd {project}",
            f"git remote set-url origin {url} 2>/dev/null || git remote add origin {url}",
            f"git fetch -q --no-tags origin {' '.join(quoted(spec) for spec in git['refspecs'])}",
            f"git checkout -q -f --detach {git['sha']}",
            "git clean -qffdx",
            f"echo 'Checking out {git['sha'][:8]} as detached HEAD'",
        ]

    def _restore_cache(self) -> list[str] | None:
        lines = []
        for item in self.response["cache"]:
            if item.get("policy") != "push":
                lines += self._helper(
                    f"Checking cache for {item['key']}...", ["cache-extractor", "--file", self._file(item)]
                )
        return [f"cd {quoted(self.project)}", *lines] if lines else None

    def _download_artifacts(self) -> list[str] | None:
        lines = []
        for item in self.response["dependencies"]:
            words = ["artifacts-downloader", "--url", self.url, "--token", item["token"], "--id", str(item["id"])]
            lines += self._helper(f"Downloading artifacts for {item['name']}...", words)
        return [f"cd {quoted(self.project)}", *lines] if lines else None

    def _user(self, name: str) -> list[str] | None:
        step = next((step for step in self.response["steps"] if step["name"] == name), None)
        if step is None:
            return None
        lines = [f"cd {quoted(self.project)}"]
        for command in step["script"]:
            lines += [f"echo {ansi(f'$ {command.splitlines()[0]}')}", command]
        return lines

    def _step_script(self) -> list[str] | None:
        return self._user("script")

    _build_script = _step_script

    def _after_script(self) -> list[str] | None:
        return self._user("after_script")

    def _archive_cache(self, success: bool = True) -> list[str] | None:
        lines = []
        for item in self.response["cache"]:
            if item.get("policy") != "pull" and item.get("when", "on_success") in (
                "always",
                "on_success" if success else "on_failure",
            ):
                words = ["cache-archiver", "--file", self._file(item), "--timeout", "10"]
                lines += self._helper(f"Creating cache {item['key']}...", [*words, *self._paths(item)])
        return [f"cd {quoted(self.project)}", *lines] if lines else None

    def _archive_cache_on_failure(self) -> list[str] | None:
        return self._archive_cache(success=False)

    def _upload_artifacts_on_success(self, success: bool = True) -> list[str] | None:
        lines = []
        for item in self.response["artifacts"]:
            if item.get("when", "on_success") in ("always", "on_success" if success else "on_failure"):
                words = ["artifacts-uploader", "--url", self.url, "--token", self.response["token"]]
                words += ["--id", str(self.response["id"]), *self._paths(item)]
                words += ["--artifact-format", item.get("artifact_format", "zip")]
                words += ["--artifact-type", item.get("artifact_type", "archive")]
                lines += self._helper("Uploading artifacts...", words)
        return [f"cd {quoted(self.project)}", *lines] if lines else None

    def _upload_artifacts_on_failure(self) -> list[str] | None:
        return self._upload_artifacts_on_success(success=False)

    def _cleanup_file_variables(self) -> list[str]:
        return [f"rm -rf {quoted(self.temporary)}"]

    def _paths(self, item: dict[str, Any]) -> list[str]:
        words = [word for path in item.get("paths") or () for word in ("--path", path)]
        words += [word for path in item.get("exclude") or () for word in ("--exclude", path)]
        return [*words, *(["--untracked"] if item.get("untracked") else [])]

    def _file(self, item: dict[str, Any]) -> str:
        return posixpath.relpath(f"{self.cache}/{item['key']}/cache.zip", self.project)

    def _helper(self, title: str, words: list[str]) -> list[str]:
        """As the runner does it: without the program there is a warning, and a green job."""
        allowed = " || echo 'Failed: no cache'" if words[0].startswith("cache") else ""
        return [
            "if gitlab-runner --version >/dev/null 2>/dev/null; then",
            f"echo {ansi(title)}",
            " ".join(quoted(word) for word in ["gitlab-runner", *words]) + allowed,
            "else",
            "echo 'Missing gitlab-runner. The stage is disabled.'",
            "fi",
        ]


def quoted(text: str) -> str:
    """One word of a shell command."""
    return shlex.quote(text)


def ansi(text: str) -> str:
    """$'…', as the runner quotes a whole script."""
    out = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return f"$'{out}'"
