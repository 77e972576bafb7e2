"""Runs when an interpreter starts, where PYTHONPATH names this directory: watches the event loop of AiiDA's workers.

A stretch of samples of the main thread in which one callback of the event loop is executing code of hpcbridge is time
for which we block the loop. Stretches are appended to the file that HPCBRIDGE_LOOP_LOG names, one JSON object per line.

Asked by a signal, a worker also writes down what it is doing: every thread (SIGUSR1) and every task (SIGUSR2).
"""

import asyncio
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

EVERY = 0.005
SHORTEST = 0.02


OURS = ("/core/hpcbridge/", "/integrations/aiida/hpcbridge_aiida/")


def _ours(frame):
    """The outermost frame of the callback that runs now, and where in hpcbridge it stands; None where it does not."""
    place = None
    while frame is not None:
        code = frame.f_code
        if place is None and any(part in code.co_filename for part in OURS):
            place = f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}"
        if code.co_name == "_run" and code.co_filename.endswith("asyncio/events.py"):
            return (frame, place) if place is not None else None
        frame = frame.f_back
    return None


class _Stretch:
    """Samples of one callback in a row; times in seconds, on the wall and computing."""

    def __init__(self, callback, now, used):
        self.callback, self.places = callback, []
        self._begun = self._last = (now, used)

    def add(self, place, now, used):
        self._last = (now, used)
        if place not in self.places:
            self.places.append(place)

    def write(self, path):
        wall, cpu = (end - begin for begin, end in zip(self._begun, self._last, strict=True))
        if wall >= SHORTEST:
            with Path(path).open("a") as log:
                log.write(json.dumps({"wall": wall, "cpu": cpu, "places": self.places}) + "\n")


def _watch(path, main):
    clock = time.pthread_getcpuclockid(main)
    stretch = None
    while True:
        time.sleep(EVERY)
        now, used = time.perf_counter(), time.clock_gettime(clock)
        callback, place = _ours(sys._current_frames().get(main)) or (None, None)
        if stretch is not None and callback is not stretch.callback:
            stretch.write(path)
            stretch = None
        if callback is not None:
            stretch = stretch or _Stretch(callback, now, used)
            stretch.add(place, now, used)


def _write_tasks(path):
    with Path(path).open("w") as file:
        for task in [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]:
            task.print_stack(file=file)


def _begin():
    path = os.environ.get("HPCBRIDGE_LOOP_LOG")
    if path and sys.argv[-2:] == ["daemon", "worker"]:
        stem = f"{path}.{os.getpid()}"
        faulthandler.register(signal.SIGUSR1, file=Path(f"{stem}.threads").open("w"))  # noqa: SIM115 (open for good)
        signal.signal(signal.SIGUSR2, lambda *_: _write_tasks(f"{stem}.tasks"))
        threading.Thread(target=_watch, args=(path, threading.main_thread().ident), daemon=True).start()


_begin()
