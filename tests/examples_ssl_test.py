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


@pytest.mark.slow
@pytest.mark.skipif(
    not (CLINC150 / "data_full.json").exists(), reason="needs CLINC150 beside the checkout"
)
def test_simcse_text(tmp_path):
    tiny = ("--seeds", "0", "--epochs", "1", "--width", "64", "--episodes", "30")
    done = run(tmp_path, "simcse_text.py", "--data_dir", str(CLINC150), *tiny)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "simcse_text.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "simcse_text.json").read_text())
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
    # One epoch shows already, and half of the words cannot be told as easily as all.
    column = "10-way 1-shot"
    learnt = found["accuracy"]["SimCSE, words deleted"][column][0]
    untrained = found["accuracy"]["untrained encoder"][column][0]
    assert learnt > 3 + untrained
    gain = found["simcse"]["over untrained encoder"][column][0]
    assert gain == pytest.approx(learnt - untrained, abs=0.02)
    (alone,), (deleted,) = (
        found["last_loss"][f"SimCSE, {how}"] for how in ("dropout alone", "words deleted")
    )
    assert 0 < alone < deleted
    assert "59/59" in done.stdout and "the same, intents unread: 12000 sentences" in done.stdout


@pytest.mark.slow
def test_simcse_text_says_what_it_lacks(tmp_path):
    done = run(tmp_path, "simcse_text.py", "--data_dir", str(tmp_path))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "no data_full.json" in done.stderr and "--download" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "tfds" / "spoken_digit").exists(), reason="needs spoken_digit beside the checkout"
)
def test_simclr_speech(tmp_path):
    tiny = ("--seeds", "0", "--epochs", "8", "--width", "8", "--episodes", "30")
    done = run(tmp_path, "simclr_speech.py", "--data_dir", str(DATA / "tfds"), *tiny)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "simclr_speech.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "simclr_speech.json").read_text())
    titles = {"log-mel", "untrained encoder", "SimCLR"}
    columns = {"10-way 1-shot", "10-way 5-shot", "kNN", "linear"}
    assert found["accuracy"].keys() == titles
    for rows in found["accuracy"].values():
        assert rows.keys() == {"all", "theo", "yweweler"}
        for row in rows.values():
            assert row.keys() == columns
            for accuracy, half_interval in row.values():
                assert 20 < accuracy <= 100 and 0 < half_interval < 8  # By chance: 10.
        for column in columns:
            of_speakers = [rows[speaker][column][0] for speaker in ("theo", "yweweler")]
            assert rows["all"][column][0] == pytest.approx(sum(of_speakers) / 2, abs=0.02)
    # A few epochs of a narrow encoder show already.
    gain = found["simclr"]["over untrained encoder"]["10-way 5-shot"]
    assert gain[0] > gain[1] > 0
    assert "theo, yweweler for testing" in done.stdout and "SimCLR on 1500 clips" in done.stdout


@pytest.mark.slow
def test_simclr_speech_says_what_it_lacks(tmp_path):
    done = run(tmp_path, "simclr_speech.py", "--data_dir", str(tmp_path))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "spoken_digit is not in" in done.stderr and "--download" in done.stderr
