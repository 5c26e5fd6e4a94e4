"""Numbers as text, the same in the terminal, on the page and in papers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "-"


def human_bytes(num_bytes: float) -> str:
    """A size in binary units.

    >>> human_bytes(512), human_bytes(20_000), human_bytes(3 * 2**30)
    ('512 B', '19.5 KiB', '3.0 GiB')
    """
    return _scaled(num_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def human_flops(flops: float) -> str:
    """A number of floating-point operations.

    >>> human_flops(900), human_flops(41_830_400), human_flops(2.5e15)
    ('900', '41.8 M', '2.5 P')
    """
    return _scaled(flops, 1000, ("", " k", " M", " G", " T", " P", " E"))


def human_time(seconds: float) -> str:
    """A time in a unit that suits it.

    >>> human_time(0.0123), human_time(75), human_time(600), human_time(86_400)
    ('12 ms', '75.0 s', '10.0 min', '24.0 h')
    """
    if math.isnan(seconds):
        return NONE
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds else "0 s"
    unit, size = ("s", 1) if seconds < 100 else ("min", 60) if seconds < 6000 else ("h", 3600)
    return f"{seconds / size:.1f} {unit}"


def percent(share: float, sign: bool = False) -> str:
    """A share in percent with one decimal, without the sign `%`.

    >>> percent(0.1234), percent(0.02, sign=True)
    ('12.3', '+2.0')
    """
    if math.isnan(share):
        return NONE
    return f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"


def interval_text(mean: float, low: float, high: float, sign: bool = False) -> str:
    """A mean and its interval in percent; the mean alone where there is no interval.

    >>> interval_text(0.612, 0.6, 0.624)
    '61.2 [60.0, 62.4]'
    """
    text = percent(mean, sign)
    return text if math.isnan(low) else f"{text} [{percent(low, sign)}, {percent(high, sign)}]"


def half_text(mean: float, high: float, sign: bool = False) -> str:
    """A mean and half its interval in percent; the mean alone where there is no interval.

    >>> half_text(0.612, 0.624)
    '61.2 ± 1.2'
    """
    text = percent(mean, sign)
    return text if math.isnan(high) else f"{text} ± {percent(high - mean)}"


def p_text(p: float) -> str:
    """A p value.

    >>> p_text(0.0313), p_text(0.00002)
    ('0.031', '<0.001')
    """
    if math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def seconds_text(seconds: float) -> str:
    """A time in seconds, to the millisecond.

    >>> seconds_text(12.3456), seconds_text(0.01234), seconds_text(0.00005)
    ('12.3', '0.012', '<0.001')
    """
    if math.isnan(seconds):
        return NONE
    return "<0.001" if seconds < 0.001 else f"{seconds:.3f}" if seconds < 1 else f"{seconds:.1f}"


def cost_text(cost: float, spent: float, is_bytes: bool = False) -> str:
    """A cost to reach a target; `>` and all that was spent if it was not reached.

    >>> cost_text(3, 50), cost_text(math.inf, 50), cost_text(math.inf, 2048, is_bytes=True)
    ('3', '>50', '>2.0 KiB')
    """
    if math.isnan(cost):
        return NONE
    value = cost if math.isfinite(cost) else spent
    return (">" if math.isinf(cost) else "") + (human_bytes(value) if is_bytes else f"{value:g}")


def reach_text(row: Mapping[str, Any], ends: Sequence[str]) -> tuple[str, str]:
    """Rounds to every target, such as `2/7`, and bytes to the last one; `-` where none applies.

    `ends` are the ends of the row's cost columns, in rising order (see `target_name`).
    """
    if not ends or not row["rounds"] > 0:  # without training, nothing is reached
        return NONE, NONE
    rounds = "/".join(cost_text(row[f"rounds_to_{end}"], row["rounds"]) for end in ends)
    sent = cost_text(row[f"bytes_to_{ends[-1]}"], row["bytes_total"], is_bytes=True)
    return (rounds if set(rounds) - set("/-") else NONE), sent


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    """A number in the unit that suits it, with one decimal in all units but the first."""
    if math.isnan(number):
        return NONE
    for unit in units:
        if abs(number) < step - 0.05 or unit == units[-1]:
            break
        number /= step
    return f"{number:.0f}{unit}" if unit == units[0] else f"{number:.1f}{unit}"
