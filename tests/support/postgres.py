"""A PostgreSQL of the tests' own, which listens on a socket in its own directory and nowhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from local_airflow import die_with_parent

_OWNER = "postgres"
# A database of one test session: what a crash of the machine would lose does not matter.
_SETTINGS = ("listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


def postgres_programs() -> Path | None:
    """The directory of the newest PostgreSQL server's programs (Debian keeps them off the PATH), None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def start_postgres(programs: Path) -> Iterator[str]:
    """A server with an empty database; yields its SQLAlchemy URL (psycopg2)."""
    # It refuses to run as root: then the user does whom Debian's package has made.
    owner = _OWNER if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="hpcbridge-postgres-"))
    data = home / "data"
    try:
        if owner:
            shutil.chown(home, owner, owner)
        subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username", _OWNER, "--auth", "trust", "--no-sync", "-E", "UTF8"],
            user=owner,
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        with (home / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", home, *settings],
                user=owner,
                cwd=home,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # one prctl call: no lock is taken
            )
        try:
            _make_database(programs, home, server)
            yield f"postgresql+psycopg2://{_OWNER}@/airflow?host={home}"
        finally:
            server.send_signal(signal.SIGINT)  # clients are sent away
            server.wait(30)
    finally:
        shutil.rmtree(home)


def _make_database(programs: Path, home: Path, server: subprocess.Popen[bytes]) -> None:
    for _ in range(20):
        command = [programs / "pg_isready", "--host", home, "--timeout", "3"]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0:
            break
        if server.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start\n{(home / 'server.log').read_text()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(1)
    subprocess.run([programs / "createdb", "--host", home, "--username", _OWNER, "airflow"], check=True)
