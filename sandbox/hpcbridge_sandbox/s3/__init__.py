"""S3 staging area of the sandbox: an OpenStack Swift with its S3 interface on a loopback port.

The processes start with the first transfer (about two seconds) and end with the sandbox. Objects are kept in the state
directory, so a restarted sandbox still serves the URLs it gave out, on the port it had if that is free.
"""

from hpcbridge_sandbox.s3.store import ObjectStore, StoreUnavailable

__all__ = ["ObjectStore", "StoreUnavailable"]
