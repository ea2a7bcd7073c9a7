"""A process that prepares, runs and measures when it is told to, so that contestants can take turns."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


class Worker:
    """The other end of `serve`: asks, and waits for the answer."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} stopped at {question}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(prepare):
    """Answers questions on stdin until it ends.

    `{"name", "batch"}` prepares ``run = prepare(name, batch)`` and answers its value, the seconds of its
    first call and the peak of memory in it, above what was there before, or nothing where `prepare` gives
    None; `{}` times one more call; `{"name": None}` lets go. Each name is served by a child of its own, so
    that no memory is there from the one before, for this one to use uncounted.
    """
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _serve_one(prepare, json.loads(line))
            sys.stdout.flush()
            os._exit(0)  # What was imported before the fork must not clean up twice.
        os.waitpid(child, 0)


def _serve_one(prepare, question):
    run = prepare(question["name"], question["batch"])
    if run is None:
        _answer({})
    else:
        before = peak()
        seconds, value = timed(run)
        _answer({"value": value, "first": seconds, "bytes": peak() - before})
    for line in sys.stdin:
        if json.loads(line):
            _answer({})
            return
        _answer({"seconds": timed(run)[0]})


def _answer(answer):
    print(json.dumps(answer), flush=True)


def timed(run):
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def peak():
    """Of this process's resident memory since it began, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
