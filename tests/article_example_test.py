"""The article's listings run at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


def run(folder, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "article_cifar10.py", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)
def test_article_cifar10(tmp_path):
    done = run(
        tmp_path, "--data_dir", str(TFDS), "--epochs", "2", "--train_size", "600",
        "--meta_epochs", "1", "--meta_steps", "3", "--episodes", "20", "--seed", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "article_cifar10.json").read_text())
    assert result.keys() == {
        "raw", "untrained", "simclr", "untrained_network", "maml", "seconds"
    }  # fmt: skip
    for features in ("raw", "untrained", "simclr"):
        assert result[features].keys() == {"knn", "linear", "few_shot"}
        for accuracy, half_interval in result[features].values():
            assert 10 < accuracy < 100 and 0 < half_interval < 5
    for network in ("untrained_network", "maml"):
        assert result[network].keys() == {f"after_{k}" for k in range(6)}
        # What a class's number means changes from task to task: before adaptation there is only chance.
        assert 15 < result[network]["after_0"][0] < 35
    assert result["untrained_network"] != result["maml"]
    assert (tmp_path / "article_cifar10.png").read_bytes().startswith(b"\x89PNG")
    for row in ("raw pixels", "untrained encoder", "SimCLR's encoder", "MAML, after 5 steps"):
        assert row in done.stdout


@pytest.mark.slow
def test_article_cifar10_says_what_it_would_download(tmp_path):
    done = run(tmp_path, "--data_dir", str(tmp_path))
    assert done.returncode != 0
    assert " MB " in done.stderr and "--download" in done.stderr and "Traceback" not in done.stderr
