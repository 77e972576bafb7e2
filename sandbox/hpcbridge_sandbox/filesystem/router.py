"""``/filesystem/{system}/ops``: one endpoint per file command."""

from __future__ import annotations

from base64 import b64decode
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from hpcbridge_sandbox.context import SandboxDep, SystemCondition, UserDep, healthy_ssh, require_ssh
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.filesystem import commands, models
from hpcbridge_sandbox.filesystem.commands import Shell, text
from hpcbridge_sandbox.filesystem.paths import check_path, requested_path


async def get_shell(
    request: Request,
    user: UserDep,
    sandbox: SandboxDep,
    condition: Annotated[SystemCondition, Depends(healthy_ssh)],
) -> Shell:
    """Dependency of every operation: token, system, health and path are checked, in the real server's order."""
    check_path(condition, await requested_path(request))
    require_ssh(condition)
    return Shell(sandbox.cluster, user)


ShellDep = Annotated[Shell, Depends(get_shell)]
PathQuery = Annotated[str, Query(description="A file or folder path")]
router = APIRouter(prefix="/filesystem/{system_name}/ops", tags=["filesystem"])


@router.get("/ls", response_model=models.GetDirectoryLsResponse)
async def get_ls(
    shell: ShellDep,
    path: PathQuery,
    show_hidden: Annotated[bool, Query(alias="showHidden")] = False,
    numeric_uid: Annotated[bool, Query(alias="numericUid")] = False,
    recursive: bool = False,
    dereference: bool = False,
) -> Response:
    """List the contents of a directory (`ls`)."""
    command = commands.ls_command(
        path, hidden=show_hidden, numeric=numeric_uid, recursive=recursive, dereference=dereference
    )
    result = await shell.run(command)
    return JSONResponse({"output": list(commands.parse_ls(text(result.stdout)))})


def _content(output: str, byte_count: int | None, start: int, end: int) -> dict[str, Any]:
    unit = "bytes" if byte_count else "lines"
    return {"output": {"content": output, "contentType": unit, "startPosition": start, "endPosition": end}}


def _only_one(byte_count: int | None, lines: int | None) -> None:
    if lines and byte_count:
        raise ApiError(400, "Only one of `bytes` or `lines` can be specified.")


@router.get("/head", response_model=models.FileContentResponse)
async def get_head(
    shell: ShellDep,
    path: PathQuery,
    file_bytes: Annotated[int | None, Query(alias="bytes")] = None,
    lines: int | None = None,
    skip_trailing: Annotated[bool, Query(alias="skipTrailing")] = False,
) -> Any:
    """Output the first part of a file (`head`)."""
    _only_one(file_bytes, lines)
    result = await shell.run(commands.part_command("head", path, file_bytes, lines, skip_trailing))
    count = next((number for number in (lines, file_bytes) if number is not None), 10)
    given = lines is not None or file_bytes is not None
    return _content(text(result.stdout), file_bytes, 0, -count if skip_trailing and given else count)


@router.get("/tail", response_model=models.FileContentResponse)
async def get_tail(
    shell: ShellDep,
    path: PathQuery,
    file_bytes: Annotated[int | None, Query(alias="bytes")] = None,
    lines: int | None = None,
    skip_heading: Annotated[bool, Query(alias="skipHeading")] = False,
) -> Any:
    """Output the last part of a file (`tail`)."""
    _only_one(file_bytes, lines)
    result = await shell.run(commands.part_command("tail", path, file_bytes, lines, skip_heading))
    count = next((number for number in (lines, file_bytes) if number is not None), None)
    # Without a number the server says 10, though it means the last ten lines.
    start = 10 if count is None else count if skip_heading else -count
    return _content(text(result.stdout), file_bytes, start, -1)


@router.get("/view", response_model=models.TextResponse)
async def get_view(
    shell: ShellDep, sandbox: SandboxDep, path: PathQuery, size: int | None = None, offset: int | None = 0
) -> Any:
    """View a part of a file."""
    limit = sandbox.settings.max_ops_file_size
    size, offset = limit if size is None else size, offset or 0
    if offset < 0:
        raise ApiError(400, "`offset` value must be an integer value equal or greater than 0")
    if size <= 0:
        raise ApiError(400, "`size` value must be an integer value greater than 0")
    if size > limit:
        raise ApiError(400, f"`size` value must be less than {limit} bytes")
    # Two blocks, because the offset need not be a multiple of the block size.
    result = await shell.run(["dd", f"if={path}", f"bs={size}", f"skip={offset // size}", "count=2"])
    return {"output": commands.view_window(result.stdout, size, offset)}


@router.get("/checksum", response_model=models.GetFileChecksumResponse)
async def get_checksum(shell: ShellDep, path: PathQuery) -> Any:
    """Output the SHA-256 checksum of a file."""
    return {"output": commands.parse_checksum(await shell.run(["sha256sum", "--", path]))}


@router.get("/file", response_model=models.TextResponse)
async def get_file(shell: ShellDep, path: PathQuery) -> Any:
    """Output the type of a file or directory."""
    return {"output": text((await shell.run(["file", "-b", "--", path])).stdout).strip()}


@router.get("/stat", response_model=models.GetFileStatResponse)
async def get_stat(shell: ShellDep, path: PathQuery, dereference: bool = False) -> Any:
    """Output the `stat` of a file."""
    follow = ["--dereference"] if dereference else []
    result = await shell.run(["stat", *follow, "-c", commands.STAT_FORMAT, "--", path])
    return {"output": commands.parse_stat(text(result.stdout))}


@router.delete("/rm", status_code=204, response_model=None)
async def delete_rm(shell: ShellDep, path: PathQuery) -> None:
    """Delete a file or directory (`rm -r`)."""
    await shell.run(["rm", "-r", "--interactive=never", "--", path])


@router.post("/mkdir", status_code=201, response_model=models.FileResponse)
async def post_mkdir(shell: ShellDep, body: models.PostMakeDirRequest) -> Any:
    """Create a directory (`mkdir`)."""
    parents = ["-p"] if body.parent else []
    return {"output": await shell.then_ls(["mkdir", *parents, "--", body.source], body.source)}


@router.post("/symlink", status_code=201, response_model=models.FileResponse)
async def post_symlink(shell: ShellDep, body: models.PostFileSymlinkRequest) -> Any:
    """Create a symbolic link (`ln -s`)."""
    return {"output": await shell.then_ls(["ln", "-s", "--", body.source, body.link_path], body.link_path)}


@router.put("/chmod", response_model=models.FileResponse)
async def put_chmod(shell: ShellDep, body: models.PutFileChmodRequest) -> Any:
    """Change the permission mode of a file (`chmod`)."""
    return {"output": await shell.then_ls(["chmod", "--", body.mode, body.source], body.source)}


@router.put("/chown", response_model=models.FileResponse)
async def put_chown(shell: ShellDep, body: models.PutFileChownRequest) -> Any:
    """Change the ownership of a file (`chown`)."""
    owner = f"{body.owner}:{body.group}"
    return {"output": await shell.then_ls(["chown", "--", owner, body.source], body.source)}


@router.get("/download", response_class=Response)
async def get_download(shell: ShellDep, path: PathQuery) -> Response:
    """Download a small file; in base64 its content must stay under 5 MiB."""
    result = await shell.run(["base64", "--wrap=0", "--", path])
    return Response(b64decode(result.stdout), media_type="application/octet-stream")


@router.post("/upload", status_code=204, response_model=None)
async def post_upload(
    shell: ShellDep,
    sandbox: SandboxDep,
    path: PathQuery,
    file: Annotated[UploadFile, File(description="File to be uploaded as `multipart/form-data`")],
) -> None:
    """Upload a small file. It appears under its name at once and fills up while it is written."""
    content = await file.read()
    if len(content) > sandbox.settings.max_ops_file_size:
        raise ApiError(413, "File to upload is too large.")
    # Without content the real server never ends the command's input, so it runs into the time limit.
    script = 'exec cat > "$1"'
    await shell.run(
        ["bash", "-c", script, "bash", f"{path}/{file.filename}"], input=content or None, hold_stdin=not content
    )


@router.post("/compress", status_code=204, response_model=None)
async def post_compress(shell: ShellDep, body: models.PostCompressRequest) -> None:
    """Compress a file or directory (`tar`)."""
    flag = commands.COMPRESSION_FLAGS[body.compression]
    await shell.run(
        commands.compress_command(body.source, body.target_path, body.match_pattern, flag, body.dereference)
    )


@router.post("/extract", status_code=204, response_model=None)
async def post_extract(shell: ShellDep, body: models.PostExtractRequest) -> None:
    """Extract an archive (`tar`)."""
    flag = commands.COMPRESSION_FLAGS[body.compression]
    await shell.run(["tar", f"-x{flag}f", body.source, "-C", body.target_path])
