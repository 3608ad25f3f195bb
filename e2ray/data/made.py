"""The settings that shards were made with, compared with a recipe's."""

from e2ray.config.data import DataSettings
from e2ray.records.manifest import Manifest

OF_EARLIER_VERSIONS = ("pack", "validation_share", "seed")  # recorded beside the settings


def made_otherwise(data: DataSettings, manifest: Manifest) -> list[str]:
    """Return one line for each setting that the shards named by `data.shards` were not made with.

    Defaults are not meant, so only settings that the recipe names are compared.
    """
    if data.shards is None:
        return []
    sources = {"corpus": "sources", "validation_corpus": "validation_sources"}
    fields = {*OF_EARLIER_VERSIONS, *sources.values()}
    recorded = manifest.model_dump(mode="json", include=fields, exclude_unset=True)
    made = {name: recorded[name] for name in OF_EARLIER_VERSIONS if recorded.get(name) is not None} | manifest.settings
    settings = data.made_with()
    for name, key in sources.items():
        if recorded.get(key) is not None:
            made[name], settings[name] = recorded[key], data.model_dump(mode="json", include={name})[name]
    return [
        f"data.{name}: is without effect, since the shards of data.shards were made with another value; prepare "
        "them anew or choose another folder"
        for name in settings
        if name in made and name in data.model_fields_set and not _same(made[name], settings[name])
    ]


def _same(made: object, setting: object) -> bool:
    """Return whether two values are equal, apart from settings that an older manifest does not have yet."""
    match made, setting:
        case list(), list():
            return len(made) == len(setting) and all(map(_same, made, setting))
        case dict(), dict():
            return setting | made == setting
    return made == setting
