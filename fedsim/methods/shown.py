"""How methods look in tables and figures, by name.

A method that is not listed needs no entry: tables sort it by name, and figures give it a free
colour. `CEILINGS` and `ZERO_SHOT` serve only for tables of studies that were written before a run
recorded these facts itself (`runs.pooled`, `runs.zero_shot`).
"""

from __future__ import annotations

CONTROLS = ("zero_shot", "synthetic_only", "prior_only", "local_only", "local")
"""Stand first in tables, in this order."""
REFERENCE = "fedavg"
"""Names that begin so stand next; by default the others are compared with the first of them."""
ZERO_SHOT = ("zero_shot",)
CEILINGS = (
    "centralised",
    "centralized",
    "centralised_head",
    "centralised_cache",
    "centralised_classifier",
)

COLORS = {
    "fedavg": "#0072B2",
    "cachefl": "#D55E00",
    "feddgm": "#009E73",
    "cachefl_dgm": "#CC79A7",
    "fedavg_head": "#0072B2",
    "fedavg_finetune": "#56B4E9",
    "fedprox": "#661100",
    "scaffold": "#E69F00",
    "promptfl": "#332288",
    "synthetic_only": "#999933",
    "prior_only": "#DDAA33",
}
"""One colour per method, so that the figures of different studies agree.

Colours are those of Okabe and Ito and of Paul Tol's muted set, told apart with any colour vision.
"""
