"""The streamer of a sandbox that moves large files over it: what its jobs run, and the faults they have."""

from hpcbridge_sandbox.streamer.rules import StreamerFaults
from hpcbridge_sandbox.streamer.software import LIBRARY, interpreter, software

__all__ = ["LIBRARY", "StreamerFaults", "interpreter", "software"]
