"""A process that prepares, runs and measures when it is told to, so that contestants can take turns."""

import ctypes
import json
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
    None; `{}` times one more call.
    """
    run = None
    for line in sys.stdin:
        question = json.loads(line)
        if "name" in question:
            run, answer = None, {}
            if question["name"] is not None:
                run = prepare(question["name"], question["batch"])
            if run is not None:
                before = fresh_peak()
                seconds, value = timed(run)
                answer = {"value": value, "first": seconds, "bytes": peak() - before}
        else:
            answer = {"seconds": timed(run)[0]}
        print(json.dumps(answer), flush=True)


def timed(run):
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def fresh_peak():
    """Makes the peak of resident memory what it is now, in bytes (Linux)."""
    # What was freed before would otherwise be there for this run to use, uncounted.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
