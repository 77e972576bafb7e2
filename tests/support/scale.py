"""Whether a run proves the full figures (`make prove-<part>`) or a short form of the same promises (`make test`)."""

import os

PROVE: bool = os.environ.get("HPCBRIDGE_PROVE", "") not in ("", "0")
"""True when HPCBRIDGE_PROVE is set to anything but 0; tests choose their sizes and time constants by it."""
