"""Memory and CPU time of a runner: of every process that carries its mark in the environment."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import psutil

MARK = "PEERS_MARK"
_EVERY_S = 1.0
_SETTLED_S = 2.0


@dataclass(frozen=True)
class Gauged:
    """What one repetition cost."""

    pss_mb: float
    """Peak over time of the proportional set sizes of all its processes together, in MiB: pages
    that several share, such as Ray's object store and libraries, are counted once."""
    processes: int
    foreign: float
    """Share of all cores that others used, or the hypervisor kept, meanwhile."""


class Gauge(threading.Thread):
    """Samples the marked processes, daemons that left their parents included, until `stop`."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark, self._over = mark, threading.Event()
        self._seen: dict[int, psutil.Process | None] = {}
        self._cpu: dict[int, float] = {}
        self._pss, self._processes = 0, 0
        self._before = _clocks()
        self._began = time.perf_counter()

    def run(self) -> None:
        while not self._over.is_set():
            self._sample()
            self._over.wait(_EVERY_S)

    def stop(self) -> Gauged:
        """End sampling; to be called when the runner has been waited for."""
        self._over.set()
        self.join()
        wall = time.perf_counter() - self._began
        busy, reaped, own = (
            now - before for now, before in zip(_clocks(), self._before, strict=True)
        )
        theirs = max(sum(self._cpu.values()), reaped)
        foreign = max(0.0, busy - theirs - own) / (wall * (os.cpu_count() or 1))
        return Gauged(round(self._pss / 2**20, 1), self._processes, round(foreign, 4))

    def living(self) -> list[psutil.Process]:
        """The marked processes that are there now."""
        found = []
        pids = psutil.pids()
        for pid in pids:
            if pid not in self._seen:
                self._look(pid)
            process = self._seen.get(pid)
            if process is not None:
                found.append(process)
        return found

    def _look(self, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            if process.environ().get(MARK) == self._mark:
                self._seen[pid] = process
            elif time.time() - process.create_time() > _SETTLED_S:  # may not have called exec yet
                self._seen[pid] = None
        except psutil.Error:
            pass

    def _sample(self) -> None:
        total = count = 0
        for process in self.living():
            try:
                total += process.memory_full_info().pss
                times = process.cpu_times()
            except psutil.Error:
                self._seen[process.pid] = None
                continue
            self._cpu[process.pid] = times.user + times.system
            count += 1
        self._pss, self._processes = max(self._pss, total), max(self._processes, count)


def _clocks() -> tuple[float, float, float]:
    """CPU seconds so far: of the machine, of children waited for, and of this process."""
    machine, own = psutil.cpu_times(), os.times()
    busy = machine.user + machine.system + machine.nice + machine.irq + machine.softirq
    children = own.children_user + own.children_system
    return busy + machine.steal, children, own.user + own.system
