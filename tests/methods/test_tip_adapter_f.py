"""Clients' training of a cache against Tip-Adapter-F, written again in a few lines of NumPy."""

import numpy as np
import pytest

from fedsim.methods.cachefl import CacheFL
from tests.helpers import batches_of, experiment, local_data, rngs, tiny_task

ALPHA, BETA, SCALE, LR, DECAY = 3.0, 2.0, 20.0, 0.01, 0.1
SIZES = (9, 5)


class TipAdapterF:
    """Keys as a linear layer without bias, trained with AdamW; everything in double precision."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, text: np.ndarray) -> None:
        self.keys, self.values, self.text = keys.copy(), values, text
        self.m, self.v, self.t = np.zeros_like(keys), np.zeros_like(keys), 0

    def step(self, f: np.ndarray, y: np.ndarray) -> None:
        affinity = np.exp(-BETA * (1 - f @ self.keys.T))
        logits = SCALE * f @ self.text.T + ALPHA * affinity @ self.values
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = p / p.sum(1, keepdims=True) - np.eye(len(self.text))[y]
        gradient = (ALPHA * error @ self.values.T * affinity * BETA).T @ f / len(f)
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.keys = self.keys * (1 - LR * DECAY) - LR * m / (np.sqrt(v) + 1e-4)


@pytest.mark.parametrize("epochs", [1, 4])
def test_training_is_tip_adapter_fs(epochs: int):
    config = experiment(
        "features.npz",
        "cache_random",
        use="cachefl",
        cache__init="random",
        cache__residual_ratio=ALPHA,
        cache__sharpness=BETA,
        train__optimizer="adamw",
        train__lr=LR,
        train__weight_decay=DECAY,
        train__local_epochs=epochs,
        train__batch_size=4,
    )
    method = CacheFL(tiny_task(config), None)  # type: ignore[arg-type]
    inputs, labels, rows = local_data(SIZES)
    batches = batches_of(config.train, rows, inputs, labels)
    state = method.setup(method.task, rngs(batches)[0])
    update, _ = method.client_update(
        method.constants(state) | method.message(state), batches, [{}, {}], rngs(batches)
    )
    start = [state[name].double().numpy() for name in ("keys", "values", "text")]
    for client, size in enumerate(SIZES):
        alone = TipAdapterF(*start)
        for batch in batches:
            valid = batch.mask[client]
            if valid.any():
                alone.step(batch.x[client, valid].double().numpy(), batch.y[client, valid].numpy())
        assert alone.t == epochs * -(-size // 4)
        found = update.delta["keys"][client].double().numpy()
        moved = alone.keys - start[0]
        assert np.abs(moved).max() > LR  # it went somewhere
        np.testing.assert_allclose(found, moved, atol=2e-5)
