"""Files of the object store: configuration, rings and directories of one single-replica OpenStack Swift.

Swift is the reference OpenStack object store; its ``s3api`` filter speaks S3 with real signature checks
(https://docs.openstack.org/swift/latest/middleware.html). One proxy and one account, container and object server are
enough on one machine; replicators, auditors and the expirer are for clusters and are left out.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

REGION = "us-east-1"
"""Region named in signatures; Swift's ``s3api`` default."""

SERVERS = ("account", "container", "object")
"""Storage servers behind the proxy, one ring each."""

_ACCOUNT = "sandbox"
_USER = "firecrest"
_DEVICE = "d1"

_PROXY = """\
[DEFAULT]
swift_dir = {etc}
log_level = WARNING
log_custom_handlers = hpcbridge_sandbox.s3.server.log_to_stderr
max_clients = 1024
client_timeout = 120

[pipeline:main]
pipeline = faults catch_errors gatekeeper s3api tempauth slo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
node_timeout = 60
conn_timeout = 5
object_chunk_size = 1048576
client_chunk_size = 1048576

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:faults]
paste.filter_factory = hpcbridge_sandbox.s3.faults:filter_factory
rules = {faults}

[filter:s3api]
use = egg:swift#s3api
location = {region}
dns_compliant_bucket_names = false
max_upload_part_num = 10000

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin

[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
"""

_STORAGE = """\
[DEFAULT]
swift_dir = {etc}
devices = {devices}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
log_custom_handlers = hpcbridge_sandbox.s3.server.log_to_stderr
max_clients = 1024

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

_OBJECT = """\
network_chunk_size = 1048576
disk_chunk_size = 1048576
mb_per_sync = 4096
threads_per_disk = 0
"""


class NoExtendedAttributes(RuntimeError):
    """No directory at hand keeps extended attributes, in which Swift stores an object's metadata."""


@dataclass(frozen=True)
class StoreLayout:
    """Where a store lives and how its owner signs in."""

    root: Path
    access_key: str
    secret_key: str

    @property
    def etc(self) -> Path:
        """Directory of the configuration files and rings."""
        return self.root / "etc"

    @property
    def devices(self) -> Path:
        """Parent of the one device directory that holds every object."""
        return self.root / "devices"

    @property
    def faults(self) -> Path:
        """JSON file with the faults to inject; absent when there are none."""
        return self.root / "faults.json"

    def config(self, kind: str) -> Path:
        """Configuration file of the server called *kind* (``proxy`` or one of SERVERS)."""
        return self.etc / f"{kind}-server.conf"

    def __repr__(self) -> str:
        """Without the secret key."""
        return f"StoreLayout(root={str(self.root)!r}, access_key={self.access_key!r})"


def keeps_attributes(directory: Path) -> bool:
    """Whether files in *directory* keep ``user.*`` extended attributes (tmpfs does so from Linux 6.6 on)."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as probe:
            os.setxattr(probe.name, "user.swift.metadata", b"probe")
    except OSError:
        return False
    return True


def find_directory(wanted: Path) -> tuple[Path, bool]:
    """Directory for the store's files, and whether it is a temporary one the caller must remove.

    *wanted* is taken where it keeps extended attributes; else a new directory under the usual temporary places.

    Raises:
        NoExtendedAttributes: none of them does.
    """
    wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
    if keeps_attributes(wanted):
        return wanted, False
    tried = [str(wanted)]
    for place in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm"), Path.home()):  # noqa: S108
        tried.append(str(place))
        if place.is_dir() and os.access(place, os.W_OK) and keeps_attributes(place):
            return Path(tempfile.mkdtemp(prefix="hpcbridge-s3-", dir=place)), True
    raise NoExtendedAttributes(f"no place for the object store: no extended attributes in {', '.join(tried)}")


def write_layout(root: Path) -> StoreLayout:
    """Write the configuration under *root*; objects that exist are kept.

    The keys and the hash prefix, which places objects, are made once and read again by a later start.
    """
    layout = _identity(root)
    (layout.devices / _DEVICE).mkdir(parents=True, exist_ok=True, mode=0o700)
    values = {"etc": layout.etc, "devices": layout.devices, "faults": layout.faults, "region": REGION}
    proxy = _PROXY.format(**values, account=_ACCOUNT, user=_USER, secret=layout.secret_key)
    _private(layout.config("proxy"), proxy)
    for kind in SERVERS:
        text = _STORAGE.format(**values, kind=kind)
        _private(layout.config(kind), text + (_OBJECT if kind == "object" else ""))
    return layout


def _identity(root: Path) -> StoreLayout:
    path = root / "etc" / "identity.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        known = json.loads(path.read_text())
    else:
        known = {"version": 1, "secret": secrets.token_hex(20), "prefix": secrets.token_hex(8)}
        _private(path, json.dumps(known))
        _private(
            root / "etc" / "swift.conf",
            f"[swift-hash]\nswift_hash_path_prefix = {known['prefix']}\nswift_hash_path_suffix = sandbox\n"
            "[storage-policy:0]\nname = single\ndefault = yes\n",
        )
    return StoreLayout(root, f"{_ACCOUNT}:{_USER}", known["secret"])


def _private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def write_ring(etc: Path, kind: str, port: int) -> None:
    """Write the ring of the servers of *kind*: one replica on one device behind *port*.

    Only for the store's own process: Swift brings eventlet with it, which does not mix with asyncio and threads.
    """
    from swift.common.ring import RingBuilder

    builder = RingBuilder(2, 1, 0)
    builder.add_dev(
        {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": _DEVICE, "weight": 1.0}
        | {"replication_ip": "127.0.0.1", "replication_port": port}
    )
    builder.rebalance(seed="0")
    builder.get_ring().save(str(etc / f"{kind}.ring.gz"))
