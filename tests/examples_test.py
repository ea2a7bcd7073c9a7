"""Each example runs at a tiny size, in a process and folder of its own, and writes what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


def run(folder, script, *arguments, place="examples"):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, ROOT / place / script, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_quickstart(tmp_path):
    tiny = ("--epochs", "2", "--train_size", "300", "--meta_steps", "2000")
    done = run(tmp_path, "quickstart.py", *tiny, "--seed", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "quickstart.json").read_text())
    assert result["contrastive"].keys() == {"one_shot", "five_shot"}
    for accuracies in result["contrastive"].values():
        assert accuracies.keys() == {"raw", "untrained", "pretrained"}
        for accuracy, half_interval in accuracies.values():
            assert 10 < accuracy < 100 and 0 < half_interval < 2
    maml = result["maml"]
    keys = {"before", "after_1", "after_5", "after_10"}
    assert maml.keys() == {*keys, "pretrained"} and maml["pretrained"].keys() == keys
    assert maml["after_10"][0] < maml["before"][0] and 0 < maml["after_1"][1] < 1
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert "pretrained encoder" in done.stdout and "4/4" in done.stdout
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_quickstart_says_what_it_would_download(tmp_path):
    done = run(tmp_path, "quickstart.py", "--dataset", "mnist", "--data_dir", str(tmp_path))
    assert done.returncode != 0
    assert " MB " in done.stderr and "--download" in done.stderr and "Traceback" not in done.stderr
    done = run(tmp_path, "quickstart.py", "--dataset", "mnits")
    assert done.returncode != 0 and "mnist" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)
def test_quickstart_on_photographs(tmp_path):
    done = run(
        tmp_path, "quickstart.py", "--dataset", "cifar10", "--data_dir", str(TFDS),
        "--epochs", "1", "--train_size", "256", "--meta_steps", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "quickstart.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)
def test_maml_omniglot_goes_on_where_it_stopped(tmp_path):
    """Two epochs at once, and one and then another, give the same model and figures."""
    tiny = (
        "--data_dir",
        str(TFDS),
        "--steps",
        "2",
        "--tasks",
        "4",
        "--width",
        "4",
        "--episodes",
        "20",
    )
    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    done = run(tmp_path / "straight", "maml_omniglot.py", *tiny, "--epochs", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "86 characters for training, 156 others" in done.stdout and "4/4" in done.stdout
    for epochs in ("1", "2"):
        done = run(tmp_path / "resumed", "maml_omniglot.py", *tiny, "--epochs", epochs)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr
    assert "Going on after epoch 1" in done.stdout
    straight, resumed = (
        json.loads((tmp_path / name / "maml_omniglot.json").read_text())
        for name in ("straight", "resumed")
    )
    assert straight["test"].keys() == {f"after_{k}" for k in range(6)}
    for key in ("loss", "accuracy", "test"):
        assert straight[key] == resumed[key]
    assert (tmp_path / "resumed" / "maml_omniglot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)
def test_few_shot_bridge(tmp_path):
    tiny = (
        "--steps 2 --tasks 4 --simclr_steps 2 --batch_size 32 --clusters 40 --width 4 --episodes 20"
    )
    done = run(tmp_path, "few_shot_bridge.py", "--data_dir", str(TFDS), *tiny.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    result = json.loads((tmp_path / "few_shot_bridge.json").read_text())
    heads = {f"SimCLR, {x}" for x in ("prototype", "ridge", "logistic", "gradient steps")}
    others = {"pixels, prototype", "untrained, prototype", "UMTRA", "CACTUs", "MAML", "ProtoNet"}
    assert result["accuracy"].keys() == heads | others
    assert all(10 < accuracy < 100 and half > 0 for accuracy, half in result["accuracy"].values())
    assert (tmp_path / "few_shot_bridge.png").read_bytes().startswith(b"\x89PNG")
    again = run(tmp_path, "few_shot_bridge.py", "--data_dir", str(TFDS), *tiny.split())
    assert again.returncode == 0, again.stderr[-3000:]
    assert (
        json.loads((tmp_path / "few_shot_bridge.json").read_text())["accuracy"]
        == result["accuracy"]
    )
    other = run(tmp_path, "few_shot_bridge.py", "--data_dir", str(TFDS), "--width", "5")
    assert other.returncode != 0 and "other arguments" in other.stderr


def folder_of_images(path, classes, count, rng):
    """Images whose brightness tells their class, a folder for each."""
    for c in range(classes):
        (path / f"class_{c}").mkdir(parents=True)
        for i in range(count):
            image = rng.normal(20 + 200 * c / classes, 10, size=(20, 20, 3)).clip(0, 255)
            keras.utils.save_img(path / f"class_{c}" / f"{i}.png", image, scale=False)


@pytest.mark.slow
def test_benchmark_of_few_shot_methods_on_a_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    folder_of_images(tmp_path / "images" / "train", 22, 4, rng)
    folder_of_images(tmp_path / "images" / "test", 6, 18, rng)
    tiny = "--folder images --size 16 --width 4 --tasks 2 --episodes 10 --methods MAML ProtoNet"
    for steps in ("100", "200"):
        done = run(tmp_path, "omniglot.py", *tiny.split(), "--steps", steps, place="benchmarks")
        assert done.returncode == 0, done.stderr[-3000:]
    assert "MAML, seed 0: 100 steps" not in done.stdout and "MAML, seed 0: 200 steps" in done.stdout
    table = (tmp_path / "omniglot_runs" / "omniglot.md").read_text()
    assert "| MAML | 0 | 200 |" in table and "| ProtoNet | 0 | 200 |" in table
    record = json.loads((tmp_path / "omniglot_runs" / "ProtoNet_0.json").read_text())
    assert record["test"][0] > 30 and len(record["test_episodes"]) == 10
    assert (tmp_path / "omniglot_runs" / "omniglot.png").exists()
    other = run(tmp_path, "omniglot.py", *tiny.split(), "--width", "8", place="benchmarks")
    assert other.returncode != 0 and "other settings" in other.stderr
