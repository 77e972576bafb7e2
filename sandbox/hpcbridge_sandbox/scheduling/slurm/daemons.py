"""Start and stop Slurm's five daemons inside the cluster's namespaces."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hpcbridge_sandbox.cluster import Cluster, ClusterProcess, CommandResult
from hpcbridge_sandbox.scheduling.slurm.config import (
    CONF,
    HOME,
    NO_DEFAULT_ACCOUNTS,
    NODE,
    Ports,
    account_commands,
    slurm_conf,
    slurmdbd_conf,
)

log = logging.getLogger(__name__)

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 8.0
MUNGE_SOCKET = "/run/munge/munge.socket.2"
"""Debian's default, which Slurm's plugins use; in the cluster's own ``/run``."""

MYSQL_SOCKET = "/run/mysqld/mysqld.sock"
"""Debian's default, which the client library uses for ``localhost``; in the cluster's own ``/run``."""

_MARIADB = ("/usr/bin/mariadb", "--no-defaults", f"--socket={MYSQL_SOCKET}", "--user=root")


class SlurmUnavailable(RuntimeError):
    """Real Slurm cannot be started here; the message says what is missing or what a daemon said last."""


def missing_programs() -> list[str]:
    """Return the programs of a real Slurm that this machine lacks."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nothing listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    return ports


class Daemons:
    """munged, mariadbd, slurmdbd, slurmctld and slurmd, started in that order."""

    def __init__(self, cluster: Cluster, *, default_account: bool) -> None:
        """`default_account`: whether users have an account to fall back on."""
        self._cluster = cluster
        self._default_account = default_account
        self._processes: dict[str, ClusterProcess] = {}
        self.ports = Ports(0, 0, 0)

    async def start(self) -> None:
        """Bring everything up; return when the node takes jobs. Raises `SlurmUnavailable`."""
        if not self._cluster.is_root:
            raise SlurmUnavailable("--scheduler slurm needs root (its jobs run as several users)")
        missing = missing_programs()
        if missing:
            names = ", ".join(missing)
            raise SlurmUnavailable(
                f"--scheduler slurm needs {names}: install the packages slurm-wlm slurmdbd munge mariadb-server"
            )
        self._write_files()
        await asyncio.gather(self._start_munge(), self._start_database())
        await self._start_slurm()

    def _path(self, name: str) -> Path:
        return self._cluster.host_path(f"{HOME}/{name}")

    def _write_files(self) -> None:
        self.ports = Ports(*free_ports(3))
        for name, mode in (
            *(("", 0o755), ("etc", 0o755), ("munge", 0o755), ("spool", 0o755), ("log", 0o755), ("run", 0o755)),
            *(("state", 0o700), ("mysql", 0o700)),
        ):
            self._path(name).mkdir(parents=True, exist_ok=True)
            self._path(name).chmod(mode)
        for name, text, mode in (
            ("etc/slurm.conf", slurm_conf(socket.gethostname(), self.ports), 0o644),
            ("etc/slurmdbd.conf", slurmdbd_conf(self.ports), 0o600),
        ):
            self._path(name).write_text(text)
            self._path(name).chmod(mode)
        key = self._path("munge/munge.key")
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(1024))

    async def _spawn(self, name: str, argv: Sequence[str]) -> ClusterProcess:
        output = f"{HOME}/log/{name}.out"
        process = await self._cluster.spawn_root(
            argv, env={"SLURM_CONF": CONF}, stdout=output, stderr=asyncio.subprocess.STDOUT
        )
        self._processes[name] = process
        return process

    async def _start_munge(self) -> None:
        directory = f"{HOME}/munge"
        await self._checked(["/bin/mkdir", "-p", "-m", "0755", "/run/munge"])
        files = (
            ("socket", MUNGE_SOCKET),
            ("log-file", f"{directory}/munge.log"),
            ("pid-file", f"{HOME}/run/munged.pid"),
        )
        names = [f"--{option}={path}" for option, path in files]
        names += [f"--key-file={directory}/munge.key", f"--seed-file={directory}/munge.seed"]
        await self._spawn("munged", ["/usr/sbin/munged", "--foreground", "--force", "--num-threads=10", *names])
        await self._until("munged", self._munge_answers)

    async def _munge_answers(self) -> bool:
        return (await self._run(["/usr/bin/munge", "--no-input", f"--socket={MUNGE_SOCKET}"])).returncode == 0

    async def _start_database(self) -> None:
        data = f"{HOME}/mysql"
        await self._checked(["/bin/mkdir", "-p", "-m", "0700", "/run/mysqld"])
        if not self._path("mysql/mysql").exists():
            await self._checked(
                [
                    *("/usr/bin/mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"),
                    *("--skip-test-db", "--skip-name-resolve", "--auth-root-authentication-method=socket"),
                ]
            )
        await self._spawn(
            "mariadbd",
            [
                *("/usr/sbin/mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-networking"),
                *(f"--socket={MYSQL_SOCKET}", f"--pid-file={HOME}/run/mariadbd.pid", "--innodb-buffer-pool-size=64M"),
                *(
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-flush-method=nosync",
                    "--innodb-lock-wait-timeout=900",
                    "--skip-log-bin",
                ),
            ],
        )
        await self._until("mariadbd", self._database_answers)

    async def _database_answers(self) -> bool:
        return (await self._run([*_MARIADB, "--execute=SELECT 1"])).returncode == 0

    async def _start_slurm(self) -> None:
        await self._spawn("slurmdbd", ["/usr/sbin/slurmdbd", "-D"])
        await self._until("slurmdbd", lambda: _listens(self.ports.slurmdbd))
        commands = self._path("etc/accounts")
        commands.write_text(account_commands(self._cluster.users.values()))
        result = await self._run(["/bin/sh", "-c", f"sacctmgr -i < {HOME}/etc/accounts"])
        log.debug("sacctmgr: %s %s", result.stdout.decode(), result.stderr.decode())
        if not self._default_account:
            await self._checked([*_MARIADB, "slurm", f"--execute={NO_DEFAULT_ACCOUNTS}"])
        await self._spawn("slurmctld", ["/usr/sbin/slurmctld", "-D"])
        await self._until("slurmctld", lambda: _listens(self.ports.slurmctld))
        await self._give_up_lost_jobs()
        await self._spawn("slurmd", ["/usr/sbin/slurmd", "-D"])
        await self._until("slurmd", self._node_is_idle)

    async def _give_up_lost_jobs(self) -> None:
        """After a restart: jobs that ran are gone with the node, but Slurm would call them RUNNING for minutes.

        They end as NODE_FAIL, or wait again where they may be requeued.
        """
        ran = await self._run(["squeue", "--noheader", "--states=running,suspended,completing", "--format=%i"])
        if not ran.stdout.strip():
            return
        for change in (["State=DOWN", "Reason=restart"], ["State=RESUME"]):
            await self._checked(["scontrol", "update", f"NodeName={NODE}", *change])

    async def _node_is_idle(self) -> bool:
        result = await self._run(["sinfo", "--noheader", "--format=%T"])
        return result.returncode == 0 and result.stdout.split()[:1] in ([b"idle"], [b"mixed"], [b"allocated"])

    async def _run(self, argv: Sequence[str]) -> CommandResult:
        return await self._cluster.run_root(argv, env={"SLURM_CONF": CONF}, timeout=START_TIMEOUT)

    async def _checked(self, argv: Sequence[str]) -> None:
        result = await self._run(argv)
        if result.returncode != 0:
            said = (result.stdout + result.stderr).decode(errors="replace").strip()
            raise SlurmUnavailable(f"{argv[0]} failed: {said[-2000:]}")

    async def _until(self, name: str, ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a daemon is ready. Raises `SlurmUnavailable` with its last words when it ends or is too slow."""
        process = self._processes[name]
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while not await ready():
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise SlurmUnavailable(f"{name} did not start: {self._last_words(name)}")
            await asyncio.sleep(0.05)

    def _last_words(self, name: str) -> str:
        logs = [self._path(f"log/{name}.log"), self._path(f"log/{name}.out"), self._path("munge/munge.log")]
        texts = [path.read_text(errors="replace")[-1500:] for path in logs if path.exists()]
        return "\n".join(texts).strip() or "it said nothing"

    async def stop(self) -> None:
        """End the daemons so that their state is complete; what is left ends with the namespaces."""
        for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            process = self._processes.pop(name, None)
            if process is None or process.returncode is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
            except TimeoutError:
                log.warning("%s did not end in time and was killed", name)
                process.kill()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
