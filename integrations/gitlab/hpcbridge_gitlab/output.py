"""What the job's log shows of ours: lines with a mark, beside the bytes of the job itself."""

from __future__ import annotations

import os
import select
import sys

_PARENT = os.getppid()


def runner_is_gone() -> bool:
    """Whether nobody reads our output any more: gitlab-runner was killed, and we are not to keep its job alive."""
    poll = select.poll()
    poll.register(1, 0)
    closed = any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    return closed or os.getppid() != _PARENT


def say(line: str) -> None:
    """One line of ours."""
    sys.stdout.buffer.write(f"hpcbridge: {line}\n".encode())
    sys.stdout.buffer.flush()


def pass_on(data: bytes) -> None:
    """Bytes of the job, as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
