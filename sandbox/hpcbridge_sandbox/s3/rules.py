"""Names of the object store's faults.

Each value is a probability from 0 to 1 unless said otherwise:

- ``part_failure``: a part's PUT answers 503 SlowDown, its bytes unread;
- ``part_corruption``: one byte of a part is changed before it is stored;
- ``part_delay``: seconds before a part is read;
- ``part_drop``: the connection ends in the middle of a part's PUT, without an answer;
- ``part_hang``: half of a part is read and nothing is ever answered;
- ``completion_status``: status with which CompleteMultipartUpload answers, nothing done;
- ``completion_error``: CompleteMultipartUpload answers 200 with an error in the body, nothing done;
- ``completion_lost``: CompleteMultipartUpload is done, its answer is a 500;
- ``completion_drop``: CompleteMultipartUpload is done, the connection ends without an answer;
- ``get_failure``: a GET answers 503;
- ``get_truncation``: a GET's body ends half-way;
- ``get_corruption``: one byte of a GET's body is changed;
- ``get_range``: a GET of a range is answered with the range that begins one byte later;
- ``get_hang``: half of a GET's body is sent and nothing follows;
- ``get_delay``: seconds before a GET is answered;
- ``opaque_etags``: 1: ETags of parts have another form than an MD5, 2: they look like one and are none, as in stores
  that encrypt;
- ``count``: how many faults remain to be injected; absent means no end;
- ``down``: the store does not run at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcbridge_sandbox.rules import as_numbers

RULES = frozenset(
    {"part_failure", "part_corruption", "part_delay", "part_drop", "part_hang"}
    | {"completion_status", "completion_error", "completion_lost", "completion_drop"}
    | {"get_failure", "get_truncation", "get_corruption", "get_range", "get_hang", "get_delay"}
    | {"opaque_etags", "count", "down"}
)


def check_rules(rules: Mapping[str, Any]) -> dict[str, float]:
    """*rules* as numbers.

    Raises:
        ValueError: an unknown name, or a value that is not a number of zero or more.
    """
    return as_numbers(rules, RULES, "S3 fault")
