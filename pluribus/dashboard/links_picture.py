"""The links between ranks as one page: rate above the diagonal, latency below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from pluribus.core.units import format_bytes
from pluribus.dashboard import svg
from pluribus.dashboard.tables import table

_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP = 96.0, 40.0, 110.0, 34.0
_STEPS = 6  # of shading, from the slowest link to the fastest
_LEAST_RANGE = 2.0  # links that differ by less are shaded alike


def links_page(found: Mapping[str, Any]) -> str:
    """The whole page; it opens offline and fetches nothing.

    Args:
        found: what `comm.survey.links` returned.
    """
    ranks, links = found["ranks"], found["links"]
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    slowest = min(links, key=lambda link: link["bytes_per_s"])
    a, b = slowest["ranks"]
    islands = len({rank["island"] for rank in ranks})
    lead = (
        f"{len(ranks)} ranks, {islands} {'island' if islands == 1 else 'islands'}. The slowest "
        f"link is between ranks {a} and {b}: {rate_text(slowest['bytes_per_s'])}."
    )
    caption = "Above the diagonal: rate of a large message. Below it: latency of a small one."
    title = "Links between ranks"
    rows = [
        [
            "–".join(map(str, link["ranks"])), rate_text(link["bytes_per_s"]),
            latency_text(link["latency_s"]), f"{link['loss']:.2%}",
        ]
        for link in links
    ]  # fmt: skip
    numbers = table("Every pair of ranks", ["ranks", "rate", "latency", "sent again"], rows)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="lead">{escape(lead)}</p>\n</header>\n'
        f"<section>\n<figure>{links_figure(ranks, links)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n</section>\n"
        f"<section>\n{numbers}\n</section>\n</main>\n</body>\n</html>\n"
    )


def links_figure(ranks: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]) -> str:
    """The matrix as SVG."""
    size = len(ranks)
    width, height = _LEFT + size * _CELL_WIDTH, _TOP + size * _CELL_HEIGHT
    label = f"Rate and latency between {size} ranks."
    return svg.figure(width, height, label, _matrix(ranks, links))


def _matrix(
    ranks: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    rates = [math.log(link["bytes_per_s"]) for link in links]
    low, high = min(rates), max(rates)
    for rank in ranks:
        at = rank["rank"]
        middle = _TOP + (at + 0.6) * _CELL_HEIGHT
        yield svg.text(_LEFT - 10, middle, f"rank {at}, island {rank['island']}", "small", "end")
        yield svg.text(_LEFT + (at + 0.5) * _CELL_WIDTH, 20, f"rank {at}", "small strong", "middle")
    for link in links:
        a, b = link["ranks"]
        share = (math.log(link["bytes_per_s"]) - low) / max(high - low, math.log(_LEAST_RANGE))
        css = f"heat heat-{min(_STEPS - 1, int(share * _STEPS))}"
        tip = f"ranks {a} and {b}: {link['loss']:.2%} of packets sent again"
        for row, column, words in (
            (a, b, rate_text(link["bytes_per_s"])), (b, a, latency_text(link["latency_s"])),
        ):  # fmt: skip
            x, y = _LEFT + column * _CELL_WIDTH, _TOP + row * _CELL_HEIGHT
            yield svg.rect(x, y, _CELL_WIDTH, _CELL_HEIGHT, css, tip, 4)
            yield svg.text(x + _CELL_WIDTH / 2, y + 25, words, "small", "middle")


def rate_text(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"


def latency_text(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-2 else f"{1e3 * seconds:.1f} ms"
