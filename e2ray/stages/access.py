"""Access to a run's Ray: the token's file, whether a cluster asks for the token, and from where it can be reached.

Whoever reaches a Ray without a token runs code as the user that started it.
"""

import ipaddress
import os
import secrets
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import grpc

from e2ray.config.base import SettingsError
from e2ray.files import TEMPORARY

MODES = ("token", "disabled")
OTHERS = stat.S_IRWXG | stat.S_IRWXO
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # of Ray's control store; changes nothing, needs a token like all else


def token_file() -> Path | None:
    """Return the file that Ray reads its token from; None where the environment holds the token itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def sends_token() -> bool:
    """Return whether this process's Ray shows a token to the cluster it is connected to."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def check_mode() -> None:
    """Raise SettingsError if RAY_AUTH_MODE is unknown to Ray, which would take it for `disabled`."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in MODES:
        raise SettingsError(f"RAY_AUTH_MODE: {mode!r} is unknown to Ray, wanted token or disabled")


def keep_token_private(*, create: bool) -> str | None:
    """Make the token's file readable for its owner alone, and return a line about what was changed.

    Args:
        create: Make a token where there is none; Ray would make one in a file that everybody may read.

    Returns:
        None where there is nothing to report. A file that others may read and whose mode cannot be changed, such as a
        mounted secret or an administrator's, gives a warning where a cluster is joined with it.

    Raises:
        SettingsError: If it is no file or empty, or a Ray is to be started with one that cannot be written or changed.
    """
    path = token_file()
    if path is None:
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        if create:
            _new_token(path)
        return None
    except OSError as error:
        raise SettingsError(f"{path}: Ray's token cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise SettingsError(
            f"{path}: wanted the file of Ray's token, found none in it; name another in RAY_AUTH_TOKEN_PATH"
        )
    mode = stat.S_IMODE(status.st_mode)
    if not mode & OTHERS:
        return None
    problem = None
    if status.st_uid != os.geteuid():
        problem = "is another user's"
    else:
        try:
            path.chmod(0o600)
        except OSError as error:
            problem = f"cannot be changed: {error.strerror}"
    if problem is not None:
        line = f"{path}: Ray's token has mode {mode:04o} and {problem}, so that others may read it"
        if create:
            raise SettingsError(f"{line}; name a file of your own in RAY_AUTH_TOKEN_PATH, one that is not there yet")
        return f"warning: {line}"
    return (
        f"{path}: other users could read Ray's token (mode {mode:04o}); it is 0600 now. If one has read it, end your "
        "Rays and delete the file: the next one makes a new token"
    )


def _new_token(path: Path) -> None:
    """Write a new token; if two processes do so at once the first one's stays, and none reads half of it."""
    path = Path(os.path.realpath(path))  # of a link to a file that is not there yet
    aside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(aside, path)
    except OSError as error:
        raise SettingsError(
            f"{path}: Ray's token cannot be written: {error.strerror}; name another file in RAY_AUTH_TOKEN_PATH"
        ) from error
    finally:
        with suppress(OSError):  # there is none where it could not be made
            aside.unlink()


def lets_in(address: str, *, with_token: bool) -> bool | None:
    """Return whether the control store of a Ray at `host:port` answers a caller; None where it could not be asked.

    That is where nobody answers in time or speaks plain gRPC, as under TLS; it says nothing about who is let in.
    `with_token` sends this user's token.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own
        ask = channel.unary_unary(ALIVE, request_serializer=None, response_deserializer=None)
        try:
            ask(b"", timeout=10, metadata=[("authorization", f"Bearer {_token()}")] if with_token else None)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def _token() -> str:
    path = token_file()
    try:
        return (os.environ["RAY_AUTH_TOKEN"] if path is None else path.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: cannot be read, wanted Ray's token; name its file in RAY_AUTH_TOKEN_PATH"
        ) from error


def refuse_wrong_token(address: str) -> None:
    """Raise SettingsError if the Ray at `host:port` does not let this process in; Ray itself retries for long."""
    if lets_in(address, with_token=sends_token()) is False:
        token = "another token than yours" if sends_token() else "a token"
        raise SettingsError(
            f"RAY_ADDRESS: the Ray at {address} wants {token}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to "
            "the file of the token that it was started with"
        )


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def admit(address: str, hosts: Iterable[str], *, allow_open: bool) -> str | None:
    """Return a warning where the connected cluster asks for no token or could not be asked, None where it wants one.

    Under Ray's TLS every caller needs a certificate, which is as good. `address` is `host:port` of its control store,
    `hosts` those of its nodes.

    Raises:
        SettingsError: If it asks for none, can be reached from other machines, and the recipe does not allow that.
    """
    if os.environ.get("RAY_USE_TLS") == "1":
        return None
    if sends_token():
        everybody = lets_in(address, with_token=False)
        if everybody is None:
            return f"warning: the Ray at {address} could not be asked whether it lets in who has no token"
        if not everybody:
            return None
    beyond = sorted({host for host in (address.rpartition(":")[0], *hosts) if not is_loopback(host)})
    if not beyond:
        return (
            f"warning: the Ray at {address} asks for no token: every user of this machine can run code in it; set "
            "RAY_AUTH_MODE=token where it is started"
        )
    line = f"the Ray at {address} asks for no token and listens on {', '.join(beyond)}"
    if not allow_open:
        raise SettingsError(
            f"cluster.allow_open: false, but {line}: whoever reaches that network can run code in it; start it "
            "with RAY_AUTH_MODE=token, or set cluster.allow_open=true on a network that is yours alone"
        )
    return f"warning: {line}: whoever reaches that network can run code in it (cluster.allow_open: true)"
