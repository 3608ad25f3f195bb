"""From the settings of a frequency method to the object that knows it."""

from typing import assert_never

from e2ray.config.methods import (
    DynamicNtkMethod,
    FactorsMethod,
    LinearMethod,
    Method,
    NtkMethod,
    RampPowerMethod,
    TruncatedMethod,
    UntrainedMethod,
    YarnMethod,
)
from e2ray.core.methods.base import FrequencyMethod
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.listed import Factors, Truncated
from e2ray.core.methods.ntk import DynamicNtk, Ntk
from e2ray.core.methods.ramped import RampPower, Yarn


def method_of(settings: Method | UntrainedMethod) -> FrequencyMethod:
    """Return the method that settings describe."""
    match settings:
        case LinearMethod():
            return Linear()
        case NtkMethod():
            return Ntk()
        case YarnMethod():
            return Yarn(settings)
        case RampPowerMethod():
            return RampPower(settings)
        case FactorsMethod():
            return Factors(settings)
        case TruncatedMethod():
            return Truncated()
        case DynamicNtkMethod():
            return DynamicNtk()
    assert_never(settings)
