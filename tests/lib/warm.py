"""Commands in processes of their own that need not import torch again: each is a fork of one.

`Warm` starts a process that imports what a run needs, once; for every command that process forks.
What a test sees is a process as any other: its folder, environment, exit code and signals are its
own, and nothing that it does stays behind in the next one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

IMPORTS = (
    "harness.cli.app",
    "harness.runner",
    "harness.replay",
    "harness.leaderboard",
    "harness.validate",
    "harness.executors.inline",
    "harness_attacks.pgd",
    "harness_cnn.small_resnet",
    "harness_datasets.digits",
    "harness_recipes.standard",
    "lightning_fabric",
    "sklearn.datasets",
)
"""Modules that nearly every run imports; what is missing here is imported by the command."""
SECONDS = 300
"""After which a command that hangs is killed."""


class Finished(NamedTuple):
    """A command that has ended."""

    code: int  # negative for the signal that killed it
    out: str
    err: str


def cold(arguments: list[str], folder: Path, environment: dict[str, str]) -> Finished:
    """Run the command line in a folder, in a process that starts from nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Warm:
    """A process that waits, with torch imported, to become a command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def finish(
        self, arguments: list[str], folder: Path, environment: dict[str, str], before: str = ""
    ) -> Finished:
        """Run the command line in a folder.

        Args:
            arguments: What follows `harness`.
            folder: Where it runs.
            environment: All of it.
            before: Python that runs in the process before the command.
        """
        out, err = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
        order = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment,
            "before": before,
            "out": str(out),
            "err": str(err),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Finished(code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    """Fork for each order that is read, and answer with the exit code."""
    for name in IMPORTS:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            answers.close()
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _become(
    *,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    before: str,
    out: str,
    err: str,
) -> NoReturn:
    """Be the command, to its end."""
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), number)
    sys.path[0] = folder
    sys.argv = ["harness", *arguments]
    os._exit(_outcome(before))


def _outcome(before: str) -> int:
    """The exit code of the command, as the interpreter gives it."""
    from harness.cli.app import main

    code = 0
    try:
        exec(before, {})  # noqa: S102 - of our own tests
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    return code


if __name__ == "__main__":
    _serve()
