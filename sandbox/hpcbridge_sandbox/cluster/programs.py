"""Programs of this machine that single endpoints need; the cluster has the machine's software and no other."""

from __future__ import annotations

import shutil

from hpcbridge_sandbox.cluster.users import CLUSTER_PATH

NEEDED = {
    "curl": ("S3 staging (transfer/upload and transfer/download)", "curl"),
    "file": ("the type of a file (ops/file)", "file"),
    "bzip2": ("archives compressed with bzip2", "bzip2"),
    "xz": ("archives compressed with xz", "xz-utils"),
}
"""Program -> what fails without it, and the Debian package that has it."""


def missing_programs(path: str = CLUSTER_PATH) -> list[str]:
    """Return one line for every program that is not in ``path``: what will fail, and what to install."""
    return [
        f"the program {program} is missing: {purpose} will fail; install the package {package}"
        for program, (purpose, package) in NEEDED.items()
        if shutil.which(program, path=path) is None
    ]
