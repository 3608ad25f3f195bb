"""What Ray Train unpickles first, in the driver's controller and in every worker: it loads nothing that trains."""

from typing import TYPE_CHECKING

from e2ray.loading import loading

if TYPE_CHECKING:
    from e2ray.train.task import Work


def start(config: "Work") -> None:
    """Run one Ray Train worker; what it needs is loaded here, in the worker alone."""
    with loading():
        from e2ray.train.rank import work

    work(config)
