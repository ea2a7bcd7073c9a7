import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("every_optimizer_on_replicas_worker.py")


@pytest.mark.slow
def test_every_optimizer_is_exact_on_replicas():
    """Schedules, exclusion, LARS's ratio: eight steps on two replicas equal those on one device."""
    run = subprocess.run(
        [sys.executable, str(WORKER)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    exact = {line.removeprefix("same: ") for line in run.stdout.splitlines() if "same: " in line}
    names = {"AdamW", "SGD", "LARS"}
    assert names | {f"{name}, half precision" for name in names} <= exact
    assert "LARS, averaged" in exact
