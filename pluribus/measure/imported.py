"""Imports measurements taken elsewhere: finds them in files, and checks them against a job."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pluribus.core.errors import ConfigError, MissingFileError, nearest, sentence
from pluribus.core.io import read_json
from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.cluster import Cluster
from pluribus.measure.foreign import ForeignProfile, to_profile
from pluribus.measure.sailor import SailorFiles
from pluribus.model.model import Model
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile

# Names that share no word with the catalogue's.
_ALIASES = {"gh-96": "nvidia-gh200-96g"}


@dataclass(frozen=True)
class Defaults:
    """What files that do not say it are taken to have been measured with.

    Sailor's profiles are of 2048 tokens in fp32 (its training script's defaults).
    """

    sequence_length: int = 2048
    precision: str = "fp32"


@dataclass(frozen=True)
class Found:
    """The measurements of one model.

    Attributes:
        files: the foreign profiles.
        skipped: JSON files of a folder that hold something else.
    """

    files: tuple[ForeignProfile, ...]
    skipped: tuple[str, ...] = ()

    @property
    def first(self) -> ForeignProfile:
        return self.files[0]


def find(
    paths: Sequence[Path], model: str | None = None, defaults: Defaults | None = None
) -> Found:
    """Reads foreign profiles, in our format and in Sailor's, from files and folders.

    Args:
        paths: files, or folders whose JSON files are all looked at.
        model: which one, if the files hold several.
        defaults: for files that say neither sequence length nor precision.

    Raises:
        MissingFileError, ConfigError: names file, key and value.
    """
    defaults = defaults or Defaults()
    ours: dict[str, list[ForeignProfile]] = {}
    sailor, skipped = SailorFiles(), []
    for path in paths:
        if not path.exists():
            raise MissingFileError("no such file or folder", where=str(path), do="Check the path.")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            table = read_json(file)
            if isinstance(table, dict) and "foreign_profile" in table:
                profile = ForeignProfile.from_table(table, str(file))
                ours.setdefault(profile.model, []).append(profile)
            elif not sailor.add(table, file):
                if file == path:
                    raise ConfigError(
                        "is neither a foreign profile nor one of Sailor's files", where=str(file),
                        do="docs/measure.md describes both; ours has the key 'foreign_profile'.",
                    )  # fmt: skip
                skipped.append(str(file))
    models = sorted({*ours, *sailor.times})
    if not models:
        raise ConfigError(
            "no layer times found", where=", ".join(map(str, paths)),
            do="Name a file, or a folder with one, as docs/measure.md describes.",
        )  # fmt: skip
    if model is None and len(models) > 1:
        raise ConfigError(
            f"hold {len(models)} models: {', '.join(models)}", where=", ".join(map(str, paths)),
            do="Choose one with --model.",
        )  # fmt: skip
    name = model or models[0]
    if name not in models:
        raise ConfigError(
            f"no times of a model '{name}'", where=", ".join(map(str, paths)),
            do=sentence(nearest(name, models)),
        )  # fmt: skip
    files = list(ours.get(name, ()))
    if name in sailor.times:
        files += sailor.profiles(name, defaults.sequence_length, defaults.precision)
    for file in files[1:]:
        for key in ("sequence_length", "precision", "num_layers"):
            if getattr(file, key) != getattr(files[0], key):
                raise file.error(
                    key, getattr(file, key),
                    f"{files[0].file} has {getattr(files[0], key)}: import them one at a time.",
                )  # fmt: skip
    return Found(tuple(files), tuple(skipped))


def profile_of(found: Found, own: Mapping[str, str] | None = None) -> Profile:
    """The found measurements under the chip keys of cluster files."""
    return to_profile(found.files, chip_namer(own or {}))


def chip_namer(own: Mapping[str, str]) -> Callable[[str], str]:
    """Names a foreign chip: as `own` says, else the catalogue's key that has all its words and
    fewest others, else as it is.

    Args:
        own: keys by the names in the files, such as those of a cluster's own chips.
    """
    catalogue = load_catalogue()
    lower = {name.lower(): key for name, key in own.items()}

    def key_of(name: str) -> str:
        plain = name.lower()
        known = lower.get(plain) or _ALIASES.get(plain) or (plain if plain in catalogue else None)
        if known:
            return known
        words = _words(name)
        hits = {key: len(_words(key)) for key in catalogue if words and words <= _words(key)}
        best = [key for key, extra in hits.items() if extra == min(hits.values())]
        return best[0] if len(best) == 1 else name

    return key_of


def _words(name: str) -> set[str]:
    return {re.sub(r"(\d)(?:g|gb)$", r"\1", word) for word in re.split(r"[-_ ]", name.lower())}


def check_job(
    profile: Profile, found: Found, job: Job, model: Model, cluster: Cluster
) -> list[str]:
    """Whether measurements serve a job on a cluster.

    Returns:
        What the user should know, a line each.

    Raises:
        ConfigError: they are of another sequence length, precision or number of layers, or of
            none of the cluster's chips.
    """
    first, train = found.first, job.train
    for key, asked in (
        ("sequence_length", train.sequence_length), ("precision", train.precision),
        ("num_layers", len(model.layers)),
    ):  # fmt: skip
        if getattr(first, key) != asked:
            whose = f"the model {model.name}" if key == "num_layers" else "the job"
            raise first.error(
                key, getattr(first, key), f"{whose[0].upper()}{whose[1:]} has {asked}: measure "
                "that, or change the job to what was measured.",
            )  # fmt: skip
    measured = {time.chip for time in profile.layers}
    chips = {pool.chip.key for pool in cluster.pools}
    if not measured & chips:
        raise first.error(
            "times", ", ".join(sorted(measured)),
            f"The cluster has {', '.join(sorted(chips))}. Give a chip of cluster.toml the key of "
            "the measured one, or say which is which with --chip NAME=KEY.",
        )  # fmt: skip
    notes = [
        f"{chip} was not measured: formulas say its times" for chip in sorted(chips - measured)
    ]
    notes += [f"{chip} was measured, but the cluster has none" for chip in sorted(measured - chips)]
    notes += [
        f"{pool.address} stays out: {pool.chip.key} has no rate in {first.precision}; give the "
        f"chip as a table with its {first.precision} rate in measured_tflops"
        for pool in cluster.pools
        if pool.chip.key in measured and not pool.chip.supports(first.precision)
    ]
    parameters, sizes = model.num_parameters, [s for s in profile.sizes if s.tensor_parallel == 1]
    if sizes:
        from pluribus.predict.measured_layer import measured_model

        as_measured = measured_model(model, profile, train.sequence_length, train.precision)
        share = as_measured.num_parameters / parameters - 1
        if abs(share) > 0.02:
            notes.append(
                f"the model that was measured has {as_measured.num_parameters / 1e6:.0f} million "
                f"parameters, {model.name} has {parameters / 1e6:.0f}: sizes are as measured"
            )
    return notes
