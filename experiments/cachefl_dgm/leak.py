"""What a client's move of cache keys tells the server about its images.

    python experiments/cachefl_dgm/leak.py experiments/cachefl_dgm/cachefl_dgm.yaml \
        data.path=$DATA/clip_real_bundle/dtd_vitb32.npz

For each class that a client shares with another, directions are compared with the mean feature of
the client's own images of the class, by their cosine: the sum of the class's moves (`move`), the
global keys that the client was sent (`keys`), the mean of all other clients' images of the class
(`others`). Features of CLIP lie in a narrow cone, so all are taken without their part along the
mean of all features.

`own part` is what is left of two directions when everything that is not the client's is taken out
too: the keys, and the others' mean. Its null is another client's mean of the class in the place of
the client's (`own part, null`). All of it for every such class and for those that moves reveal;
`classes found` is how many of a client's classes they do, `found and held` how many of those are
its own.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from fedsim.config.study_file import load_study
from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.local import LocalPool
from fedsim.engine.round import Federation
from fedsim.engine.sinks import open_sinks
from fedsim.methods import METHODS
from fedsim.methods.cachefl_dgm import held_classes
from fedsim.results.analysis.significance import mean_interval

METHOD, SEEDS, ROUNDS = "cachefl_dgm", range(10), (1, 10)


def outside(v: Tensor, *known: Tensor) -> Tensor:
    """What is left of a direction without its part in the span of others."""
    basis, _ = torch.linalg.qr(torch.stack(known, 1))
    return v - basis @ (basis.T @ v)


def directions(move: Tensor, keys: Tensor, mine: Tensor, others: list[Tensor], mean: Tensor) -> Any:
    """Cosines of one class; `others` are the means of other clients, each with its share."""
    everyone_else = torch.stack(others).sum(0)
    one = others[0]

    def near(v: Tensor, w: Tensor, *known: Tensor) -> float:
        return float(F.cosine_similarity(outside(v, mean, *known), outside(w, mean, *known), 0))

    return {
        "move": near(move, mine),
        "keys": near(keys, mine),
        "others": near(everyone_else, mine),
        "own part": near(move, mine, keys, everyone_else),
        "own part, null": near(move, one, keys, everyone_else),
    }


def measure(study: Any, seed: int, folder: Path) -> tuple[list[Any], list[Any]]:
    """A row per class that a client shares with others, and one per client."""
    config = study.resolve([(METHOD, {}, seed, "final")], METHODS)[0]
    place = open_sinks(folder, config.run_id), CheckpointFolder(folder, config.run_id)
    run = Federation(config, *place, LocalPool(config))
    run.setup()
    features = torch.as_tensor(run.data.arrays["train_inputs"]).float()
    labels = torch.as_tensor(run.data.arrays["train_labels"]).long()
    own = [torch.as_tensor(rows) for rows in run.data.holdings.fit]
    mean, finish = features[torch.cat(own)].mean(0), run.method.finish_round
    sums = {
        (client, label): features[rows[labels[rows] == label]].sum(0)
        for client, rows in enumerate(own)
        for label in labels[rows].unique().tolist()
    }
    classes, clients = list[Any](), list[Any]()

    def watched(state: Any, received: Any, *rest: Any) -> Any:
        for client, update in received.kept if received.round in ROUNDS else ():
            about, move = {"seed": seed, "round": received.round}, update.delta["keys"][0]
            told = set(held_classes(state["sent"], move, state["labels"]))
            held = {label for owner, label in sums if owner == client}
            right = {"found and held": len(told & held) / len(told)} if told else {}
            clients.append(about | {"classes found": len(told & held) / len(held)} | right)
            for label in held:
                others = [v for (c, at), v in sums.items() if at == label and c != client]
                if not others:
                    continue
                keys = state["labels"] == label
                pair = move[keys].sum(0), state["sent"][keys].sum(0)
                found = directions(*pair, sums[client, label], others, mean)
                classes.append(about | {"revealed": label in told} | found)
        return finish(state, received, *rest)

    run.method.finish_round = watched  # type: ignore[method-assign]
    while not run.finished:
        run.step()
    run.finish()
    return classes, clients


def show(title: str, rows: pd.DataFrame) -> None:
    """Means over seeds of each seed's means, and half the 95 % t interval."""
    print(title)
    by_seed = rows.drop(columns="round").groupby("seed").mean()
    for name in by_seed:
        mean, low, _ = mean_interval(by_seed[name].to_numpy())
        print(f"  {name:16}{mean:7.3f} ± {mean - low:.3f}")


def main() -> None:
    study = load_study(Path(sys.argv[1]), sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(study, seed, Path(folder)) for seed in track(SEEDS, "seeds")]
    classes = pd.DataFrame([row for rows, _ in found for row in rows])
    clients = pd.DataFrame([row for _, rows in found for row in rows])
    for number in ROUNDS:
        now = classes[classes["round"] == number]
        seen = now[now["revealed"]]
        show(f"round {number}, all classes", now.drop(columns="revealed"))
        show(f"round {number}, classes that are revealed", seen.drop(columns="revealed"))
        show(f"round {number}, clients", clients[clients["round"] == number])


if __name__ == "__main__":
    main()
