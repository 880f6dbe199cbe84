"""Reads the profiles that Sailor (Strati et al. 2025, SOSP; github.com/eth-easl/sailor) publishes.

Four forms of JSON, told apart by their shape, not by their name:

* times ``{model: {gpu: {micro_batch: {tp: {layer: [forward_s, backward_s, update_s]}}}}}``; where
  the outer levels are folders (``MODEL/GPU/profile.json``) their names count;
* sizes ``{model: {tp: {layer: {params_floats, act_mem_floats, act_output_floats, …}}}}``;
* links inside a node ``{gpu: {count: [[a, b, c], max]}}``, bus bandwidth of ``count`` chips;
* links between nodes ``{zone: {gpu: {count: {zone: {gpu: {count: [[a, b, c], max]}}}}}}``, what
  nodes of ``count`` chips reach together. A link is a x² + b x + c in 1e9 bytes/s with x the
  log2 of the size in 1e6 bytes, and ``max`` in bytes/s.

Sizes are of one sequence in fp32 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluribus.core.errors import ConfigError
from pluribus.measure.foreign import ForeignLink, ForeignProfile, ForeignSize, ForeignTime

SOURCE = "Sailor (eth-easl/sailor, MIT licence, (c) ETH Zurich)"
FLOAT_BYTES = 4

Table = Mapping[str, Any]


@dataclass
class SailorFiles:
    """What was found in Sailor's files, by model.

    Attributes:
        times: model -> rows with the file and key they came from.
    """

    times: dict[str, list[tuple[str, str, int, int, int, tuple[float, ...]]]] = field(
        default_factory=dict
    )
    sizes: dict[str, list[tuple[str, int, int, Table]]] = field(default_factory=dict)
    links: dict[tuple, tuple[bool, ForeignLink]] = field(default_factory=dict)

    def add(self, table: Any, path: Path) -> bool:
        """Takes one file's content.

        Returns:
            False if it is none of Sailor's forms.

        Raises:
            ConfigError: a value in it cannot be; names file, key and value.
        """
        form, depth = _form(table)
        file = str(path)
        if form == "times" and 3 <= depth <= 5:
            outer = {5: (), 4: (path.parent.name,)}.get(
                depth, (path.parent.parent.name, path.parent.name)
            )
            for keys, leaf in _leaves(table, depth, file):
                model, gpu, *numbers = (*outer, *keys)
                size, tp, layer = (_whole(n, file, keys) for n in numbers)
                if isinstance(leaf, list) and float("inf") in leaf:
                    continue  # did not fit in memory: a hole of the grid
                if not isinstance(leaf, list) or len(leaf) not in (2, 3):
                    raise _wrong(leaf, "[forward_s, backward_s, update_s]", file, keys)
                values = _numbers(leaf, None, file, keys)
                self.times.setdefault(model, []).append((file, gpu, size, tp, layer, values))
        elif form == "sizes" and 2 <= depth <= 3:
            for keys, leaf in _leaves(table, depth, file):
                model, *numbers = keys if depth == 3 else (path.parent.name, *keys)
                tp, layer = (_whole(n, file, keys) for n in numbers)
                self.sizes.setdefault(model, []).append((file, tp, layer, leaf))
        elif form == "link" and depth in (2, 6):
            for keys, leaf in _leaves(table, depth, file):
                self._link(keys, leaf, file)
        else:
            return False
        return True

    def _link(self, keys: tuple[str, ...], leaf: Any, file: str) -> None:
        if not isinstance(leaf, list) or len(leaf) != 2:
            raise _wrong(leaf, "[[a, b, c], max]", file, keys)
        polynomial = _numbers(leaf[0], None, file, keys, negative=True)
        (limit,) = _numbers(leaf[1:], 1, file, keys)
        unlike = False
        if len(keys) == 2:
            gpu, count = keys[0], _whole(keys[1], file, keys)
            # Bus bandwidth is of each chip; a curve is of all of them.
            link = ForeignLink(
                between=(gpu, gpu), chips=count, inside=True,
                polynomial=tuple(c * count for c in polynomial), limit_bytes_per_s=limit * count,
            )  # fmt: skip
        else:
            zone, gpu, count, other_zone, other_gpu, other_count = keys
            counts = _whole(count, file, keys), _whole(other_count, file, keys)
            link = ForeignLink(
                between=(f"{zone}/{gpu}", f"{other_zone}/{other_gpu}"), chips=min(counts),
                polynomial=polynomial, limit_bytes_per_s=limit,
            )  # fmt: skip
            unlike = counts[0] != counts[1]
        key = (*sorted(link.between), link.inside, link.chips)
        known = self.links.get(key)
        # Like nodes tell of a pair of unlike ones, and the slower direction of both.
        if known is None or (unlike, limit) < (known[0], known[1].limit_bytes_per_s):
            self.links[key] = (unlike, link)

    def profiles(self, model: str, sequence_length: int, precision: str) -> list[ForeignProfile]:
        """One foreign profile per file with times of a model; sizes and links with the first."""
        times: dict[str, list[ForeignTime]] = {}
        layers = 0
        for file, gpu, size, tp, layer, (forward, backward, *update) in self.times[model]:
            layers = max(layers, layer + 1)
            times.setdefault(file, []).append(
                ForeignTime(
                    chip=gpu, layers=str(layer), tensor_parallel=tp, micro_batch=size,
                    forward_s=forward, backward_s=backward, update_s=update[0] if update else None,
                )
            )  # fmt: skip
        sizes, hidden, vocab = self._sizes(model, layers, sequence_length)
        links = tuple(link for _, link in self.links.values())
        found = []
        for file, rows in times.items():
            first = not found
            profile = ForeignProfile(
                source=SOURCE, model=model, sequence_length=sequence_length, precision=precision,
                num_layers=layers, hidden_size=hidden, vocab_size=vocab, times=tuple(rows),
                sizes=sizes if first else (), links=links if first else (), file=file,
            )  # fmt: skip
            profile.check()
            found.append(profile)
        return found

    def _sizes(
        self, model: str, layers: int, sequence_length: int
    ) -> tuple[tuple[ForeignSize, ...], int | None, int | None]:
        """Sizes as rows, hidden size and vocabulary as far as the sizes tell."""
        rows, hidden, vocab = [], None, None
        for file, tp, layer, leaf in self.sizes.get(model, ()):
            at = (model, str(tp), str(layer))
            numbers = {
                key: _numbers([leaf.get(key)], 1, file, (*at, key))[0]
                for key in ("params_floats", "act_mem_floats", "act_output_floats")
            }
            if layer >= layers:
                raise _wrong(layer, f"a layer below {layers}, as the times have", file, at)
            rows.append(
                ForeignSize(
                    layers=str(layer), tensor_parallel=tp,
                    parameters=round(numbers["params_floats"]),
                    kept_bytes=numbers["act_mem_floats"] * FLOAT_BYTES,
                )
            )  # fmt: skip
            width, rest = divmod(round(numbers["act_output_floats"]), sequence_length)
            if layer == 1:
                if rest:
                    raise ConfigError(
                        f"'act_output_floats' is {numbers['act_output_floats']:g}, no multiple of "
                        f"the sequence length {sequence_length}",
                        where=f"{file} [{'.'.join(at)}]",
                        do="Say at which length it was measured with --sequence-length.",
                    )
                hidden = width
            if layer == layers - 1:  # logits are divided over the ranks; the loss is one more
                # A vocabulary is padded to what divides; the least padded is the nearest.
                vocab = min(vocab or width * tp, width * tp)
        return tuple(rows), hidden, vocab


def _form(table: Any) -> tuple[str, int]:
    """What kind of leaf a nest of tables ends in, and after how many keys."""
    if isinstance(table, list) and table:
        return "link" if isinstance(table[0], list) else "times", 0
    if not isinstance(table, Mapping):
        return "", 0
    if "params_floats" in table:
        return "sizes", 0
    for value in table.values():  # a hole may be an empty table
        form, depth = _form(value)
        if form:
            return form, depth + 1
    return "", 0


def _leaves(table: Any, depth: int, file: str, at: tuple[str, ...] = ()) -> Iterator[Any]:
    if depth == 0:
        yield at, table
        return
    if not isinstance(table, Mapping):
        raise _wrong(table, "a table", file, at)
    for key, value in table.items():
        yield from _leaves(value, depth - 1, file, (*at, key))


def _whole(text: str, file: str, at: tuple[str, ...]) -> int:
    if not text.isdecimal():
        raise _wrong(text, "a whole number as key", file, at)
    return int(text)


def _numbers(
    values: Any, count: int | None, file: str, at: tuple[str, ...], *, negative: bool = False
) -> tuple[float, ...]:
    good = isinstance(values, (list, tuple)) and (count is None or len(values) == count)
    for value in values if good else ():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = good and number and abs(value) < float("inf") and (negative or value >= 0)
    if not good:
        expected = "numbers" if count is None else f"{count} number{'s' if count > 1 else ''}"
        raise _wrong(values, f"{expected} of at least zero" if not negative else expected, file, at)
    return tuple(values)


def _wrong(value: Any, expected: str, file: str, at: tuple[str, ...]) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    return ConfigError(
        f"'{'.'.join(at)}' is {shown}", where=f"{file} [{'.'.join(at)}]",
        do=f"Write {expected} there, or leave the file out.",
    )  # fmt: skip
