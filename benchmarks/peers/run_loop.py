"""Federated averaging as a plain loop in PyTorch, with two threads: python -m ... WORK OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.peers.stopwatch import Stopwatch
from benchmarks.peers.work import Work


def main(folder: str, out: str) -> None:
    watch = Stopwatch()
    torch.set_num_threads(2)
    work = Work(folder)
    model = work.model()
    served = {k: v.clone() for k, v in model.state_dict().items()}
    for round, cohort in enumerate(work.cohorts):
        total, count = {k: torch.zeros_like(v) for k, v in served.items()}, 0
        for place in range(len(cohort)):
            model.load_state_dict(served)
            samples = work.train(model, round, place, fused=True)
            count += samples
            for name, value in model.state_dict().items():
                total[name].add_(value, alpha=samples)
        served = {k: v / count for k, v in total.items()}
        watch.round_done()
    watch.emit({k: v.numpy() for k, v in served.items()}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
