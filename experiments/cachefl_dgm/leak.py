"""What a client's move of cache keys tells the server about its images.

    python experiments/cachefl_dgm/leak.py experiments/cachefl_dgm/cachefl_dgm.yaml \
        data.path=$DATA/clip_real_bundle/dtd_vitb32.npz

For each class of each client, three directions are compared with the mean feature of the client's
own images of the class, by their cosine: the sum of the class's moves (`move`), the global keys
that the client was sent (`keys`, which the server knew before), and the mean of all *other*
clients' images of the class (`others`: how much belongs to the class and not to the client).
Features of CLIP lie in a narrow cone, so the same is shown without their part along the mean of
all features. `found` and `right` say what share of a client's classes the moves reveal, and what
share of the revealed is true.
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

from fedsim.engine.checkpoint import CheckpointFolder
from fedsim.engine.local import LocalPool
from fedsim.engine.round import Federation
from fedsim.methods import METHODS
from fedsim.methods.cachefl_dgm import held_classes
from fedsim.results.significance import mean_interval
from fedsim.results.writer import TableWriter
from fedsim.study import load_study

METHOD, SEEDS = "cachefl_dgm", range(10)
ROUNDS = (1, 10)


def moves(study: Any, seed: int, folder: Path) -> list[dict[str, Any]]:
    """One row per class that a client holds, in the first and the last round."""
    config = study.resolve([(METHOD, {}, seed, "final")], METHODS)[0]
    place = TableWriter(folder, config.run_id), CheckpointFolder(folder, config.run_id)
    run, rows = Federation(config, *place, LocalPool(config)), list[dict[str, Any]]()
    run.setup()
    features = torch.as_tensor(run.data.arrays["train_inputs"]).float()
    labels = torch.as_tensor(run.data.arrays["train_labels"]).long()
    everyone = torch.cat([torch.as_tensor(own) for own in run.split.fit])
    average, finish = features[everyone].mean(0), run.method.finish_round

    def compared(directions: dict[str, Tensor], mine: Tensor) -> dict[str, float]:
        cosines = {k: F.cosine_similarity(v, mine, dim=0) for k, v in directions.items()}
        centred = {
            f"{k}, centred": F.cosine_similarity(_outside(v, average), _outside(mine, average), 0)
            for k, v in directions.items()
        }
        return {k: float(v) for k, v in (cosines | centred).items()}

    def watched(state: Any, received: Any, *rest: Any) -> Any:
        for client, update in received.kept if received.round in ROUNDS else ():
            own, move = torch.as_tensor(run.split.fit[client]), update.delta["keys"][0]
            others = everyone[~torch.isin(everyone, own)]
            told = set(held_classes(state["sent"], move, state["labels"]))
            held = set(labels[own].unique().tolist())
            shares = {"found": len(told & held) / len(held), "right": len(told & held) / len(told)}
            for label in held:
                keys = state["labels"] == label
                directions = {"move": move[keys].sum(0), "keys": state["sent"][keys].sum(0)}
                if (labels[others] == label).any():
                    directions["others"] = features[others[labels[others] == label]].mean(0)
                mine = features[own[labels[own] == label]].mean(0)
                found = compared(directions, mine)
                rows.append({"seed": seed, "round": received.round} | found | shares)
        return finish(state, received, *rest)

    run.method.finish_round = watched  # type: ignore[method-assign]
    while not run.finished:
        run.step()
    run.finish()
    return rows


def _outside(v: Tensor, average: Tensor) -> Tensor:
    """What is left of a direction without its part along the mean of all features."""
    along = F.normalize(average, dim=0)
    return v - (v @ along) * along


def main() -> None:
    study = load_study(Path(sys.argv[1]), sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for s in track(SEEDS, "seeds") for row in moves(study, s, Path(folder))]
    by_seed = pd.DataFrame(rows).groupby(["round", "seed"]).mean()
    for number, values in by_seed.groupby("round"):
        print(f"round {number}")
        for name in values:
            mean, low, _ = mean_interval(values[name].to_numpy())
            print(f"  {name:18}{mean:6.3f} ± {mean - low:.3f}")


if __name__ == "__main__":
    main()
