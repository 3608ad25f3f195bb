"""The token's file, and who is let in: asked of a Ray that wants a token and of a server that wants none."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from e2ray.config.base import SettingsError
from e2ray.stages import access


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and nothing about Ray in the environment."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_token_is_its_owners_alone_whatever_the_umask(home, umask):
    before = os.umask(umask)
    try:
        assert access.keep_token_private(create=True) is None
    finally:
        os.umask(before)
    path = home / ".ray" / "auth_token"
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert len(path.read_text()) == 64 and [each.name for each in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("old", [0o644, 0o640, 0o604, 0o666])
def test_an_older_token_that_others_could_read_is_mended_and_told(home, old):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("abc")
    path.chmod(old)
    told = access.keep_token_private(create=True)
    assert told and f"mode {old:04o}" in told and str(path) in told and "\n" not in told
    assert mode(path) == 0o600 and path.read_text() == "abc"
    assert access.keep_token_private(create=True) is None


def test_a_token_named_elsewhere_is_looked_after_there(home, monkeypatch):
    path = home / "secrets" / "cluster"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert access.keep_token_private(create=False) is None and not path.exists()
    access.keep_token_private(create=True)
    assert mode(path) == 0o600 and not (home / ".ray").exists()
    path.chmod(0o644)
    assert "0644" in str(access.keep_token_private(create=False))


def test_a_link_to_a_token_that_is_not_there_yet_is_followed(home):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.symlink_to(home / "real_token")
    access.keep_token_private(create=True)
    assert mode(home / "real_token") == 0o600 and path.is_symlink() and len(path.read_text()) == 64


def test_a_token_in_the_environment_needs_no_file(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    assert access.keep_token_private(create=True) is None and list(home.iterdir()) == []


def test_two_runs_that_start_at_once_have_one_token(home):
    program = "from e2ray.stages import access; access.keep_token_private(create=True); print(access._token())"
    with ThreadPoolExecutor(4) as pool:
        commands = [[sys.executable, "-c", program]] * 4
        tokens = set(pool.map(lambda command: subprocess.check_output(command, text=True), commands))
    assert len(tokens) == 1 and len(tokens.pop().strip()) == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "wanted the file of Ray's token, found none"),
        (lambda path: path.write_text(""), "wanted the file of Ray's token, found none"),
        (lambda path: path.symlink_to("/proc/no/such"), "cannot be written: .* RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_what_is_no_token_file_is_told_and_left(home, monkeypatch, make, message):
    path = home / "token"
    make(path)
    before = path.lstat().st_mode
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path / "x" if path.is_symlink() else path))
    with pytest.raises(SettingsError, match=message) as caught:
        access.keep_token_private(create=True)
    assert "\n" not in str(caught.value) and path.lstat().st_mode == before


@pytest.mark.parametrize("word", ["", "none", "tokens", "k8s"])
def test_a_mode_that_ray_would_take_for_disabled_is_refused(monkeypatch, word):
    monkeypatch.setenv("RAY_AUTH_MODE", word)
    with pytest.raises(SettingsError, match=f"RAY_AUTH_MODE: '{word}' is unknown to Ray, wanted token or disabled"):
        access.check_mode()


@pytest.mark.parametrize("word", ["token", "Token", "disabled"])
def test_rays_own_modes_are_taken(monkeypatch, word):
    monkeypatch.setenv("RAY_AUTH_MODE", word)
    access.check_mode()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_loopback_is_known(host):
    assert access.is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "192.0.2.2", "::", "head.example", "fe80::1"])
def test_what_other_machines_reach_is_no_loopback(host):
    assert not access.is_loopback(host)


@pytest.fixture
def open_store():
    """Address of a control store that answers everybody."""

    class Alive(grpc.GenericRpcHandler):
        def service(self, call):
            return (
                grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
                if call.method == access.ALIVE
                else None
            )

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Alive()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("hosts", [["10.1.2.3"], ["127.0.0.1", "192.0.2.7"]])
@pytest.mark.parametrize("auth", ["token", "disabled", None])
def test_an_open_ray_that_others_reach_is_refused_unless_told(home, monkeypatch, open_store, hosts, auth):
    if auth:
        monkeypatch.setenv("RAY_AUTH_MODE", auth)
    with pytest.raises(SettingsError, match=rf"cluster\.allow_open: false.*{hosts[-1]}.*RAY_AUTH_MODE=token") as caught:
        access.admit(open_store, hosts, allow_open=False)
    assert "\n" not in str(caught.value)
    warning = access.admit(open_store, hosts, allow_open=True)
    assert warning and warning.startswith("warning: ") and hosts[-1] in warning and "\n" not in warning


@pytest.mark.parametrize("allow", [False, True])
def test_an_open_ray_of_this_machine_alone_is_warned_of(home, open_store, allow):
    warning = access.admit(open_store, ["127.0.0.1"], allow_open=allow)
    assert warning and "every user of this machine can run code in it" in warning


def test_who_does_not_answer_is_neither_open_nor_shut_and_that_is_told(home, monkeypatch):
    assert access.lets_in("127.0.0.1:9", with_token=False) is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    told = access.admit("127.0.0.1:9", ["10.1.2.3"], allow_open=False)
    assert told == "warning: the Ray at 127.0.0.1:9 could not be asked whether it lets in who has no token"


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_of_the_environment_is_not_asked_in_its_place(home, monkeypatch, open_store, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert access.lets_in(open_store, with_token=False) is True
    with pytest.raises(SettingsError, match=r"cluster\.allow_open"):
        access.admit(open_store, ["10.1.2.3"], allow_open=False)


@pytest.mark.parametrize("auth", ["token", None])
def test_under_rays_tls_a_certificate_is_wanted_of_everybody(home, monkeypatch, auth):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    if auth:
        monkeypatch.setenv("RAY_AUTH_MODE", auth)
    assert access.admit("127.0.0.1:9", ["10.1.2.3"], allow_open=False) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
@pytest.mark.parametrize("given", [0o640, 0o444])
def test_another_users_token_is_good_for_joining_and_not_for_starting(home, given):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("abc")
    path.chmod(given)
    os.chown(path, 1, -1)
    told = access.keep_token_private(create=False)
    assert told == (
        f"warning: {path}: Ray's token has mode {given:04o} and is another user's, so that others may read it"
    )
    with pytest.raises(SettingsError, match=r"is another user's.*; name a file of your own in RAY_AUTH_TOKEN_PATH"):
        access.keep_token_private(create=True)
    assert mode(path) == given


def test_a_token_that_cannot_be_mended_is_good_for_joining(home, monkeypatch):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("abc")
    path.chmod(0o644)

    def read_only(self, mode):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(type(path), "chmod", read_only)
    assert "cannot be changed: Read-only file system" in str(access.keep_token_private(create=False))
    with pytest.raises(SettingsError, match="cannot be changed: Read-only file system"):
        access.keep_token_private(create=True)


@pytest.mark.ray
def test_a_ray_with_a_token_lets_in_who_shows_it(ray_cluster, monkeypatch, tmp_path):
    address = ray_cluster.get_runtime_context().gcs_address
    assert access.lets_in(address, with_token=False) is False
    assert access.lets_in(address, with_token=True) is True
    assert access.admit(address, ["10.1.2.3"], allow_open=False) is None
    access.refuse_wrong_token(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SettingsError, match=r"RAY_ADDRESS: the Ray at .* wants a token; set RAY_AUTH_MODE=token"):
        access.refuse_wrong_token(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "other").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    with pytest.raises(SettingsError, match="wants another token than yours"):
        access.refuse_wrong_token(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="none: cannot be read, wanted Ray's token"):
        access.refuse_wrong_token(address)
