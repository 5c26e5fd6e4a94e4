"""What is compared: five workloads, which runners take part, and small versions for trying out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Spec:
    """One workload; the fields are settings of fedsim's by another name."""

    name: str
    title: str
    kind: Literal["cnn", "cache"]
    clients: int
    cohort: int
    batch: int
    lr: float
    rounds: int
    """The first one is counted as start-up."""
    tolerance: float
    """How far final weights may be from the plain loop's (`benchmarks.peers.parity`); another batch
    order is off by 0.1 to 0.3."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: int = 1
    noop: bool = False
    dual: bool = False
    """fedsim takes `cache.form: dual`; everyone else trains the keys as they are."""
    samples: int = 60_000
    """`cnn`: of all clients."""
    smallest: int = 64
    largest: int = 200
    """`cache`: samples of a client."""
    dim: int = 1024
    classes: int = 100
    shots: int = 16
    runners: tuple[str, ...] = ("loop", "fedsim", "flower", "pfl")

    def tiny(self) -> Spec:
        """The same in seconds: to see that everything works, not to measure."""
        small = replace(self, clients=20, cohort=6, rounds=2)
        if self.kind == "cnn":
            return replace(small, samples=600)
        # Few classes have steep slopes: SGD's rate would diverge here.
        lr = min(self.lr, 0.1)
        return replace(small, smallest=8, largest=24, dim=32, classes=5, shots=4, batch=8, lr=lr)


_W1 = Spec(
    name="w1",
    title="W1, many tiny clients",
    kind="cnn",
    clients=1000,
    cohort=100,
    batch=10,
    lr=0.05,
    rounds=4,
    tolerance=0.02,
    classes=10,
)
_W2B = Spec(
    name="w2b",
    title="W2b, cache heads, AdamW",
    kind="cache",
    clients=200,
    cohort=100,
    batch=32,
    lr=1e-3,
    rounds=3,
    tolerance=1e-3,
    optimizer="adamw",
)
_W2B_SGD = replace(
    _W2B,
    name="w2b_sgd",
    title="W2b, SGD (fedsim: dual)",
    optimizer="sgd",
    lr=1.0,
    dual=True,
    runners=("loop", "fedsim", "flower"),
)

SPECS = {
    spec.name: spec
    for spec in (
        replace(_W1, name="w1_noop", title="W1, clients that do nothing", noop=True),
        _W1,
        _W2B,
        _W2B_SGD,
        replace(_W2B_SGD, name="w2b_sgd5", title="W2b, SGD, 5 epochs (fedsim: dual)", epochs=5),
    )
}
