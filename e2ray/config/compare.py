"""The methods of a comparison, each a lane: the same loop, tokens, documents and questions for all."""

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config.base import Seed, Settings, Text, each_once
from e2ray.config.methods import NAMED, TRAINED, UNTRAINED, UntrainedLane
from e2ray.config.positions import PositionSettings
from e2ray.config.retrieval import RetrievalSettings
from e2ray.config.train import AnyObjective

if TYPE_CHECKING:
    TrainedLane = str
else:
    TrainedLane = Literal[TRAINED]
LANE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _,+-]{0,59}")
UNTOUCHED = "base"  # the lane that is always there
FIXED_SCALE = tuple(lane for lane in TRAINED if NAMED[lane].one_scale)


class OwnLane(Settings):
    """A trained lane of any draws, read by any method, for any objective."""

    positions: PositionSettings = Field(description="Draws, and the method that reads them.")
    objective: AnyObjective | None = Field(None, description="What is descended; null: what the recipe says.")
    seeds: int | None = Field(None, ge=1, description="First ones of compare.seeds; null: all.")


class CompareSettings(Settings):
    """The lanes of a comparison on one base model; the draws' largest scale is the recipe's."""

    lanes: tuple[TrainedLane, ...] = Field(
        tuple(lane for lane in TRAINED if lane != "best"),
        strict=False,
        description="Trained lanes. e2llm is the paper's preset; pi_long trains on rows of max_scale * L real tokens, "
        "all others on rows of data.window; best takes draws and learning rate from the recipe named below.",
    )
    untrained: tuple[UntrainedLane, ...] = Field(
        tuple(UNTRAINED), strict=False, description="Extensions of the base model that need no training."
    )
    own: dict[str, OwnLane] = Field({}, description="Further trained lanes, by the name that tables show.")
    best: Text | None = Field(None, description="Recipe that a study has found, for the lane best.")
    seeds: tuple[Seed, ...] = Field((101, 102, 103), strict=False, min_length=1, description="Of each trained lane.")
    long_window_seeds: int = Field(1, ge=1, description="Seeds of pi_long, the expensive lane: the first ones.")
    retrieval: RetrievalSettings | None = Field(
        RetrievalSettings(), description="What each lane is asked, at the scale it is served with; null: nothing."
    )

    @field_validator("own")
    @classmethod
    def _names(cls, value: dict[str, OwnLane]) -> dict[str, OwnLane]:
        for name in value:
            if not LANE_NAME.fullmatch(name):
                raise ValueError(
                    f"{name[:80]!r} is no name of a lane, wanted at most 60 letters, digits, spaces and _ , + -: "
                    "it names files"
                )
        return value

    _each_once = field_validator("lanes", "untrained", "seeds")(each_once)

    @model_validator(mode="after")
    def _check_best(self) -> "CompareSettings":
        taken = [name for name in self.own if name in (*TRAINED, *UNTRAINED, UNTOUCHED)]
        if taken:
            raise ValueError(f"own: {taken[0]} is the name of a lane that is built in; choose another")
        if not self.lanes and not self.own:
            raise ValueError("lanes: is empty and so is own, there is nothing to train; name a lane")
        if "best" in self.lanes and self.best is None:
            raise ValueError("best: is null, the lane best needs the recipe of a study; name it or leave the lane out")
        return self


def lane_positions(lane: str, max_scale: float) -> PositionSettings:
    """Return the draws of a trained lane other than `best`, up to the largest scale that it trains for."""
    return PositionSettings.model_validate(NAMED[lane].positions(max_scale))
