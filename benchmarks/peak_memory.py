"""How far the memory of this process rises."""

import os
import threading
import time
from pathlib import Path


class PeakMemory:
    """Peak of this process's resident memory above its start, in MB, sampled every millisecond."""

    def __enter__(self):
        self.start, self.running = _resident(), True
        self.peak = self.start
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while self.running:
            self.peak = max(self.peak, _resident())
            time.sleep(0.001)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        self.megabytes = (self.peak - self.start) / 1e6


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
