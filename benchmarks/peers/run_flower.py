"""Flower's simulation: two actors of one CPU each, FedAvg: python -m ... WORK OUT [fused]."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.flower_client import app as client_app
from benchmarks.peers.stopwatch import Stopwatch
from benchmarks.peers.work import Work


class Planned(FedAvg):
    """FedAvg whose cohorts are given; each client hears its place in the schedule."""

    def __init__(self, work: Work, watch: Stopwatch, fused: bool) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self._work, self._watch, self._fused = work, watch, fused

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        while len(nodes := list(grid.get_node_ids())) < self._work.spec["clients"]:
            time.sleep(0.005)  # another thread registers them
        sent = []
        for place, client in enumerate(self._work.cohorts[server_round - 1]):
            config = ConfigRecord(
                {
                    "work": str(self._work.folder),
                    "round": server_round - 1,
                    "place": place,
                    "fused": self._fused,
                }
            )
            content = RecordDict({"arrays": arrays, "config": config})
            sent.append(Message(content, dst_node_id=nodes[client], message_type=MessageType.TRAIN))
        return sent

    def aggregate_train(self, server_round: int, replies: Iterable[Message]):  # type: ignore[no-untyped-def]
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} clients failed, the first one: {failed[0]}")
        found = super().aggregate_train(server_round, replies)
        self._watch.round_done()
        return found


def main(folder: str, out: str, fused: str = "") -> None:
    watch, work, server, final = Stopwatch(), Work(folder), ServerApp(), []

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(work.model().state_dict())
        strategy = Planned(work, watch, bool(fused))
        final.append(strategy.start(grid, arrays, num_rounds=len(work.cohorts)))

    run_simulation(
        server_app=server,
        client_app=client_app,
        num_supernodes=work.spec["clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    weights = {k: v.numpy() for k, v in final[0].arrays.to_torch_state_dict().items()}
    watch.emit(weights, Path(out), "flwr", "ray")


if __name__ == "__main__":
    main(*sys.argv[1:])
