"""What tests need of the machine: without it they are skipped, saying what to install; in CI that is a failure."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "bwrap": "bubblewrap",
    "bzip2": "bzip2",
    "curl": "curl",
    "file": "file",
    "gcc": "gcc",
    "make": "make",
    "mariadbd": "mariadb-server",
    "mkfs.ext4": "e2fsprogs",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "strace": "strace",
    "xz": "xz-utils",
}
"""Program -> Debian package."""


def require(*programs: str, purpose: str = "this test") -> None:
    """Skip the calling test where one of `programs` is not installed; fail it there when CI=true."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        give_up(f"{purpose} needs {', '.join(missing)}: apt-get install {packages}")


def give_up(reason: str) -> None:
    """Skip, or fail when CI=true: there nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
