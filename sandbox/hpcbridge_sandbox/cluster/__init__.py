"""The "cluster": users with homes, and the one way to run a command as one of them.

Nothing of this machine but its software is visible inside: not the checkout, not the client's home, not its temporary
directory. See `view` for what is mounted where and `keeper` for the process that starts everything.
"""

from __future__ import annotations

from hpcbridge_sandbox.cluster.cluster import Cluster, ClusterProcess, CommandResult
from hpcbridge_sandbox.cluster.users import User

__all__ = ["Cluster", "ClusterProcess", "CommandResult", "User"]
