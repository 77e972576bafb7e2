"""What the job's log shows of ours: lines with a mark, beside the bytes of the job itself."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """One line of ours."""
    sys.stdout.buffer.write(f"hpcbridge: {line}\n".encode())
    sys.stdout.buffer.flush()


def pass_on(data: bytes) -> None:
    """Bytes of the job, as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
