import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_sslmeta as ksm

WORKER = Path(__file__).with_name("every_loss_on_replicas_worker.py")


@pytest.mark.slow
def test_every_loss_is_exact_on_replicas():
    """Value, gradient of each sample, three steps: 2 and 4 replicas, even, uneven and empty shares; with
    sample weights; in half precision. With `gather=False` the fault found is that of local negatives."""
    run = subprocess.run(
        [sys.executable, str(WORKER)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    exact = {line.removeprefix("same: ") for line in run.stdout.splitlines() if "same: " in line}
    losses = {name for name in ksm.losses.__all__ if not name.endswith("Loss")}
    assert losses <= exact and len(exact) >= len(losses) + 9
    local = {line.split(": ")[1] for line in run.stdout.splitlines() if "local by choice" in line}
    assert {"NTXent", "CLIP", "SigLIP", "TripletHard", "VICReg", "KoLeo"} <= local
