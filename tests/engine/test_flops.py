"""Operations are counted by torch's formulas, without loading its compiler."""

import subprocess
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from fedsim.engine.flops import CountedOperations

CLASSIFIERS = """
import sys
import torch
from fedsim.architecture import ClassifierConfig
from fedsim.engine.flops import CountedOperations
from fedsim.models.classifiers import Classifier
from fedsim.models.networks import _BODIES

for name in _BODIES:
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
