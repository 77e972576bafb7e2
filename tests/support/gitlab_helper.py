"""Stands for the gitlab-runner program on the runner's host: `artifacts-*` and `cache-*`, with its messages and codes.

Run as `python gitlab_helper.py artifacts-uploader --url … --token … --id … --path …`.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import io
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
from pathlib import Path


def main() -> int:
    if sys.argv[1:2] == ["--version"]:
        print("Version: 0.0.0 (stand-in)")
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    for name in ("url", "token", "id", "file", "timeout", "artifact-format", "artifact-type", "name"):
        parser.add_argument(f"--{name}")
    for name in ("path", "exclude"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--untracked", action="store_true")
    options = parser.parse_args()
    return {
        "artifacts-uploader": upload,
        "artifacts-downloader": download,
        "cache-archiver": archive,
        "cache-extractor": extract,
    }[options.command](options)


def matching(pattern: str) -> list[str]:
    if braces := re.search(r"\{([^{}]*)\}", pattern):
        parts = (pattern[: braces.start()] + part + pattern[braces.end() :] for part in braces[1].split(","))
        return [hit for part in parts for hit in matching(part)]
    return glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207 (as the shell writes them)


def chosen(options: argparse.Namespace) -> list[Path]:
    found: dict[str, None] = {}
    for pattern in options.path:
        hits = matching(pattern)
        if not hits:
            print(f"WARNING: {pattern}: no matching files. Ensure that the path is relative to the working directory")
        for hit in hits:
            found[hit] = None
            if Path(hit).is_dir():
                found.update(dict.fromkeys(str(path) for path in sorted(Path(hit).rglob("*"))))
        print(f"{pattern}: found {len(hits)} matching artifact files and directories")
    if options.untracked:
        names = subprocess.run(["git", "ls-files", "-o", "-z"], capture_output=True, check=True).stdout
        found.update(dict.fromkeys(os.fsdecode(name) for name in names.split(b"\0") if name))
    dropped = {hit for pattern in options.exclude for hit in matching(pattern)}
    return [Path(name) for name in found if name not in dropped]


def zipped(files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for path in files:
            target.write(path)
    return buffer.getvalue()


def upload(options: argparse.Namespace) -> int:
    files = chosen(options)
    if not files:
        print("ERROR: No files to upload")
        return 0
    kind, form = options.artifact_type or "archive", options.artifact_format or "zip"
    if form == "gzip":
        data, name = b"".join(gzip.compress(path.read_bytes()) for path in files), f"{kind}.gz"
    else:
        data, name = zipped(files), "artifacts.zip"
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    request = urllib.request.Request(
        f"{options.url}/api/v4/jobs/{options.id}/artifacts?artifact_type={kind}&artifact_format={form}",
        data=head.encode() + data + f"\r\n--{boundary}--\r\n".encode(),
        headers={"JOB-TOKEN": options.token, "Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(f'Uploading artifacts as "{kind}" to coordinator... {answer.status} Created  id={options.id}')
    return 0


def download(options: argparse.Namespace) -> int:
    request = urllib.request.Request(
        f"{options.url}/api/v4/jobs/{options.id}/artifacts", headers={"JOB-TOKEN": options.token}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        print(f"ERROR: Downloading artifacts from coordinator... {error.code}")
        return 1
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        source.extractall(".")
    print("Downloading artifacts from coordinator... ok")
    return 0


def archive(options: argparse.Namespace) -> int:
    files = chosen(options)
    target = Path(options.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(zipped(files))
    print("Created cache")
    return 0


def extract(options: argparse.Namespace) -> int:
    try:
        data = Path(options.file).read_bytes()
    except FileNotFoundError:
        print("WARNING: Cache file does not exist")
        return 1
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        source.extractall(".")
    print("Successfully extracted cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
