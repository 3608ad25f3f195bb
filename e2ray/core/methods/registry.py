"""From the settings of a frequency method to the object that knows it."""

from e2ray.config.kinds import made_by
from e2ray.config.methods import METHODS, Method, UntrainedMethod
from e2ray.core.methods.base import FrequencyMethod


def method_of(settings: Method | UntrainedMethod) -> FrequencyMethod:
    """Return the method that settings describe."""
    made: FrequencyMethod = made_by(METHODS, settings)(settings)
    return made
