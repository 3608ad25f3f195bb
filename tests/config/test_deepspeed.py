"""What a recipe may pass on to DeepSpeed: nothing that ours own, and nothing that DeepSpeed does not read."""

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from e2ray.config.deepspeed import OWNED, PASSED, PASSED_ZERO
from e2ray.config.train import TrainSettings


class Noted(dict):
    """A dict that remembers which of its keys it was asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self


def test_all_that_is_passed_on_is_read_by_deepspeed():
    noted = Noted({"train_batch_size": 1})
    DeepSpeedConfig(noted)
    assert noted.asked >= PASSED
    owned_zero = {path.removeprefix("zero_optimization.") for path in OWNED if "." in path}
    assert set(DeepSpeedZeroConfig.model_fields) >= PASSED_ZERO | owned_zero and not PASSED_ZERO & owned_zero
    assert not PASSED & set(OWNED)


@pytest.mark.parametrize("path", [*OWNED, "zero_optimization.stage"])
@pytest.mark.parametrize("value", [3, None, {}])
def test_what_follows_from_ours_is_refused_by_name(path, value):
    *above, name = path.split(".")
    settings = {name: value}
    for section in above:
        settings = {section: settings}
    with pytest.raises(ValueError, match=rf"deepspeed[\s\S]*{path} follows from {OWNED[path].split(',')[0]}"):
        TrainSettings(steps=1, deepspeed=settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation cannot be passed on, wanted one of aio, comms_logger"),
        ({"zero_optimization": {"overlap_com": True}}, "zero_optimization.overlap_com cannot be passed on, wanted one"),
        ({"zero_optimization": {"zenflow": {}}}, "zero_optimization.zenflow cannot be passed on"),
        ({"zero_optimization": 2}, "zero_optimization is a section, got 2"),
        ({"curriculum_learning": {}}, "curriculum_learning cannot be passed on"),
    ],
)
def test_what_deepspeed_would_ignore_or_train_otherwise_is_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        TrainSettings(steps=1, deepspeed=settings)
