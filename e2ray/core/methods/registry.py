"""From the settings of a frequency method to its object, and the labels of lanes and methods."""

from e2ray.config.compare import UNTOUCHED
from e2ray.config.kinds import made_by
from e2ray.config.methods import METHODS, NAMED, TRAINED, UNTRAINED, Method, UntrainedMethod
from e2ray.core.methods.base import FrequencyMethod


def method_of(settings: Method | UntrainedMethod) -> FrequencyMethod:
    """Return the method that settings describe."""
    made: FrequencyMethod = made_by(METHODS, settings)(settings)
    return made


def lane_labels() -> dict[str, str]:
    """Return the label of each built-in lane of a comparison, in the order of tables."""
    untrained = {lane: f"{method_of(settings).label}, untrained" for lane, settings in UNTRAINED.items()}
    return {
        UNTOUCHED: "base, untouched",
        **untrained,
        **{lane: NAMED[lane].compared or NAMED[lane].label for lane in TRAINED},
    }


def names_page() -> str:
    """Return the tables of all names, as docs/positions.md has them: draws, then what a scale does to frequencies."""
    draws = [(f"`{name}`", each.label, each.source, _yes(each.preset), _yes(each.lane)) for name, each in NAMED.items()]
    methods = []
    for settings in METHODS:
        kind, made = settings.model_fields["kind"].default, made_by(METHODS, settings.model_construct())
        methods.append((f"`{kind}`", made.label, made.source, _yes(settings.trains), _yes(kind in UNTRAINED)))
    titles = ("called", "from")
    tables = (
        [("draws", *titles, "preset", "lane"), *draws],
        [("method", *titles, "trains", "untrained lane"), *methods],
    )
    lines = [[rows[0], (":---",) * len(rows[0]), *rows[1:]] for rows in tables]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in lines)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
