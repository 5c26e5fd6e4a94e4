"""The partition schemes: which client owns which sample. One function, one scheme.

    owner : int64 (N,), client of each sample, -1 = unused
    N samples, n clients, C classes, alpha = dirichlet_alpha

Every scheme ends after a fixed amount of work; what a minimum client size needs beyond that is
moved afterwards (`fedsim.data.partition.repair`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsim.data.partition.sampling import Ask, Draft, log_dirichlet, softmax, split_counts
from fedsim.errors import ConfigError, PartitionError

__all__ = ["SCHEMES"]


def _hand_out(ask: Ask, counts: np.ndarray) -> np.ndarray:
    """Owners for the given `counts` (n, C): random samples of each class; the rest is unused."""
    owner = np.full(len(ask.labels), -1, dtype=np.int64)
    clients = np.arange(len(counts))
    for label in range(ask.num_classes):
        rows = ask.rng.permutation(np.flatnonzero(ask.labels == label))
        to = np.repeat(clients, counts[:, label])
        owner[rows[: len(to)]] = to
    return owner


def iid(ask: Ask) -> Draft:
    """A random permutation cut into equal parts; sizes differ by at most one."""
    owner = np.empty(len(ask.labels), dtype=np.int64)
    owner[ask.rng.permutation(len(owner))] = np.arange(len(owner)) % ask.num_clients
    return Draft(owner)


def dirichlet_label(ask: Ask) -> Draft:
    """Each class is shared over clients by its own draw from Dir(alpha * 1_n).

    Yurochkin et al. 2019 (arXiv 1905.12022), NIID-Bench (arXiv 2102.02079). Client sizes vary.
    """
    alpha = ask.need("dirichlet_alpha", "dirichlet_label")
    return Draft(_hand_out(ask, _label_counts(ask, alpha)))


def _label_counts(ask: Ask, alpha: float, keep: np.ndarray | None = None) -> np.ndarray:
    """`(n, C)` counts: class sizes (or `keep`) times one Dir(alpha) draw per class."""
    sizes = np.bincount(ask.labels, minlength=ask.num_classes) if keep is None else keep
    laws = softmax(log_dirichlet(ask.rng, np.full(ask.num_clients, alpha), ask.num_classes))
    return np.stack(
        [split_counts(ask.rng, int(s), law) for s, law in zip(sizes, laws, strict=True)], axis=1
    )


def dirichlet_client(ask: Ask) -> Draft:
    """Clients of equal size, each with its own label law from Dir(alpha * C * p).

    p is the global label law, so that classes of equal size give Dir(alpha * 1_C). Hsu et al.
    2019 (arXiv 1909.06335) write Dir(alpha_Hsu * p): alpha_Hsu = C * alpha. Samples are drawn
    without replacement, client after client in random order; a class that has run out is struck
    from the law, which stays Dirichlet on the others. All samples are used, so that the last
    clients take what is left.
    """
    alpha = ask.need("dirichlet_alpha", "dirichlet_client")
    left = np.bincount(ask.labels, minlength=ask.num_classes)
    total, num = len(ask.labels), ask.num_clients
    present = left > 0
    prior = np.where(present, left, 1) / total * ask.num_classes * alpha
    logs = np.where(present, log_dirichlet(ask.rng, prior, num), -np.inf)
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    order = ask.rng.permutation(num)
    sizes = total // num + (np.arange(num) < total % num)
    for client, size in zip(order, sizes, strict=True):
        missing = int(size)
        while missing:  # every pass fills the client or empties a class
            law = softmax(np.where(left > 0, logs[client], -np.inf))
            drawn = np.minimum(ask.rng.multinomial(missing, law), left)
            counts[client] += drawn
            left -= drawn
            missing -= int(drawn.sum())
    return Draft(_hand_out(ask, counts))


def dirichlet_balanced(ask: Ask) -> Draft:
    """As `dirichlet_label`, but a client that holds N / n samples gets no more.

    The scheme of FedDGM's code (build_client_dataset_dirichlet), as in NIID-Bench: class after
    class, the shares of full clients are set to zero and the rest renormalised. The original then
    draws everything again until each client has 10 samples; here `min_samples` moves samples.
    """
    alpha = ask.need("dirichlet_alpha", "dirichlet_balanced")
    num, total = ask.num_clients, len(ask.labels)
    logs = log_dirichlet(ask.rng, np.full(num, alpha), ask.num_classes)
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    sizes = np.zeros(num, dtype=np.int64)
    for label, size in enumerate(np.bincount(ask.labels, minlength=ask.num_classes)):
        if size:
            open_clients = np.where(sizes < total / num, logs[label], -np.inf)
            counts[:, label] = split_counts(ask.rng, int(size), softmax(open_clients))
            sizes += counts[:, label]
    return Draft(_hand_out(ask, counts))


def pathological(ask: Ask) -> Draft:
    """Each client holds `classes_per_client` classes; every class is held by someone.

    McMahan et al. 2017 (arXiv 1602.05629) deal label-sorted shards; here classes are dealt, so
    that the number per client is exact. Class uses differ by at most one. With
    n * classes_per_client = C the class sets are disjoint (PromptFL's split).
    """
    each = int(ask.need("classes_per_client", "pathological"))
    present = np.flatnonzero(np.bincount(ask.labels, minlength=ask.num_classes))
    num, num_classes = ask.num_clients, len(present)
    if each > num_classes:
        raise PartitionError(
            f"pathological: classes_per_client is {each}, but the data has {num_classes} classes"
        )
    slots = num * each
    if slots < num_classes:
        raise PartitionError(
            f"pathological: {num} clients x {each} classes = {slots} cannot cover {num_classes} "
            f"classes: set classes_per_client to {-(-num_classes // num)} or more"
        )
    quota = slots // num_classes + (ask.rng.permutation(num_classes) < slots % num_classes)
    allowed = np.zeros((num, ask.num_classes), dtype=bool)
    for client in range(num):  # taking the most wanted classes keeps the rest feasible
        take = np.lexsort((ask.rng.random(num_classes), -quota))[:each]
        allowed[client, present[take]] = True
        quota[take] -= 1
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    for label in present:
        holders = np.flatnonzero(allowed[:, label])
        size = int((ask.labels == label).sum())
        counts[holders, label] = split_counts(ask.rng, size, np.ones(len(holders)))
    return Draft(_hand_out(ask, counts), allowed=allowed)


def quantity(ask: Ask) -> Draft:
    """Unequal client sizes, labels IID: log-normal sizes, or Dirichlet ones.

    With `size_sigma`, sizes are in proportion to exp(N(0, sigma^2)) (FedLab); with
    `dirichlet_alpha`, to one draw from Dir(alpha * 1_n) (NIID-Bench). Set one of the two.
    """
    alpha, sigma, num = ask.dirichlet_alpha, ask.size_sigma, ask.num_clients
    if (sigma is None) == (alpha is None):
        raise ConfigError("partition 'quantity' needs size_sigma or dirichlet_alpha: set one")
    if sigma is not None:
        shares = softmax(sigma * ask.rng.standard_normal(num))
        note = f"quantity: log-normal sizes, size_sigma {sigma:g}"
    else:
        assert alpha is not None
        shares = softmax(log_dirichlet(ask.rng, np.full(num, alpha), 1)[0])
        note = f"quantity: Dirichlet sizes, dirichlet_alpha {alpha:g}"
    owner = np.empty(len(ask.labels), dtype=np.int64)
    sizes = split_counts(ask.rng, len(owner), shares)
    owner[ask.rng.permutation(len(owner))] = np.repeat(np.arange(num), sizes)
    return Draft(owner, (note,))


def domain(ask: Ask) -> Draft:
    """Each client holds samples of one domain; a domain may be shared by several clients.

    Feature skew as in FedCLIP (arXiv 2302.13485). Clients are given to domains in proportion to
    the domain sizes, at least one each. Within a domain the split is IID, or by label with
    `dirichlet_alpha` as in FedOTP (arXiv 2403.00041).
    """
    if ask.domains is None:
        raise PartitionError("partition 'domain': this data set has no domains")
    names, which = np.unique(ask.domains, return_inverse=True)
    num_domains, num = len(names), ask.num_clients
    if num < num_domains:
        raise PartitionError(
            f"partition 'domain': {num} clients cannot cover {num_domains} domains with one "
            f"domain each: set num_clients to {num_domains} or more"
        )
    sizes = np.bincount(which)
    shares = np.ones(num_domains, dtype=np.int64)
    for _ in range(num - num_domains):  # the domain whose clients would be largest gets one more
        shares[np.argmax(sizes / shares)] += 1
    for size, clients, name in zip(sizes, shares, names, strict=True):
        if clients * ask.min_samples > size:
            raise PartitionError(
                f"partition 'domain': domain {name} has {size} samples for {clients} clients x "
                f"min_samples {ask.min_samples} = {clients * ask.min_samples}: ask for less"
            )
    owner = np.empty(len(ask.labels), dtype=np.int64)
    for index, first in enumerate(np.cumsum(shares) - shares):
        rows = np.flatnonzero(which == index)
        part = replace(ask, labels=ask.labels[rows], num_clients=int(shares[index]))
        draft = iid(part) if ask.dirichlet_alpha is None else dirichlet_label(part)
        owner[rows] = first + draft.owner
    holds = np.repeat(np.arange(num_domains), shares)
    cells = which * ask.num_classes + ask.labels
    allowed = np.repeat(holds[:, None] == np.arange(num_domains), ask.num_classes, axis=1)
    told = ", ".join(f"{name}: {count}" for name, count in zip(names, shares, strict=True))
    return Draft(owner, (f"domain: clients per domain {told}",), cells, allowed)


def natural(ask: Ask) -> Draft:
    """The clients recorded in the data, in ascending order of their ids.

    With fewer `num_clients` than ids, whole clients are merged: the largest first, each into the
    group that is smallest so far. With more, there is no answer.
    """
    if ask.clients is None:
        raise PartitionError("partition 'natural': this data set has no client ids")
    ids, which = np.unique(ask.clients, return_inverse=True)
    num = ask.num_clients
    if num > len(ids):
        raise PartitionError(
            f"partition 'natural': num_clients is {num}, but the data has {len(ids)} clients"
        )
    if num == len(ids):
        return Draft(which.astype(np.int64))
    sizes = np.bincount(which)
    group, filled = np.empty(len(ids), dtype=np.int64), np.zeros(num, dtype=np.int64)
    for client in np.argsort(-sizes, kind="stable"):
        group[client] = np.argmin(filled)
        filled[group[client]] += sizes[client]
    return Draft(group[which], (f"natural: {len(ids)} recorded clients merged into {num}",))


def longtail(ask: Ask) -> Draft:
    """A globally long-tailed set, then shared as in `dirichlet_label`.

    Class c keeps at most n_max * imbalance_factor^(-c / (C - 1)) samples, at least one, with
    n_max the size of the largest class (Cui et al. 2019, arXiv 1901.05555; federated in CReFF,
    arXiv 2204.13399). The samples left over are unused.
    """
    alpha = ask.need("dirichlet_alpha", "longtail")
    factor = ask.need("imbalance_factor", "longtail")
    sizes = np.bincount(ask.labels, minlength=ask.num_classes)
    decay = factor ** (-np.arange(ask.num_classes) / max(ask.num_classes - 1, 1))
    keep = np.minimum(sizes, np.maximum(np.floor(sizes.max() * decay + 0.5).astype(np.int64), 1))
    need = ask.num_clients * ask.min_samples
    if keep.sum() < need:
        raise PartitionError(
            f"longtail: imbalance_factor {factor:g} keeps {keep.sum()} of {sizes.sum()} samples, "
            f"fewer than {ask.num_clients} clients x min_samples {ask.min_samples} = {need}"
        )
    note = f"longtail: {sizes.sum() - keep.sum()} of {sizes.sum()} samples are unused"
    return Draft(_hand_out(ask, _label_counts(ask, alpha, keep)), (note,))


SCHEMES: dict[str, Callable[[Ask], Draft]] = {
    "iid": iid,
    "dirichlet_label": dirichlet_label,
    "dirichlet_client": dirichlet_client,
    "dirichlet_balanced": dirichlet_balanced,
    "pathological": pathological,
    "quantity": quantity,
    "domain": domain,
    "natural": natural,
    "longtail": longtail,
}
