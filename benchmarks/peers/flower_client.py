"""Flower's clients, in a module of their own: actors import it and keep the data mapped."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from benchmarks.peers.work import Work

app = ClientApp()


@lru_cache(maxsize=1)
def _once(folder: str) -> tuple[Work, nn.Module]:
    work = Work(folder)
    return work, work.model()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    work, model = _once(str(config["work"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    fused = True if config["fused"] else None
    samples = work.train(model, int(config["round"]), int(config["place"]), fused)
    reply = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": samples}),
    }
    return Message(content=RecordDict(reply), reply_to=message)
