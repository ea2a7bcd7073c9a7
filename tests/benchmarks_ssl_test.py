"""The self-supervised benchmarks run at a tiny size, in a process and folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"
METHODS = ["SimCLR", "SupCon", "MoCo", "BYOL"]


def run(folder, script, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def mean_and_half(bits, size):
    """Of which images are right, as hexadecimal bits: percent, and half the interval of a proportion."""
    text = "".join(f"{int(digit, 16):04b}" for digit in bits)[:size]
    share = text.count("1") / size
    return 100 * share, 196 * (share * (1 - share) / (size - 1)) ** 0.5


@pytest.mark.slow
def test_steps_are_measured_and_rows_kept(tmp_path):
    tiny = ["--encoder", "conv4", "--batch", "8", "--rounds", "1", "--steps", "2"]
    for methods in (METHODS[:1], METHODS[1:]):
        done = run(tmp_path, "ssl_step.py", *tiny, "--methods", *methods)
        assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads((tmp_path / "ssl_step.json").read_text())
    assert table.keys() == {*(f"{name} conv4 8" for name in METHODS), "pipeline 8"}
    for row in table.values():
        assert all(seconds > 0 for seconds in row["seconds"].values())
    assert {"fit", "networks", "encoder"} <= table["MoCo conv4 8"]["seconds"].keys()
    assert {"in the model", "tf.data"} <= table["pipeline 8"]["seconds"].keys()
    text = (tmp_path / "ssl_step.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and " conv4 " in line]
    assert [row.split()[1] for row in rows] == METHODS
    seconds = table["BYOL conv4 8"]["seconds"]
    cells = [cell.strip() for cell in rows[METHODS.index("BYOL")].split("|")]
    assert cells[4] == f"{8 / seconds['fit']:,.1f}"
    assert cells[8] == f"{100 * (seconds['fit'] / seconds['networks'] - 1):+.1f}%"
    assert (tmp_path / "ssl_step.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cost_of_probes_and_of_large_batches_is_measured(tmp_path):
    sizes = ["--samples", "512", "--train", "64", "--test", "32", "--health", "32", "--rounds", "1"]
    done = run(tmp_path, "probes.py", *sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == ["KNNProbe", "LinearProbe", "RepresentationHealth"]
    assert all(float(row[3]) > 0 for row in rows)
    sizes = ["--epochs", "1", "--samples", "512", "--plain_samples", "512"]
    done = run(tmp_path, "epoch_ends.py", *sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if "SimCLR |" in line]
    assert [row[5].strip() for row in rows] == ["0 of 1"]
    done = run(tmp_path, "large_batch.py", "--rows", "32:0", "32:8", "--steps", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| 32")]
    assert [row[2].strip() for row in rows] == ["all", "8"]
    whole, parts = (float(row[5]) for row in rows)
    assert whole == pytest.approx(parts, rel=0.1)  # Of other views.


@pytest.mark.slow
@pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)
def test_methods_on_cifar10_go_on_where_they_stopped(tmp_path):
    """A run that was cut off after an epoch ends as one that was not, to the bit."""
    tiny = (
        "--train_size 320 --test_size 64 --batch 32 --k 10 --epochs 2 --methods MoCo "
        f"--data_dir {TFDS}"
    ).split()
    done = run(tmp_path, "cifar10_ssl.py", *tiny, "--work", "straight")
    assert done.returncode == 0, done.stderr[-3000:]
    cut = run(tmp_path, "cifar10_ssl.py", *tiny, "--work", "resumed", "--stop_after", "1")
    assert cut.returncode == 0, cut.stderr[-3000:]
    assert "1 epochs" in cut.stdout and "2 epochs" not in cut.stdout
    done = run(tmp_path, "cifar10_ssl.py", *tiny, "--work", "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 epochs" not in done.stdout and "2 epochs" in done.stdout

    records = {}
    for folder in ("straight", "resumed"):
        for name in ("raw pixels", "untrained encoder", "MoCo"):
            record = json.loads((tmp_path / folder / f"{name}_0.json").read_text())
            records[folder, name] = record
            assert all(len(bits) == 16 for bits in record["hits"].values())
    straight, resumed = records["straight", "MoCo"], records["resumed", "MoCo"]
    assert len(straight["loss"]) == 2 and straight["curve"].keys() == {"1", "2"}
    for key in ("loss", "curve", "hits"):
        assert straight[key] == resumed[key]
    rows = json.loads((tmp_path / "resumed" / "cifar10_ssl.json").read_text())
    assert [row["method"] for row in rows] == ["raw pixels", "untrained encoder", "MoCo"]
    for row in rows:
        hits = records["straight", row["method"]]["hits"]
        for measure in ("knn", "linear", "linear_10"):
            np.testing.assert_allclose(row[measure], mean_and_half(hits[measure], 64), atol=0.006)
    assert "| MoCo | 0 | 2 |" in (tmp_path / "resumed" / "cifar10_ssl.md").read_text()
    picture = (tmp_path / "resumed" / "cifar10_ssl.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    other = run(tmp_path, "cifar10_ssl.py", *tiny, "--work", "resumed", "--batch", "16")
    assert other.returncode != 0 and "other settings" in other.stderr
