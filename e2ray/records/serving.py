"""The file in serving/<context length>/ of an export beside its README."""

from pydantic import ConfigDict, Field

from e2ray.records.record import Length, Record, Scale


class Commands(Record):
    """commands.json: how the context length is served, a command line for each server under its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    what = "the commands of a serving profile"
    anew = "run `e2ray export` again"
    vouched = False

    context_length: Length = Field(description="W.")
    scale: Scale = Field(description="g it is served at.")
