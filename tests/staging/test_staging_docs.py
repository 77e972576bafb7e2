"""The program in docs/staging.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.sandbox import SandboxProcess

PAGE = Path(__file__).parents[2] / "docs" / "staging.md"


def test_the_example_moves_a_directory_there_and_back(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    env = {**os.environ, **sandbox.client_env()}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 files by chunked", "['model.dat']"]
    assert (tmp_path / "results/model.dat").read_text() == (tmp_path / "model.dat").read_text() == "lattice 5.64\n"
