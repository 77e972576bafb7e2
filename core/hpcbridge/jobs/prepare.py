"""From a specification to the REST call: the guarded script, its private files on the system, the body of the POST."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import InvalidSpec, PathNotFound
from hpcbridge.jobs import guard
from hpcbridge.jobs.guard import Interpreter, Places
from hpcbridge.jobs.spec import SCRIPT_MAX

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """The body of the POST's `job`, and the array expression that it carries (None for a single job)."""

    body: dict[str, Any]
    array: str | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The batch script, and the text of a script file that must be there when it starts (None: no such file)."""

    batch: str
    script_file: str | None
    directives: tuple[str, ...]


def render(spec: JobSpec, places: Places, user_script: str) -> Rendered:
    """Put the guard around `user_script` (the text of `spec.script`, or of the file at `spec.script_path`)."""
    own = guard.directives_in(user_script)
    added = guard.spec_directives(spec)
    directives = (*own, *added)
    keep = guard.may_come_again(directives)
    env = bool(spec.env)
    interpreter = Interpreter.of(user_script)
    if spec.script is not None and interpreter.is_shell:
        return Rendered(guard.guarded(user_script, places, added, env=env, keep_env=keep), None, directives)
    path = spec.script_path or places.script
    batch = guard.wrapper(path, interpreter, places, directives, env=env, keep_env=keep)
    return Rendered(batch, None if spec.script_path else user_script, directives)


def call(spec: JobSpec, name: str, rendered: Rendered, mode: str, places: Places) -> dict[str, Any]:
    """The body of the POST's `job` for a scheduler in `mode` ssh, hybrid or rest. Raises InvalidSpec."""
    fields: dict[str, Any] = guard.rest_fields(rendered.directives) if mode == "rest" else {}
    own = {
        "account": spec.account,
        "partition": spec.partition,
        "reservation": spec.reservation,
        "constraints": spec.constraint,
        "standardOutput": spec.output,
        "standardError": spec.error,
    }
    body = fields | {field: value for field, value in own.items() if value is not None}
    if mode == "hybrid":
        if any(character.isspace() for character in places.folder):
            raise InvalidSpec("On this system the work directory must not contain spaces", path=places.workdir)
        body["scriptPath"] = places.batch
    else:
        body["script"] = rendered.batch
    return body | {"name": name, "workingDirectory": spec.workdir}


async def prepare(client: FirecrestClient, system: str, spec: JobSpec, name: str, mode: str) -> Prepared:
    """Read the script where it is, upload what the job will need, and make the body.

    Everything here may be repeated. Raises InvalidSpec, PathNotFound (no such `script_path`) and what the file
    operations raise.
    """
    assert spec.workdir is not None
    places = Places(spec.workdir, name)
    user_script = spec.script if spec.script is not None else await _read_script(client, system, spec)
    rendered = render(spec, places, user_script)
    body = call(spec, name, rendered, mode, places)
    files = {places.script: rendered.script_file, places.batch: rendered.batch if mode == "hybrid" else None}
    if spec.env or any(text is not None for text in files.values()):
        await client.mkdir(system, places.folder, parents=True)
    for path, text in files.items():
        if text is not None:
            await client.upload(system, places.folder, path.rpartition("/")[2], text.encode())
    if spec.env:
        await _upload_environment(client, system, spec, places)
    return Prepared(body, guard.array_in(rendered.directives))


async def _read_script(client: FirecrestClient, system: str, spec: JobSpec) -> str:
    assert spec.script_path is not None
    data = await client.download(system, spec.script_path)
    if len(data) > SCRIPT_MAX:
        raise InvalidSpec(f"The script is larger than {SCRIPT_MAX} bytes", system=system, path=spec.script_path)
    return data.decode("utf-8", "replace")  # only its first line and its directives are used


async def _upload_environment(client: FirecrestClient, system: str, spec: JobSpec, places: Places) -> None:
    """The directory is closed to others before the file with the values appears in it."""
    await client.mkdir(system, places.private, parents=True)
    await client.chmod(system, places.private, "700")
    await client.upload(system, places.private, "env", guard.environment_file(spec.env))
    await client.chmod(system, f"{places.private}/env", "600")


async def remove_environment(client: FirecrestClient, system: str, env_path: str) -> None:
    """Remove what `Submitted.env_path` names, once the job has ended; nothing there is no error."""
    try:
        await asyncio.shield(client.rm(system, env_path))
    except PathNotFound:
        return
