"""The examples of text and of speech run at a tiny size, and write what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
CLINC150 = DATA / "text" / "clinc150"
TFDS = DATA / "tfds"


def run(folder, script, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def result(folder, script, *arguments):
    """What a run printed and wrote, with its picture there."""
    done = run(folder, f"{script}.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    assert (folder / f"{script}.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout, json.loads((folder / f"{script}.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not CLINC150.exists(), reason="needs CLINC150 beside the checkout")
def test_simcse_text(tmp_path):
    printed, found = result(
        tmp_path, "simcse_text", "--data_dir", str(CLINC150),
        "--seeds", "0", "--epochs", "1", "--width", "64", "--episodes", "30",
    )  # fmt: skip
    assert found["accuracy"].keys() == {
        "bag of words", "tf-idf", "tf-idf, LSA", "untrained encoder", "SimCSE, dropout alone",
        "SimCSE, words deleted", "the same, intents unread",
    }  # fmt: skip
    columns = {f"{ways}-way {shots}-shot" for ways in (5, 10) for shots in (1, 5)}
    columns |= {"kNN, 10 each", "kNN, 100 each"}
    for row in found["accuracy"].values():
        assert row.keys() == columns
        for accuracy, half_interval in row.values():
            assert 25 < accuracy <= 100 and 0 < half_interval < 8  # By chance: 20, 10 or 3.
    assert found["accuracy"]["tf-idf"]["kNN, 100 each"][0] > 85
    # Learning from one epoch is visible, and half of the words cannot be told as easily as all.
    learnt = found["accuracy"]["SimCSE, words deleted"]["10-way 1-shot"][0]
    assert learnt > 3 + found["accuracy"]["untrained encoder"]["10-way 1-shot"][0]
    (alone,), (deleted,) = (
        found["last_loss"][f"SimCSE, {how}"] for how in ("dropout alone", "words deleted")
    )
    assert 0 < alone < deleted
    gain = found["simcse"]["over untrained encoder"]["10-way 1-shot"][0]
    other = found["accuracy"]["untrained encoder"]["10-way 1-shot"][0]
    assert gain == pytest.approx(learnt - other, abs=0.02)
    assert "59/59" in printed and "the same, intents unread: 12000 sentences" in printed


@pytest.mark.slow
def test_simcse_text_says_what_it_lacks(tmp_path):
    done = run(tmp_path, "simcse_text.py", "--data_dir", str(tmp_path))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "no data_full.json" in done.stderr and "--download" in done.stderr
