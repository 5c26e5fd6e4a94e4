"""What networks learn from the sets of the last round alone: trained on a union, tested on real.

    python experiments/feddgm_mnist/cross.py experiments/feddgm_mnist/feddgm_mnist.yaml \
        data.path=$DATA/mnist_20clients.npz

Every network starts from its own random weights and sees nothing but the union of the clients' sets
that a finished run of the study ended with, at Dirichlet 0.02 (the runs have to be there with their
images; `fedsim sweep` makes them). `real` has as many real images of each class as feddgm's union,
drawn from what clients train on. The learning rate is the better of two on held-out client data.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track

import fedsim
from fedsim.config import Experiment
from fedsim.config.classifier import ClassifierConfig
from fedsim.config.study_file import load_study
from fedsim.engine.evaluate import predict
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import as_tensor
from fedsim.methods import METHODS, method_class
from fedsim.methods.base import Labelled
from fedsim.methods.shared.server_training import ServerTraining, Training, train_on_images
from fedsim.models.classifiers import Classifier
from fedsim.models.image_arrays import to_unit_range
from fedsim.process import settle_process
from fedsim.results.analysis.significance import mean_interval
from fedsim.seeding import numpy_rng, torch_rng

SETS = ("prior_only", "feddgm", "feddgm_gradient", "feddgm_averaged", "feddm", "real")
NETWORKS: dict[str, dict[str, Any]] = {
    "convnet, as the surrogate": {"name": "convnet", "depth": 3, "width": 16},
    "convnet, 64 channels": {"name": "convnet", "depth": 3, "width": 64},
    "lenet": {"name": "lenet"},
    "vit, 3 layers of 64": {"name": "vit", "depth": 3, "width": 64},
}
RATES, SEEDS, ROUND = (0.01, 0.05), range(5), 5
HERE = ["partition.scheme=dirichlet_label", "partition.dirichlet_alpha=0.02"]
HOW = ServerTraining(server_epochs=60, server_batch_size=32, server_momentum=0.9)
VIEWS = ("crop", "scale", "rotate")


@dataclass(frozen=True)
class Real:
    """Real images of one seed, uint8 `(n, c, h, w)`, each with its labels: what clients train on,
    what they hold out, and the test split."""

    train: Labelled
    held: Labelled
    test: Labelled


def real_images(config: Experiment) -> Real:
    inputs = prepare(config, method_class(config.use), torch.device("cpu"), synthetic=False)
    data, split = inputs.arrays, inputs.holdings

    def labelled(part: str, rows: Any = slice(None)) -> Labelled:
        labels = torch.tensor(np.asarray(data[f"{part}_labels"])[rows]).long()
        return Labelled(as_tensor(data[f"{part}_inputs"][rows]), labels)

    return Real(
        labelled("train", split.fit_rows), labelled("train", split.held_rows), labelled("test")
    )


def unions(configs: list[Experiment], real: Real) -> Iterator[tuple[str, Labelled]]:
    """What networks are trained on, by name."""
    made = fedsim.load(f"{configs[0].output}/{configs[0].study}")
    for name, config in zip(SETS, configs, strict=False):
        found = made.synthetic_images(ROUND, config.run_id)
        grey = torch.from_numpy(found.images[..., 0])[:, None]
        yield name, Labelled(grey, torch.from_numpy(found.labels).long())
        if name == "feddgm":
            counts = np.bincount(found.labels, minlength=10)
    rng, labels = numpy_rng(configs[0].train_seed, "cross"), real.train.labels.numpy()
    rows = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(counts)]
    chosen = torch.from_numpy(np.concatenate(rows))
    yield SETS[-1], Labelled(real.train.inputs[chosen], real.train.labels[chosen])


def accuracy(net: Classifier, weights: Any, images: Labelled) -> float:
    """Share of images that the network gets right."""
    logits = predict(lambda x: net(weights, to_unit_range(x)), images.inputs, 1000)
    return float((logits.argmax(1) == images.labels.numpy()).mean())


def trained(net: Classifier, union: Labelled, real: Real, seed: int) -> float:
    """Test accuracy after training on a union, at the better of the learning rates."""
    found = []
    for lr in RATES:
        how = HOW.model_copy(update={"server_lr": lr}).train_config()
        start, key = net.init(torch_rng(seed, "cross")), (seed, "cross")
        work = Training(net, start, union.inputs, union.labels, how, VIEWS, key, "cpu")
        weights = train_on_images(work)
        found.append((accuracy(net, weights, real.held), accuracy(net, weights, real.test)))
    return max(found)[1]


def main() -> None:
    settle_process(1)
    study, found = load_study(Path(sys.argv[1]), [*sys.argv[2:], *HERE]), []
    for seed in track(SEEDS, "seeds"):
        configs = study.resolve([(name, {}, seed, "final") for name in SETS[:-1]], METHODS)
        real = real_images(configs[0])
        shape = tuple(real.test.inputs.shape[1:])
        for name, union in unions(configs, real):
            for title, settings in NETWORKS.items():
                net = Classifier(ClassifierConfig.model_validate(settings), shape, 10)
                found.append((title, name, len(union), 100 * trained(net, union, real, seed)))
    table = pd.DataFrame(found, columns=["network", "set", "images", "accuracy"])

    def cell(values: pd.Series) -> str:
        mean, low, _ = mean_interval(values.to_numpy())
        return f"{mean:.1f} ± {mean - low:.1f}"

    print("|", " | ".join(["network", *SETS]), "|\n|" + "---|" * (len(SETS) + 1))
    for title, rows in table.groupby("network", sort=False):
        cells = [cell(rows.loc[rows["set"] == name, "accuracy"]) for name in SETS]
        print("|", " | ".join([title, *cells]), "|")
    print("images:", table.groupby("set", sort=False)["images"].mean().round().to_dict())


if __name__ == "__main__":
    main()
