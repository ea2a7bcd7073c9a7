"""The examples of self-supervision run at a tiny size, and write what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLINC = ROOT.parent / "shared" / "data" / "text" / "clinc150"


@pytest.mark.slow
@pytest.mark.skipif(
    not (CLINC / "data_full.json").exists(), reason="needs CLINC150 beside the checkout"
)
def test_simcse_text(tmp_path):
    arguments = ["--seeds", "0", "--epochs", "1", "--width", "16", "--episodes", "10"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "simcse_text.py", "--data_dir", CLINC, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    assert "tf-idf" in done.stdout and "untrained encoder" in done.stdout
    assert (tmp_path / "simcse_text.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "simcse_text.json").read_text())
