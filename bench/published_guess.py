"""What a row leaves out and its run must have had: the ZeRO stage and the micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pluribus.core.units import GIB
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.regular import Layout, regular_terms
from pluribus.predict.regular_memory import regular_memory
from pluribus.predict.software import Software

_MICRO_BATCHES = (1, 2, 4, 8, 16)

# Nobody publishes a run that idles for more than this share of its work where its program could
# cut the stages finer; a typical figure, not fitted.
_MOST_BUBBLE = 0.25


def likely_layout(
    layout: Layout,
    model: Model,
    pool: Pool,
    run: tuple[int, str, Software],
    unknown: Iterable[str],
    peak_gib: float | None,
) -> tuple[Layout, list[str]]:
    """Fills what is unknown, with a flag for each guess.

    A run that was published fitted its chips: of the ZeRO stages the lowest that fits. And its
    authors had tried a few micro-batches: of those that fit the quickest, or the one whose
    memory is nearest to what they report.

    Args:
        run: sequence length, precision and program.
        unknown: of ``zero`` and ``micro_batch``.
        peak_gib: published peak of a chip.
    """
    unknown, flags = set(unknown), []
    candidates = list(_candidates(layout, unknown))
    fitting = [each for each in candidates if regular_memory(model, pool, each, *run).fits]
    fitting = fitting or candidates[-1:]
    lowest = min(each.zero for each in fitting)

    def distance(each: Layout) -> float:
        if peak_gib:
            return abs(regular_memory(model, pool, each, *run).total / GIB - peak_gib)
        return regular_terms(model, pool, each, *run).seconds()

    chosen = min((each for each in fitting if each.zero == lowest), key=distance)
    if "zero" in unknown:
        flags.append(f"no ZeRO stage given, taken as {chosen.zero}: the lowest that fits")
    if "micro_batch" in unknown:
        how = "one whose memory is nearest" if peak_gib else "quickest that fits"
        flags.append(f"no micro-batch given, taken as the {how}")
    return chosen, flags


def likely_chunks(stages: int, micro_batches: int, layers: int) -> int:
    """Virtual stages of a run that does not give them: as few as keep the bubble of interleaved
    1F1B, (S - 1) / (v M) of the work, within bounds."""
    chunks = 1
    while (
        micro_batches % stages == 0
        and 2 * chunks * stages <= layers
        and (stages - 1) / (chunks * micro_batches) > _MOST_BUBBLE
    ):
        chunks *= 2
    return chunks


def least_layout(layout: Layout, unknown: Iterable[str]) -> tuple[Layout, list[str]]:
    """The same for a run that ran out of memory: nothing says what it needed, so what is unknown
    is what programs start from."""
    flags = [f"no {name.replace('_', '-')} given, taken as the least" for name in unknown]
    least = {"zero": 0, "micro_batch": 1}
    return replace(layout, **{name: least[name] for name in unknown}), flags


def _candidates(layout: Layout, unknown: set[str]) -> Iterator[Layout]:
    each_replica = max(1, layout.global_batch // layout.dp)
    # At least as many micro-batches as stages: fewer leave some of them idle all the time.
    most = max(1, each_replica // layout.pp)
    sizes = [size for size in _MICRO_BATCHES if each_replica % size == 0 and size <= most]
    for zero in range(4) if "zero" in unknown else (layout.zero,):
        for size in sizes if "micro_batch" in unknown else (layout.micro_batch,):
            yield replace(layout, zero=zero, micro_batch=size)
