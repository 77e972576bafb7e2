"""Runs when an interpreter starts, where PYTHONPATH names this directory: watches the event loop of AiiDA's workers.

A stretch of samples of the main thread in which one callback of the event loop is executing code of hpcbridge is time
for which we block the loop. What may hit anybody is told apart: the interpreter's garbage collection, and waiting for a
processor that others have. Stretches are appended to the file that HPCBRIDGE_LOOP_LOG names, one JSON object per line,
times in seconds. A file beside it, `.watching`, is touched as long as the watching goes on.

Asked by a signal, a worker also writes down what it is doing: every thread (SIGUSR1) and every task (SIGUSR2).
"""

import asyncio
import faulthandler
import gc
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

EVERY = 0.005
SHORTEST = 0.01
BEAT = 100
"""Samples after which the watching is shown to go on."""

OURS = ("/core/hpcbridge/", "/integrations/aiida/hpcbridge_aiida/")


def _ours(frame):
    """Where in hpcbridge the main thread stands, None where it does not.

    In any frame: AiiDA runs its processes in greenlets, whose stacks do not reach down to the event loop.
    """
    innermost = frame and frame.f_code.co_name
    while frame is not None:
        code = frame.f_code
        if any(part in code.co_filename for part in OURS):
            return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}, in {innermost}"
        frame = frame.f_back
    return None


def _frame_of(thread):
    """The innermost frame of a thread; without collecting garbage meanwhile, by which Python 3.11.2 locks itself up.

    Source: CPython issue 106883, mended in the spring of 2024.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collecting:
            gc.enable()


class _Steps:
    """Counts the callbacks of the event loop, so that two samples can be told to be of the same one."""

    def __init__(self):
        self.count = 0
        run = asyncio.events.Handle._run

        def counted(handle):
            self.count += 1
            return run(handle)

        asyncio.events.Handle._run = counted


class _Garbage:
    """Seconds that collecting garbage has taken so far; nothing else runs meanwhile, the sampling included."""

    def __init__(self):
        self.spent = self._begun = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase, _info):
        now = time.perf_counter()
        if phase == "start":
            self._begun = now
        else:
            self.spent += now - self._begun


class _Stretch:
    """Samples of one callback; each is (wall clock, collecting garbage, computing, waiting for a processor)."""

    def __init__(self, step, sample):
        self.step, self.places = step, []
        self._begun = self._last = sample

    def add(self, place, sample):
        self._last = sample
        if place not in self.places:
            self.places.append(place)

    def write(self, path):
        wall, garbage, ran, queued = (end - begin for begin, end in zip(self._begun, self._last, strict=True))
        if wall >= SHORTEST:
            found = {"ours": wall - garbage - queued, "garbage": garbage, "ran": ran, "queued": queued}
            found["places"] = self.places
            with Path(path).open("a") as log:
                log.write(json.dumps(found) + "\n")


def _watch(path, main, steps, garbage):
    schedule = Path(f"/proc/self/task/{main.native_id}/schedstat")  # nanoseconds: running, waiting to run
    stretch = None
    for number in itertools.count():
        if number % BEAT == 0:
            Path(f"{path}.watching").touch()
        time.sleep(EVERY)
        ran, queued = (int(field) / 1e9 for field in schedule.read_text().split()[:2])
        sample = time.perf_counter(), garbage.spent, ran, queued
        step, place = steps.count, _ours(_frame_of(main.ident))
        if stretch is not None and (place is None or step != stretch.step):
            stretch.write(path)
            stretch = None
        if place is not None:
            stretch = stretch or _Stretch(step, sample)
            stretch.add(place, sample)


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
        watched = (path, threading.main_thread(), _Steps(), _Garbage())
        threading.Thread(target=_watch, args=watched, daemon=True).start()


_begin()
