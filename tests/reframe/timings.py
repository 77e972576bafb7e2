"""Imported by a site configuration: how long `submit` and `poll` keep ReFrame waiting, written down at the end."""

import atexit
import json
import time
from pathlib import Path

import hpcbridge_reframe

took = {"submit": [], "poll": []}


def _timed(name):
    inner = getattr(hpcbridge_reframe.FirecrestScheduler, name)

    def outer(*args):
        begun = time.perf_counter()
        try:
            return inner(*args)
        finally:
            took[name].append(time.perf_counter() - begun)

    setattr(hpcbridge_reframe.FirecrestScheduler, name, outer)


for each in took:
    _timed(each)
atexit.register(lambda: Path("timings.json").write_text(json.dumps(took)))
