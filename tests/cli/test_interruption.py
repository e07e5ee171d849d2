"""kill -9 and Ctrl-C at any moment: the same command goes on, to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from run_folders import contents


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C reaches the commands also where the tests run in the background of a shell script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(folder, *arguments):
    import sys

    environment = {k: v for k, v in os.environ.items() if not k.startswith("HARNESS_")}
    with (folder / "stderr.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def wait_for(folder, pattern, process):
    """Until a file that matches is there."""
    end = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, (folder / "stderr.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_run_killed_in_training_and_in_attack_ends_as_an_unbroken_one(
    harness, tiny, tmp_path, executor
):
    tiny.write_text(tiny.read_text().replace("epochs = 2", "epochs = 6"))
    command = ("run", "--suite", tiny, "--executor", executor, "--out")
    unbroken = harness(*command, "a")

    training = start(tmp_path, *command, "b")
    wait_for(tmp_path, "b/weights/*/checkpoint.pt", training)
    training.kill()
    training.wait()
    attack = start(tmp_path, *command, "b")
    wait_for(tmp_path, "b/*/shards/*.jsonl", attack)
    attack.kill()
    attack.wait()
    last = harness(*command, "b")

    assert unbroken.code == last.code == 0, last.err
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert not list((tmp_path / "b").glob("weights/*/checkpoint.pt"))


def test_ctrl_c_says_that_the_same_command_goes_on(tiny, tmp_path):
    tiny.write_text(tiny.read_text().replace("epochs = 2", "epochs = 500"))

    process = start(tmp_path, "run", "--suite", tiny)
    wait_for(tmp_path, "runs/weights/*/checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    err = (tmp_path / "stderr.txt").read_text()

    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_two_runs_at_once_train_once_and_agree(tiny, tmp_path, harness):
    first = start(tmp_path, "run", "--suite", tiny)
    second = harness("run", "--suite", tiny, "--json")

    assert first.wait(timeout=120) == 0
    assert second.code == 0, second.err
    assert len(list(tmp_path.glob("runs/weights/*/weights.safetensors"))) == 1
    assert "non-determinism" not in "".join(
        path.read_text() for path in tmp_path.glob("runs/*/events-*.jsonl")
    )


DEADLY = """
import os
from harness import AttackCard, hookimpl

def deadly(objective, images, labels, threat, *, noise, times):
    marks = [name for name in os.listdir(".") if name.startswith("mark")]
    if 3 in noise.samples.tolist() and len(marks) < times:
        open(f"mark-{len(marks)}", "w").close()
        os.kill(os.getpid(), 9)
    return images

@hookimpl
def register_attacks(register):
    for times in (1, 99):
        register(f"deadly-{times}", deadly, card=AttackCard(), defaults={"times": times})
"""


@pytest.mark.parametrize(("times", "code", "n"), [(1, 0, 20), (99, 3, 12)])
def test_a_worker_that_dies_is_replaced_and_a_shard_that_always_kills_is_set_aside(
    harness, tiny, tmp_path, times, code, n
):
    (tmp_path / "deadly.py").write_text(DEADLY)

    done = harness(
        "run", "--suite", tiny, "--plugin", "deadly.py", "--attack", f"deadly-{times}",
        "--executor", "process", "--workers", 2, "--json",
    )  # fmt: skip

    row = json.loads(done.out)["rows"][0]
    assert done.code == code, done.err
    assert row["clean_accuracy"]["n"] == n
    assert ("missing-images" in row["flags"]) == (code == 3)
    assert any("worker-died" in p.read_text() for p in tmp_path.glob("runs/*/events-*.jsonl"))
