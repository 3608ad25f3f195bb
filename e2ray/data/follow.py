"""A function called repeatedly in a thread while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def following(look: Callable[[], None], *, every_s: float, failed: Callable[[Exception], None]) -> Iterator[None]:
    """Call `look` each `every_s` seconds in a daemon thread while the block runs.

    An exception of `look` ends the calls, not the block: `failed` is called with it once.
    """
    ended = threading.Event()

    def follow() -> None:
        try:
            while not ended.wait(every_s):
                look()
        except Exception as error:  # the work goes on without these calls
            failed(error)

    thread = threading.Thread(target=follow, name="e2ray follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
