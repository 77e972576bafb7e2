"""What importing and asking for help costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

_TIMED = "import time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"


def import_seconds(module: str, repeats: int) -> float:
    """Median seconds of `import module` in a fresh interpreter."""
    code = _TIMED.format(module=module)
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)
    ]
    return median(float(run.stdout) for run in runs)


def help_seconds(repeats: int) -> float:
    """Median seconds of `hpcbridge --help`, the interpreter's start included."""
    command = [str(Path(sys.executable).with_name("hpcbridge")), "--help"]
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    return median(times)
