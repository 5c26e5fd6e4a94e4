"""What arrives is what was sent, and may be written to."""

import pickle

import torch

from fedsim.cluster.transport import pack, unpack
from fedsim.methods.base import Update


def travelled(tree: object) -> object:
    """Through a pickle whose arrays are read-only on arrival, as in Ray's store."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(pack(tree), protocol=5, buffer_callback=buffers.append)
    return unpack(pickle.loads(text, buffers=[bytes(b.raw()) for b in buffers]))


def test_tensors_of_every_type_and_shape_arrive():
    sent = {
        7: {"w": torch.randn(2, 3), "half": torch.randn(4).bfloat16()},
        8: {"flags": torch.tensor([True, False]), "one": torch.tensor(3)},
        9: {"turned": torch.randn(3, 2).T, "scalar": torch.tensor(1.5).bfloat16()},
        10: {"none": torch.zeros(0, 2)},
    }
    found = travelled(sent)
    assert isinstance(found, dict)
    assert found.keys() == sent.keys()
    for client, state in sent.items():
        for name, value in state.items():
            assert found[client][name].dtype == value.dtype
            assert torch.equal(found[client][name], value), name


def test_updates_arrive_and_may_be_written_to():
    sent = [
        (3, Update({"w": torch.ones(1, 2)}, torch.ones(1).double(), extra=({"m": torch.ones(1)},)))
    ]
    [(client, update)] = travelled(sent)  # type: ignore[misc]
    assert client == 3
    update.delta["w"].add_(1)
    assert update.delta["w"].tolist() == [[2, 2]]
    assert update.extra[0]["m"].tolist() == [1]
    assert update.linear
    assert update.change is None
