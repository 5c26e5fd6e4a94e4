"""Run as a process: extractors on a Ray cluster of two real raylets, each with its own store.

Prints one JSON object; `test_extraction.py` says what it must be.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.cluster.session import Stop, nodes, session

from ray.cluster_utils import Cluster  # isort: skip

COUNTS = {"train": 800, "val": 60, "test": 100}
SHARD = 16
LARGE = 6 * 1024


def write_images(folder: Path) -> Path:
    """An archive of random 8x8 images."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classnames": np.array(["one", "two"])}
    for split, count in COUNTS.items():
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def config(data: Path) -> Any:
    """Clients, and so extractors, of a quarter of a GPU."""
    from tests.helpers import experiment

    models = {"clip": "tiny-clip", "generator": None}
    made = experiment(data, "fedavg_head", models=models, resources__gpus_per_client=0.25)
    return made.model_copy(update={"engine": made.engine.model_copy(update={"backend": "ray"})})


def same(found: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> bool:
    """Whether shards are equal, bit by bit."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[number], expected[number]) for number in expected
    )


def main(folder: Path) -> None:
    os.environ["FEDSIM_CACHE"] = str(folder / "first")
    second = {"FEDSIM_CACHE": str(folder / "second")}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
    cluster.add_node(num_cpus=2, env_vars=second)
    with session(cluster.address):
        sys.stdout.write(json.dumps(look(folder)) + "\n")
    cluster.shutdown()


def look(folder: Path) -> dict[str, Any]:
    """Everything that the tests ask."""
    from fedsim.cluster.encoding import ExtractionPool
    from fedsim.cluster.placement import place_each
    from fedsim.cluster.remote_preflight import Preflight, preflight_on_ray
    from fedsim.data.datasets import load_dataset
    from fedsim.errors import DataError
    from fedsim.inputs import encode
    from fedsim.inputs.encode import Shard, extract_here
    from fedsim.inputs.prepare import InputSteps
    from fedsim.methods import method_class
    from fedsim.models.clip import load_clip
    from fedsim.models.random_views import RandomViews
    from fedsim.process import settle_process

    settle_process(1)
    data = write_images(folder)
    asked = config(data)
    clip, (placement,) = load_clip("tiny-clip"), place_each([asked], nodes())
    images = load_dataset(str(data)).train.load_images()
    shards = [Shard(n, rows) for n, rows in enumerate(np.split(images, range(SHARD, 800, SHARD)))]
    expected = dict(extract_here(clip, False, shards))
    found: dict[str, Any] = {"num_extractors": placement.num_extractors}

    pool, seen = ExtractionPool(placement, worth_s=0), {}
    for number, rows in pool(clip, False, shards):
        seen[number] = rows
        if len(pool.where) < 3:
            time.sleep(5)  # the first ones would finish before the last one has started
    found["equal"], found["where"], found["lost"] = same(seen, expected), pool.where, pool.lost

    pool, seen = ExtractionPool(placement, worth_s=0), {}
    for number, rows in pool(clip, False, shards[:6]):
        seen[number] = rows
        if pool.where and not found.get("killed"):
            found["killed"] = pool.where[0]["pid"]
            os.kill(found["killed"], signal.SIGKILL)
    found["lost after a kill"] = len(pool.lost)
    found["equal after a kill"] = same(seen, {number: expected[number] for number in range(6)})

    pool = ExtractionPool(placement)  # so little work is not worth a start
    found["equal without"] = same(dict(pool(clip, False, shards)), expected)
    found["none started"] = pool.where

    broken = Shard(1, np.zeros((3, 8, 8)))  # not of 8 bits
    try:
        list(ExtractionPool(placement, worth_s=0)(clip, False, [shards[0], broken, broken]))
    except DataError as error:
        found["refused"] = str(error)

    encode.SHARD = SHARD
    here = Preflight(placement, worth_s=0)  # in this process, where shards are small
    viewed = asked.model_copy(update={"train": asked.train.model_copy(update={"augment_views": 2})})
    here.run([viewed])
    found["extractors of the preflight"] = len(here.pool.where)
    crops = [
        Shard(s.number, RandomViews(s.images, 1, clip.image_size, first=s.number * SHARD))
        for s in shards
    ]
    plain = np.concatenate([expected[shard.number] for shard in shards])
    views = np.concatenate([rows for _, rows in extract_here(clip, False, crops)])
    steps = InputSteps(viewed, method_class(viewed.use)).real
    wanted = {"train_inputs": plain, "train_views": np.stack([plain, views], 1).reshape(1600, -1)}
    found["in both stores"] = [
        np.load(folder / store / step.address / f"{name}.npy").tobytes() == rows.tobytes()
        for store in ("first", "second")
        for step, (name, rows) in zip(steps, wanted.items(), strict=True)
    ]

    large = folder / "large"
    large.mkdir()
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (LARGE, 8, 8), dtype=np.uint8)}
    arrays["y_train"] = np.arange(LARGE) % 2
    np.savez(large / "images.npz", classnames=np.array(["one", "two"]), **arrays)
    stop, told = Stop(), list[tuple[int, int]]()

    def interrupt(encoded: int, total: int) -> None:
        told.append((encoded, total))
        if encoded:
            stop.requested = "SIGINT"

    todo = config(large / "images.npz")
    try:
        preflight_on_ray([todo], placement, stop, interrupt)
    except KeyboardInterrupt:
        found["interrupted"] = list(told)
    found["kept"] = len(list((folder / "first").glob(".parts-*/*.npy")))
    told.clear()
    stop = Stop()
    preflight_on_ray([todo], placement, stop, lambda *seen: told.append(seen))
    found["resumed"] = told
    found["left"] = len(list((folder / "first").glob(".parts-*")))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
