"""Something done again and again in a thread beside the work of a block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def following(look: Callable[[], None], *, every_s: float, failed: Callable[[Exception], None]) -> Iterator[None]:
    """Call `look` each `every_s` seconds in a daemon thread while the block runs.

    An exception of `look` ends the calls, not the block: `failed` is told of it once.
    """
    ended = threading.Event()

    def follow() -> None:
        try:
            while not ended.wait(every_s):
                look()
        except Exception as error:  # the work goes on without the looking
            failed(error)

    thread = threading.Thread(target=follow, name="e2ray follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
