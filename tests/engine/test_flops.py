"""Operations are counted by torch's formulas, without loading its compiler."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from fedsim.engine.flops import CountedOperations
from fedsim.engine.local import drive
from fedsim.methods import method_class
from fedsim.methods.cachefl import CacheFL
from fedsim.results.study import load
from tests.helpers import experiment, federation, run, write_features
from tests.methods.test_feddgm import TINY

WHOLE: dict[str, Any] = {  # clients of one size, whose batch is all they have
    "train__rounds": 1,
    "train__batch_size": 64,
    "partition__scheme": "iid",
    "partition__dirichlet_alpha": None,
    "engine__group_size": 3,
}

CLASSIFIERS = """
import sys
import torch
from fedsim.config.classifier import ClassifierConfig
from fedsim.config.families import NETWORKS
from fedsim.engine.flops import CountedOperations
from fedsim.models.classifiers import Classifier

for name in NETWORKS:
    net = Classifier(ClassifierConfig(name=name), (3, 32, 32), 10)
    weights = {k: v.requires_grad_() for k, v in net.init(torch.Generator()).items()}
    with CountedOperations() as counted:
        net(weights, torch.zeros(2, 3, 32, 32)).sum().backward()
    assert counted.flops, name
print(sorted({"sympy", "torch._dynamo"} & set(sys.modules)))
"""


def work() -> None:
    """Convolutions, attention and batched products, forwards and backwards."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, requires_grad=True)

    F.conv2d(draw(2, 3, 8, 8), draw(4, 3, 3, 3), draw(4), padding=1).relu().sum().backward()
    F.scaled_dot_product_attention(*(draw(2, 2, 5, 8) for _ in range(3))).sum().backward()
    F.linear(draw(3, 4, 8), draw(5, 8), draw(5)).sum().backward()
    vmap(lambda w, x: x @ w)(draw(3, 8, 2), draw(3, 4, 8)).sum().backward()
    with torch.no_grad():
        torch.einsum("bij,bjk->bik", draw(2, 3, 4), draw(2, 4, 5))


def test_they_are_as_many_as_torch_counts():
    with CountedOperations() as counted:
        work()
    theirs = FlopCounterMode(display=False)
    with theirs:
        work()
    assert counted.flops == theirs.get_total_flops() > 0


def test_networks_are_built_and_counted_without_the_compiler():
    found = subprocess.run([sys.executable, "-c", CLASSIFIERS], capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stdout + found.stderr


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("fedavg", {}),
        ("feddgm", {"global_models": ["lenet"]}),
        ("feddgm", {"other_surrogates": ["lenet"], "skip_absent": True}),
        ("feddm", {"real_batch": 5}),
    ],
)
def test_clients_are_charged_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, options: dict[str, Any]
):
    """Without padding, the counted figure of every client is what its training really takes."""
    cls, done = method_class(use), list[int]()
    train = cls.client_update

    def counted(self: Any, message: Any, batches: Any, *rest: Any) -> Any:
        if -1 in batches.client_ids:  # to count what a sample costs
            return train(self, message, batches, *rest)
        _ = self.net, getattr(self, "global_nets", None)  # building them is no training
        with CountedOperations() as operations:
            out = train(self, message, batches, *rest)
        done.append(operations.flops)
        return out

    monkeypatch.setattr(cls, "client_update", counted)
    given = TINY | WHOLE | {"use": use, "options": options}
    run(experiment("digits", use, **given), tmp_path)
    rows = load(tmp_path).clients.query("round == 1")
    assert rows["num_samples"].nunique() == 1
    assert rows["train_flops"].sum() == sum(done) > 0


@pytest.mark.parametrize("form", ["direct", "dual"])
def test_both_forms_of_a_cache_are_charged_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    """All take one step an epoch on what they have, padded to the longest of them."""
    given = WHOLE | {"train__rounds": 1, "train__optimizer": "sgd", "partition__num_clients": 3}
    given |= {"cache__form": form, "partition__dirichlet_alpha": None}
    one = federation(experiment(write_features(tmp_path), **given), tmp_path)
    train, done = CacheFL.client_update, list[int]()

    def counted(self: Any, message: Any, batches: Any, *rest: Any) -> Any:
        with CountedOperations() as operations:
            update, states = train(self, message, batches, *rest)
            update = update.formed()  # the same as one product for all of them
        if -1 not in batches.client_ids:
            done.append(operations.flops)
        return update, states

    monkeypatch.setattr(CacheFL, "client_update", counted)
    drive(one, lambda row: None)
    rows = load(tmp_path).clients.query("round == 1")
    assert rows["num_samples"].min() >= rows["num_samples"].max() - 1
    assert 3 * rows["train_flops"].max() == sum(done) > 0
