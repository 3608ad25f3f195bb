import gc
from contextlib import suppress

import pytest

from e2ray.loading import loading


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_rests_in_the_block_and_is_what_it_was_behind_it(was_on):
    (gc.enable if was_on else gc.disable)()
    try:
        with suppress(ImportError), loading():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
