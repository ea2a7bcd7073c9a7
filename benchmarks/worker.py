"""A process that prepares, runs and measures when it is told to, so that contestants can take turns."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path


class Worker:
    """The other end of `serve`."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def fresh(self):
        """A function that asks a fresh process, which has imported its libraries and done nothing."""
        self._ask("begin")
        yield self._ask
        self._ask(None)

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, question):
        # One at a time: what parent and child would both find in their buffers is asked twice.
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} stopped at {question}")
        return json.loads(answer)


def serve(prepare):
    """Answers questions on stdin until it ends, each series of them in a child of its own, so that no
    memory is there from the one before, for this one to use uncounted.

    `{"prepare": arguments}` makes ``run = prepare(*arguments)`` and answers the value of its first call, its
    seconds, and by how many bytes the peak of memory rose in it; or nothing where `prepare` gives None.
    `{"run": arguments}` answers the seconds of one more call, the mean of several if they are short. None
    ends the series.
    """
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            _answer_series(prepare)
            os._exit(0)  # What was imported before the fork must not clean up twice.
        os.waitpid(child, 0)


def _answer_series(prepare):
    runs = {}
    _answer({})
    for line in sys.stdin:
        question = json.loads(line)
        answer = {}
        if question and "prepare" in question:
            run = runs[str(question["prepare"])] = prepare(*question["prepare"])
            if run is not None:
                before = peak()
                seconds, value = timed(run)
                answer = {"value": value, "first": seconds, "bytes": peak() - before}
        elif question:
            answer = {"seconds": mean_seconds(runs[str(question["run"])])}
        _answer(answer)
        if question is None:
            return


def _answer(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def mean_seconds(run, least=0.1):
    """Of one call, or of as many as take `least` seconds: a first call after a pause is slower."""
    seconds = timed(run)[0]
    count = int(least / seconds)
    return sum(timed(run)[0] for _ in range(count)) / count if count else seconds


def timed(run):
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def peak():
    """Of this process's resident memory since it began, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
