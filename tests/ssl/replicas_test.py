"""One gradient on one device, on two replicas in even and uneven shares, and in micro-batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_methods import METHODS

WORKER = Path(__file__).with_name("replicas_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["", "3"], ids=["whole", "in parts"])
def test_every_method_is_exact_on_replicas(size):
    cases = [f"{name}/{size}" for name in METHODS]
    run = subprocess.run(
        [sys.executable, str(WORKER), *cases],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.splitlines() == [f"same: {case}" for case in cases]
