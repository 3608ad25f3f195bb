"""What Ray Train unpickles first, in the driver's controller and in every worker: it loads nothing that trains."""

from e2ray.train.task import Work

from e2ray.loading import loading


def start(config: Work) -> None:
    """Run one Ray Train worker; what it needs is loaded here, in the worker alone."""
    with loading():
        from e2ray.train.rank import work

    work(config)
