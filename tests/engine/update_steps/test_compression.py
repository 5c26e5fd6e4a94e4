"""Compression: what travels is counted, what is lost comes back, and nobody sees a neighbour's."""

from pathlib import Path

import pytest
import torch

import fedsim
from fedsim.config.sections import WireConfig
from fedsim.engine.update_steps.compression import compress
from fedsim.params import num_bytes
from tests.helpers import experiment, run, write_features

DELTA = {
    "keys": torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(0)),
    "bias": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"compression": "none"}, 4 * 85),
        ({"compression": "fp16"}, 2 * 85),
        ({"compression": "int8"}, 85 + 2 * 4),
        ({"compression": "topk", "topk_fraction": 0.1}, (8 + 1) * (4 + 4)),
    ],
)
def test_bytes_are_those_of_the_tensors_that_travel(settings: dict, size: int):
    sent = compress(DELTA, WireConfig(**settings))
    assert num_bytes(sent.encoded) == 3 * size
    assert {k: v.shape for k, v in sent.decoded.items()} == {k: v.shape for k, v in DELTA.items()}
    for name, value in DELTA.items():
        torch.testing.assert_close(sent.decoded[name] + sent.lost[name], value)


def test_int8_is_within_half_a_step():
    sent = compress(DELTA, WireConfig(compression="int8"))
    for name, value in DELTA.items():
        step = value.flatten(1).abs().amax(1) / 127
        assert (sent.lost[name].flatten(1).abs().amax(1) <= step / 2 + 1e-7).all()


def test_topk_keeps_the_largest_of_every_client():
    decoded = compress(DELTA, WireConfig(compression="topk", topk_fraction=0.25)).decoded["keys"]
    for kept, value in zip(decoded.flatten(1), DELTA["keys"].flatten(1), strict=True):
        chosen = kept != 0
        assert chosen.sum() == 20
        assert torch.equal(kept[chosen], value[chosen])
        assert value[chosen].abs().min() >= value[~chosen].abs().max()


def test_a_client_of_zeros_stays_zero():
    for compression in ("fp16", "int8", "topk"):
        zeros = {"w": torch.zeros(2, 4)}
        sent = compress(zeros, WireConfig(compression=compression))
        assert torch.equal(sent.decoded["w"], zeros["w"])


def accuracy_and_bytes(folder: Path, **settings) -> tuple[float, int]:
    study = fedsim.load(
        run(experiment(write_features(folder), train__rounds=8, **settings), folder)
    )
    last = study.rounds.iloc[-1]
    return float(last.loss), int(last.bytes_up)


def test_error_feedback_brings_back_what_top_k_lost(tmp_path: Path):
    """The same sparse messages end nearer to the uncompressed run when losses are carried on."""
    losses = {}
    for name, settings in {
        "whole": {},
        "feedback": {"wire__compression": "topk", "wire__topk_fraction": 0.1},
        "lossy": {
            "wire__compression": "topk",
            "wire__topk_fraction": 0.1,
            "wire__error_feedback": False,
        },
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        losses[name] = accuracy_and_bytes(folder, **settings)
    assert abs(losses["feedback"][0] - losses["whole"][0]) < abs(
        losses["lossy"][0] - losses["whole"][0]
    )
    assert losses["feedback"][1] == losses["lossy"][1] <= 0.25 * losses["whole"][1]


def test_half_precision_that_overflows_is_refused_by_name(tmp_path: Path):
    config = experiment(
        write_features(tmp_path), "fedavg_head", train__lr=1e9, wire__compression="fp16"
    )
    with pytest.raises(fedsim.errors.ClientError, match="NaN or infinite"):
        run(config, tmp_path)
