"""How many client actors a run gets, and what each may hold. Pure arithmetic, no Ray.

A GPU fraction is Ray's bookkeeping, not isolation: two actors with 0.5 GPU each share one device's
memory freely. Known memory sizes are therefore checked here, before round 1. Every refusal shows
its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsim.config import Experiment
from fedsim.config.sections import ResourcesConfig
from fedsim.errors import PlacementError

Bundle = dict[str, float]
"""Resources that are granted together, on one node: CPU and GPU."""

AUTO_GPU_FRACTION = 0.25
MEMORY_HEADROOM = 0.9
"""Share of a device's memory that clients may plan with; contexts and workspaces need the rest."""


@dataclass(frozen=True)
class Node:
    """What one machine offers.

    Attributes:
        cpus: Logical CPUs registered with Ray.
        gpus: GPUs registered with Ray.
        gpu_memory_bytes: Memory of its smallest GPU, if known.
    """

    cpus: float
    gpus: float = 0
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class Placement:
    """The resources of one run.

    Attributes:
        head: The coordinator's resources; empty on CPUs, where it mostly waits for its clients.
        bundles: Ray placement-group bundles of the client actors.
        actor_bundles: Per client actor, the position of its bundle among `bundles`.
        cpus_per_actor: CPUs of one client actor.
        gpus_per_actor: GPU fraction of one client actor.
        concurrent_runs: How many such runs fit the cluster at once.
        arithmetic: The sum in words.
        slots: Client actors that fit the cluster, all runs together.
    """

    head: dict[str, float]
    bundles: tuple[dict[str, float], ...]
    actor_bundles: tuple[int, ...]
    cpus_per_actor: float
    gpus_per_actor: float
    concurrent_runs: int
    arithmetic: str
    slots: int = 0

    @property
    def num_actors(self) -> int:
        """Client actors of one run."""
        return len(self.actor_bundles)

    @property
    def gpus_coordinator(self) -> float:
        """GPU fraction of the coordinator."""
        return self.head.get("GPU", 0.0)

    @property
    def num_extractors(self) -> int:
        """Actors with a client's share that fit beside the preflight, which holds a GPU share too.

        >>> place(ResourcesConfig(), 10, 2, [Node(cpus=8)]).num_extractors
        8
        >>> place(ResourcesConfig(), 10, 2, [Node(cpus=8, gpus=1)]).num_extractors  # four quarters
        3
        """
        return max(0, self.slots - (self.gpus_per_actor > 0))

    @property
    def shape(self) -> str:
        """Runs of the same shape can use each other's actors."""
        return repr((self.head, self.bundles, self.actor_bundles))

    def bundle_of(self, actor: int) -> int:
        """Position of an actor's bundle in the placement group, where the head comes first."""
        return self.actor_bundles[actor] + bool(self.head)


def plans_memory(runs: Iterable[ResourcesConfig]) -> bool:
    """Whether any run needs to know the memory of GPUs, so that nodes are asked for it."""
    return any(r.gpu_memory_bytes_per_client and r.gpus_per_client != 0 for r in runs)


def place_each(experiments: Sequence[Experiment], nodes: Sequence[Node]) -> list[Placement]:
    """The placement of every run, while all of them wait.

    Raises:
        PlacementError: See `place`.
    """
    return [
        place(e.resources, e.cohort_size, e.group_size, nodes, len(experiments))
        for e in experiments
    ]


def place(
    resources: ResourcesConfig,
    cohort_size: int,
    group_size: int,
    nodes: Sequence[Node],
    num_runs: int = 1,
) -> Placement:
    """Fit one run, or several alike, onto a cluster.

    Args:
        resources: The resources of its clients.
        cohort_size: Clients of a round.
        group_size: Clients of a group, which is trained whole on one actor.
        nodes: The machines.
        num_runs: Runs of this shape that wait.

    Raises:
        PlacementError: If the cluster cannot hold what was asked for.

    >>> place(ResourcesConfig(), 10, 2, [Node(cpus=2)]).num_actors
    2
    """
    cpus = resources.cpus_per_client
    total_cpus, total_gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    gpus = _gpu_fraction(resources, nodes)
    slots = sum(_slots(node, cpus, gpus) for node in nodes)
    have = f"{_count(total_cpus, 'CPU')} and {_count(total_gpus, 'GPU')}"
    need = f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"
    if slots == 0:
        raise PlacementError(
            f"no client actor fits: each needs {need}, the cluster's {len(nodes)} node(s) have "
            f"{have}; lower resources.gpus_per_client or resources.cpus_per_client"
        )
    groups = math.ceil(cohort_size / group_size)
    # The coordinator holds a GPU share too, unless that would be a whole GPU of a client.
    shares = sum(int(n.gpus) for n in nodes) * _per_gpu(gpus) if 0 < gpus <= 0.5 else 0
    if resources.num_actors != "auto":
        actors = resources.num_actors
    elif resources.clients_per_actor != "auto":
        actors = math.ceil(cohort_size / resources.clients_per_actor)
    else:  # runs are independent, so a sweep fills the cluster with runs before it splits a run
        most = slots // min(num_runs, slots)
        if shares:  # the coordinator of each run holds one
            most = min(most, shares // min(num_runs, shares) - 1)
        actors = max(1, min(groups, most))
    if actors > slots:
        raise PlacementError(
            f"{actors} client actors x ({need}) = {_count(actors * cpus, 'CPU')} and "
            f"{_count(actors * gpus, 'GPU')}, but the cluster's {len(nodes)} node(s) have {have}, "
            f"room for {slots}; use resources.clients_per_actor: auto, or smaller shares"
        )
    memory = _check_memory(resources.gpu_memory_bytes_per_client, nodes, gpus)
    coordinator = actors < shares
    if 0 < gpus < 1:
        fit = max(1, min(num_runs, slots // (actors + coordinator)))
        head, bundles, where = _on_shared_gpus(nodes, actors, cpus, gpus, coordinator, fit)
        at_once = max(1, _fitting_runs(nodes, [head, *bundles], slots))
    else:
        each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        head, bundles, where = {}, [each] * actors, list(range(actors))
        at_once = slots // actors
    held = math.ceil(cohort_size / actors)
    return Placement(
        head,
        tuple(bundles),
        tuple(where),
        cpus,
        gpus,
        at_once,
        f"{len(nodes)} node(s) with {have} hold {slots} client actors of {need} each; one run: "
        f"{actors} client actor(s) hosting up to {held} of its {cohort_size} clients per "
        f"round, in {groups} group(s) of {group_size}; {min(at_once, num_runs)} run(s) at "
        f"once{memory}",
        slots,
    )


def _gpu_fraction(resources: ResourcesConfig, nodes: Sequence[Node]) -> float:
    asked, gpus = resources.gpus_per_client, sum(n.gpus for n in nodes)
    if asked != "auto":
        if asked > 0 and gpus == 0:
            raise PlacementError(
                f"resources.gpus_per_client is {asked:g}, but the cluster's {len(nodes)} node(s) "
                f"have 0 GPUs; use 0 or auto to run on CPUs"
            )
        return float(asked)
    if gpus == 0:
        return 0.0
    need = resources.gpu_memory_bytes_per_client
    memory = min(_known_memory(nodes), default=None)
    if need is None or memory is None:
        return AUTO_GPU_FRACTION
    per_gpu = math.floor(memory * MEMORY_HEADROOM / need)
    return 1.0 / min(per_gpu, 16) if per_gpu >= 1 else 1.0


def _slots(node: Node, cpus: float, gpus: float) -> int:
    """Client actors that fit one node; a fraction never spans two GPUs."""
    by_cpu = math.floor(node.cpus / cpus + 1e-9)
    if gpus == 0:
        return by_cpu
    return min(by_cpu, int(node.gpus // gpus) if gpus >= 1 else int(node.gpus) * _per_gpu(gpus))


def _per_gpu(gpus: float) -> int:
    return max(1, math.floor(1 / gpus + 1e-9))


def _check_memory(need: int | None, nodes: Sequence[Node], gpus: float) -> str:
    """The check of the GPUs' memory in words; empty without `gpu_memory_bytes_per_client`.

    Raises:
        PlacementError: A GPU of known size has too little.
    """
    if need is None or gpus == 0:
        return ""
    per_gpu, known = _per_gpu(gpus), _known_memory(nodes)
    for memory in known:
        usable = int(memory * MEMORY_HEADROOM)
        have = f"but {MEMORY_HEADROOM:.0%} of its {_gib(memory)} is {_gib(usable)}"
        if need > usable:
            raise PlacementError(
                f"a client actor needs {_gib(need)} of one GPU, {have}; use larger GPUs or a "
                f"smaller engine.group_size, and measure again"
            )
        if per_gpu * need > usable:
            raise PlacementError(
                f"{per_gpu} client actors of {gpus:g} GPU share one GPU and need {per_gpu} x "
                f"{_gib(need)} = {_gib(per_gpu * need)}, {have}; raise resources.gpus_per_client"
            )
    unknown = sum(node.gpus > 0 for node in nodes) - len(known)
    words = f"; {per_gpu} x {_gib(need)} on a GPU of {_gib(min(known))}" if known else ""
    more = f"; GPU memory of {unknown} node(s) is unknown and was not checked" if unknown else ""
    return words + more


def _known_memory(nodes: Sequence[Node]) -> list[int]:
    """Bytes of the smallest GPU of each node that has told them."""
    return [node.gpu_memory_bytes for node in nodes if node.gpus and node.gpu_memory_bytes]


def _on_shared_gpus(
    nodes: Sequence[Node],
    actors: int,
    cpus: float,
    gpus: float,
    coordinator: bool,
    at_once: int,
) -> tuple[Bundle, list[Bundle], list[int]]:
    """Head, bundles and each actor's bundle: one bundle per GPU, spread before packed.

    Ray puts shares onto the fullest GPU that has room. To be spread, a run must therefore hold its
    GPUs as a whole. Runs are packed if they would otherwise wait for each other.
    """
    per_gpu = _per_gpu(gpus)
    devices = [n for n, node in enumerate(nodes) for _ in range(int(node.gpus))]  # their nodes
    free = [math.floor(node.cpus / cpus + 1e-9) for node in nodes]  # actors, by its CPUs
    load = [0] * len(devices)
    wanted = max(len(devices) // at_once, math.ceil((actors + coordinator) / per_gpu))
    chosen: list[int] = []
    for _ in range(actors):
        open_ = [d for d, n in enumerate(devices) if load[d] < per_gpu and free[n] > 0]
        if sum(count > 0 for count in load) >= wanted:  # enough GPUs are in use
            open_ = [d for d in open_ if load[d]] or open_
        near = {devices[d] for d in chosen}
        best = min(open_, key=lambda d: (load[d], devices[d] not in near, -free[devices[d]]))
        chosen.append(best)
        load[best] += 1
        free[devices[best]] -= 1
    used = [d for d, count in enumerate(load) if count]
    with_head = min(range(len(load)), key=lambda d: (load[d] == per_gpu, d not in used, load[d]))
    share = gpus if coordinator else 0.0
    head = {"GPU": round(share, 4)} if coordinator else {}

    def bundles(whole: bool) -> list[Bundle]:
        gpu = {d: 1 - share * (d == with_head) if whole else gpus * load[d] for d in used}
        return [{"CPU": cpus * load[d], "GPU": round(gpu[d], 4)} for d in used]

    where = [used.index(d) for d in chosen]
    whole, packed = bundles(True), bundles(False)
    spread = _fitting_runs(nodes, [head, *whole], at_once)
    held = whole if spread >= _fitting_runs(nodes, [head, *packed], at_once) else packed
    return head, held, where


def _fitting_runs(nodes: Sequence[Node], bundles: Sequence[Bundle], limit: int) -> int:
    """How many such runs fit a cluster if Ray places the bundles, each by best fit."""
    cpus = [node.cpus for node in nodes]
    devices = [(n, 1.0) for n, node in enumerate(nodes) for _ in range(int(node.gpus))]
    order = sorted(bundles, key=lambda b: (-b.get("GPU", 0), -b.get("CPU", 0)))
    for runs in range(limit):
        for bundle in filter(None, order):
            cpu, gpu = bundle.get("CPU", 0.0), bundle["GPU"]
            fits = [
                (share, cpus[n], d)
                for d, (n, share) in enumerate(devices)
                if share > gpu - 1e-6 and cpus[n] > cpu - 1e-6
            ]
            if not fits:
                return runs
            share, _, d = min(fits)
            devices[d] = devices[d][0], share - gpu
            cpus[devices[d][0]] -= cpu
    return limit


def _count(value: float, unit: str) -> str:
    return f"{value:g} {unit}{'' if value == 1 else 's'}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
