"""Each class is shared over clients by its own draw from Dir(alpha * 1_n).

Yurochkin et al. 2019 (arXiv 1905.12022), NIID-Bench (arXiv 2102.02079). Client sizes vary.
"""

from __future__ import annotations

from fedsim.data.partition.sampling import Ask, DirichletOptions, Draft, hand_out, label_counts

Options = DirichletOptions


def assign(ask: Ask, options: Options) -> Draft:
    """One draw per class, then random samples of it."""
    return hand_out(ask, label_counts(ask, options.dirichlet_alpha))
