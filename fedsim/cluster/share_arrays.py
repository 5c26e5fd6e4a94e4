"""Copies entries of one node's store to the other nodes before they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from fedsim.cluster.session import on_node, own_error
from fedsim.storage.array_cache import Arrays, is_stored, shared_arrays

EntryKey = Mapping[str, Any]


def share_entries(keys: Sequence[EntryKey]) -> list[str]:
    """Copy entries of this node's store to every node that lacks them.

    An entry travels through the object store as a whole. If it would fill more than half of any
    node's object store, it is left out, and nodes compute it themselves.

    Returns:
        The ids of the nodes that got an entry.

    Raises:
        DataError: A node cannot write to its store.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
    room = min(resources.get("object_store_memory", 0) for resources in nodes.values()) / 2
    others = [node for node in nodes if node != here]  # without CPUs it may have the coordinator
    asked = {node: on_node(node, _absent).remote(list(keys)) for node in others}
    sent: dict[int, Any] = {}
    sending = {}
    for node in others:
        for position in _answer(asked[node]) or ():
            if position not in sent:
                arrays = _plain(keys[position])
                size = sum(array.nbytes for array in arrays.values())
                sent[position] = ray.put(arrays) if size <= room else None
            if sent[position] is not None:
                sending[node, position] = on_node(node, _keep).remote(
                    keys[position], sent[position]
                )
    return sorted({node for (node, _), future in sending.items() if _answer(future)})


def _answer(future: Any) -> Any:
    """A node's answer; None if the node is lost."""
    try:
        return ray.get(future)
    except RayTaskError as error:
        raise own_error(error) or error from None
    except RayError:
        return None


def _absent(keys: list[EntryKey]) -> list[int]:
    return [position for position, key in enumerate(keys) if not is_stored(key)]


def _plain(key: EntryKey) -> Arrays:
    """An entry as plain arrays, which Ray copies once."""

    def gone() -> Arrays:
        raise FileNotFoundError("the entry was removed from the store")

    return {name: np.asarray(array) for name, array in shared_arrays(key, gone).items()}


def _keep(key: EntryKey, arrays: Arrays) -> bool:
    shared_arrays(key, lambda: arrays)
    return True
