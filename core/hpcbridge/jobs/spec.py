"""`JobSpec`: what to run and with which resources, checked before anything is sent."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hpcbridge.errors import InvalidName, InvalidPath, InvalidSpec
from hpcbridge.jobs.names import check_label

SCRIPT_MAX = 5_000_000
"""Bytes of a batch script; FirecREST answers 500 above 5 MB."""

ENV_VALUE_MAX = 128 * 1024 - 1
"""Bytes of `NAME=value`: one string of a Linux environment (MAX_ARG_STRLEN without its NUL)."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", re.ASCII)


def _plain(value: str | None) -> str | None:
    """A value that the server puts between single quotes in a shell command, and we into an #SBATCH line."""
    if value is not None and (not value or _CONTROL.search(value) or set(value) & set("'\"\\")):
        raise ValueError("must not be empty nor hold quotes, backslashes or control characters")
    return value


def _absolute(path: str | None) -> str | None:
    if path is not None and (not path.startswith("/") or "/../" in f"{path}/"):
        raise ValueError("must be an absolute path, without .. in it")
    return _plain(path)


def _script(text: str | None) -> str | None:
    if text is None:
        return None
    if not text.startswith("#!"):
        raise ValueError("the first line must start with #! and an interpreter, such as #!/bin/bash")
    if "\r\n" in text:
        raise ValueError("has DOS line breaks (\\r\\n); sbatch wants \\n")
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if len(text.encode("utf-8", "surrogatepass")) > SCRIPT_MAX:
        raise ValueError(f"is larger than {SCRIPT_MAX} bytes; put data into files")
    return text


def _time(value: Any) -> Any:
    """Minutes as an int become Slurm's text; text passes through."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _time_text(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(
        r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}|UNLIMITED|INFINITE)", value, re.ASCII
    ):
        raise ValueError("must be minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    return value


def _array(value: str | None) -> str | None:
    if value is not None and not _ARRAY.fullmatch(value):
        raise ValueError("must be Slurm's array syntax, such as 0-31, 1,5,9 or 0-99:3%10")
    return value


def _directive(line: str) -> str:
    """`--gpus=1`, `gpus=1` and `#SBATCH --gpus=1` all mean the same; kept as `--gpus=1`."""
    text = line.strip()
    text = text.removeprefix("#SBATCH").strip() if text.startswith("#SBATCH") else text
    if not text or _CONTROL.search(text):
        raise ValueError("a directive is one line such as --gpus=1")
    return text if text.startswith("-") else f"--{text}"


def _env(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        # The value may be a secret: it never goes into a message.
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name!r} is not a variable name ([A-Za-z_][A-Za-z0-9_]*)")
        if "\0" in value:
            raise ValueError(f"the value of {name} holds a NUL character")
        if len(name) + 1 + len(value.encode("utf-8", "surrogateescape")) > ENV_VALUE_MAX:
            raise ValueError(
                f"the value of {name} is longer than Linux allows ({ENV_VALUE_MAX} bytes); pass it in a file"
            )
    return values


Plain = Annotated[str | None, AfterValidator(_plain)]


class JobSpec(BaseModel):
    """One batch job (or one array of them).

    Attributes:
        script: text of the batch script, `#!` line first, `#SBATCH` lines as usual. Either this or `script_path`.
        script_path: absolute path of a script on the system; its `#SBATCH` lines are honoured, and it is read again
            when the job starts.
        workdir: absolute path; the job starts there, and its lock is kept there in `.hpcbridge/`. None: the user's own
            directory (resolved by the facade).
        name: label, `[A-Za-z][A-Za-z0-9_.-]*`, at most 40 characters; the job's full name adds a digest to it.
        account, partition, reservation, constraint: as sbatch's options.
        time: limit; minutes as an int, or Slurm's text (`00:30:00`).
        nodes, ntasks: counts.
        array: Slurm's array syntax (`0-31%4`).
        directives: further sbatch options, `--gpus=1` each.
        output, error: files of the standard streams, absolute or relative to `workdir`, with sbatch's % patterns.
            Default: `slurm-%j.out` as Slurm has it.
        env: environment of the job. Values travel in a private file (mode 0600), never in the REST call, the script or
            a command line; bytes that are not UTF-8 are given as surrogate escapes (`os.fsdecode`).

    Fields win over `#SBATCH` lines of the script. Raises InvalidSpec, InvalidName or InvalidPath.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    script: Annotated[str | None, AfterValidator(_script)] = None
    script_path: Annotated[str | None, AfterValidator(_absolute)] = None
    workdir: Annotated[str | None, AfterValidator(_absolute)] = None
    name: str = "job"
    account: Plain = None
    partition: Plain = None
    reservation: Plain = None
    constraint: Plain = None
    time: Annotated[str | None, BeforeValidator(_time), AfterValidator(_time_text)] = None
    nodes: Annotated[int | None, Field(ge=1)] = None
    ntasks: Annotated[int | None, Field(ge=1)] = None
    array: Annotated[str | None, AfterValidator(_array)] = None
    directives: tuple[Annotated[str, AfterValidator(_directive)], ...] = ()
    output: Plain = None
    error: Plain = None
    env: Annotated[dict[str, str], AfterValidator(_env)] = Field(default_factory=dict, repr=False)

    def __init__(self, **fields: Any) -> None:
        """Check all fields."""
        if isinstance(fields.get("name"), str):
            check_label(fields["name"])
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _refusal(error) from None

    @model_validator(mode="after")
    def _one_script(self) -> Self:
        if (self.script is None) == (self.script_path is None):
            raise ValueError("give either script or script_path")
        return self

    def replace(self, **changes: Any) -> JobSpec:
        """A copy with other values, checked again."""
        return JobSpec(**{name: getattr(self, name) for name in self.model_fields_set} | changes)

    @property
    def array_indices(self) -> tuple[int, ...] | None:
        """The indices of the array's tasks in order, None for a single job."""
        return expand_indices(self.array) if self.array else None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything but the values of `env`.

        Those may be secrets, and may change between two runs of the same submit. Fields at their default do not count:
        a field that a later version adds leaves the records of today valid.
        """
        fields = self.model_dump(exclude={"env"}, exclude_defaults=True) | {"env": sorted(self.env)}
        text = json.dumps(fields, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _refusal(error: ValidationError) -> InvalidSpec | InvalidName | InvalidPath:
    parts = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
    message = "Job specification: " + "; ".join(part.replace("Value error, ", "") for part in parts)
    fields = {str(item["loc"][0]) for item in error.errors(include_input=False) if item["loc"]}
    kind = (
        InvalidPath
        if fields and fields <= {"workdir", "script_path"}
        else InvalidName
        if fields == {"name"}
        else InvalidSpec
    )
    return kind(message)


def expand_indices(expression: str) -> tuple[int, ...]:
    """`0-3,8-12:2%4` -> (0, 1, 2, 3, 8, 10, 12). Accepts the ellipsis with which Slurm cuts long lists (`0-9,...`)."""
    indices: set[int] = set()
    for part in expression.partition("%")[0].split(","):
        bounds, _, step = part.strip().partition(":")
        first, dash, last = bounds.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            continue
        indices.update(range(int(first), int(last or first) + 1, int(step) if step.isdigit() and int(step) else 1))
    return tuple(sorted(indices))
