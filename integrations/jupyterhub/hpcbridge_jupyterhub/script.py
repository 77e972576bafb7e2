"""The batch script of a server: the site's prologue, then the node's side, whose text travels in the script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from hpcbridge import JobSpec
from hpcbridge_jupyterhub.clusters import Cluster
from hpcbridge_jupyterhub.options import ServerOptions
from hpcbridge_jupyterhub.state import ServerState

_END = "hpcbridge_singleuser_ends_here"


@cache
def _node_side() -> str:
    text = (Path(__file__).parent / "singleuser.py").read_text(encoding="utf-8")
    assert _END not in text
    return text


def batch_script(cluster: Cluster, command: Sequence[str]) -> str:
    """The script. No secret is in it: those come with the job's environment file."""
    prologue = cluster.prologue.strip()
    words = " ".join(shlex.quote(word) for word in command)
    return (
        "#!/bin/bash\n"
        + (f"{prologue}\n" if prologue else "")
        + f"exec {shlex.quote(cluster.python)} /dev/fd/3 {words} 3<<'{_END}'\n{_node_side()}{_END}\n"
    )


def spec_of(
    cluster: Cluster, options: ServerOptions, state: ServerState, command: Sequence[str], env: Mapping[str, str]
) -> JobSpec:
    """The job. Raises InvalidSpec."""
    return JobSpec(
        script=batch_script(cluster, command),
        name=state.server,
        workdir=state.workdir,
        account=options.account,
        partition=options.partition,
        reservation=options.reservation,
        time=options.time or cluster.time,
        nodes=options.nodes,
        output=state.output,
        # A server is never requeued: nobody would know where; and so its environment file is removed once read.
        directives=(*options.directives(cluster), "--no-requeue", "--open-mode=truncate"),
        env=dict(env),
    )
