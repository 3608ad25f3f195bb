"""What shards were made with, held against what a recipe says."""

from e2ray.config.data import DataSettings
from e2ray.records.manifest import Manifest

OF_EARLIER_VERSIONS = ("pack", "validation_share", "seed")  # told beside the settings


def made_otherwise(data: DataSettings, manifest: Manifest) -> list[str]:
    """Return one line for each setting that the shards named by `data.shards` were not made with.

    A default is not meant, so only what a recipe says is told of.
    """
    if data.shards is None:
        return []
    sources = {"corpus": "sources", "validation_corpus": "validation_sources"}
    fields = {*OF_EARLIER_VERSIONS, *sources.values()}
    told = manifest.model_dump(mode="json", include=fields, exclude_unset=True)
    made = {name: told[name] for name in OF_EARLIER_VERSIONS if told.get(name) is not None} | manifest.settings
    wanted = data.made_with()
    for name, key in sources.items():
        if told.get(key) is not None:
            made[name], wanted[name] = told[key], data.model_dump(mode="json", include={name})[name]
    return [
        f"data.{name}: is without effect, since the shards of data.shards were made with another value; prepare "
        "them anew or choose another folder"
        for name in wanted
        if name in made and name in data.model_fields_set and not _same(made[name], wanted[name])
    ]


def _same(made: object, wanted: object) -> bool:
    """Return whether two values are one; what settings say by now and an older manifest does not is left out."""
    match made, wanted:
        case list(), list():
            return len(made) == len(wanted) and all(map(_same, made, wanted))
        case dict(), dict():
            return wanted | made == wanted
    return made == wanted
