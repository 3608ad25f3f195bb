"""What shards were made with, held against what a recipe says."""

from typing import Any

from e2ray.config.data import DataSettings
from e2ray.records.manifest import Manifest


def made_otherwise(data: DataSettings, manifest: Manifest) -> list[str]:
    """Return one line for each setting that the shards named by `data.shards` were not made with.

    A default is not meant, so only what a recipe says is told of.
    """
    if data.shards is None:
        return []
    of_earlier_versions = {name: manifest[name] for name in ("pack", "validation_share", "seed") if name in manifest}
    found, wanted = of_earlier_versions | manifest.get("settings", {}), data.made_with()
    for name, key in (("corpus", "sources"), ("validation_corpus", "validation_sources")):
        if key in manifest:
            found[name], wanted[name] = manifest[key], data.model_dump(mode="json", include={name})[name]
    return [
        f"data.{name}: is without effect, since the shards of data.shards were made with another value; prepare "
        "them anew or choose another folder"
        for name in wanted
        if name in found and name in data.model_fields_set and not _same(found[name], wanted[name])
    ]


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two values are one; what settings say by now and an older manifest does not is left out."""
    if found is None or wanted is None:
        return found is wanted
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool({**wanted, **found} == wanted if isinstance(wanted, dict) else found == wanted)
