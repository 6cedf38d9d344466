"""What a run costs this machine: CPU-seconds and memory of `hedgerow up` and all its descendants."""

import resource
from contextlib import suppress

import psutil


class Usage:
    """Samples the memory of the whole process tree; the largest sum is kept."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._cpu_before_s = cpu_s()
        self.peak_rss_bytes = 0
        self.peak_by_process: dict[str, int] = {}

    def sample(self, names: dict[int, str]) -> None:
        """Look at every process once; `names` gives those of children by process id.

        Resident memory counts pages that processes share once for each of them.
        """
        total = 0
        for process in [self._own, *self._own.children(recursive=True)]:
            with suppress(psutil.Error):
                rss = process.memory_info().rss
                total += rss
                name = names.get(process.pid)
                if name is not None:
                    self.peak_by_process[name] = max(self.peak_by_process.get(name, 0), rss)
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def cpu_s(self) -> float:
        """Return the CPU-seconds used since the beginning by this process and its children that ended."""
        return cpu_s() - self._cpu_before_s


def cpu_s() -> float:
    """Return user and system time of this process and of all its descendants that were waited for."""
    whom = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whom]
    return sum(one.ru_utime + one.ru_stime for one in used)
