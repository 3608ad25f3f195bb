"""Files appear whole or not at all, whatever ends the writer; digests; locks held and freed across processes."""

import errno
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from e2ray import files
from e2ray.config.base import SettingsError


def child(code, *arguments):
    """Start Python code in a process of its own; its standard output can be read."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(process):
    """End a process as a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def visible(folder):
    """Return the names in a folder that are not temporary."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(files.TEMPORARY))


# ---- whole or not at all ----------------------------------------------------------------------------------------


def test_a_written_file_has_its_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "text.txt"
    files.write_text(path, "ä\n")
    files.write_text(str(path), "second\n")
    assert path.read_bytes() == b"second\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]


def test_an_error_in_the_block_leaves_the_old_content(tmp_path):
    path = tmp_path / "text.txt"
    files.write_text(path, "old")

    def fail():
        with files.atomic_path(path) as aside:
            aside.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text.txt"]


def test_a_writer_killed_in_the_middle_leaves_the_old_content(tmp_path):
    path = tmp_path / "text.txt"
    files.write_text(path, "old")
    process = child(
        """
        import sys, time
        from e2ray import files
        with files.atomic_path(sys.argv[1]) as aside:
            aside.write_text("half")
            print("written", flush=True)
            time.sleep(60)
        """,
        path,
    )
    assert process.stdout.readline() == "written\n"
    kill(process)
    assert path.read_text() == "old"
    assert visible(tmp_path) == ["text.txt"]
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_folder_killed_in_the_middle_never_appears(tmp_path):
    process = child(
        """
        import sys, time
        from e2ray import files
        with files.atomic_folder(sys.argv[1]) as aside:
            (aside / "first").write_text("whole")
            print("written", flush=True)
            time.sleep(60)
        """,
        tmp_path / "folder",
    )
    assert process.stdout.readline() == "written\n"
    kill(process)
    assert visible(tmp_path) == []


def test_readers_see_only_whole_files_while_a_writer_is_killed_at_any_moment(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, ["old"] * 20_000)
    for _ in range(3):
        process = child(
            """
            import sys
            from e2ray import files
            for turn in range(10**9):
                files.write_json(sys.argv[1], [turn] * 20_000)
                print(turn, flush=True)
            """,
            path,
        )
        process.stdout.readline()
        seen = [json.loads(path.read_text()) for _ in range(20)]
        kill(process)
        for value in [*seen, json.loads(path.read_text())]:
            assert len(value) == 20_000
            assert len(set(value)) == 1


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with files.atomic_folder(folder) as aside:
        (aside / "old").write_text("1")
    with files.atomic_folder(folder) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "new").write_text("2")
        assert visible(folder) == ["old"]
    assert visible(folder) == ["sub"]
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_an_error_while_a_folder_is_filled_leaves_the_older_one(tmp_path):
    folder = tmp_path / "folder"
    with files.atomic_folder(folder) as aside:
        (aside / "old").write_text("1")

    def fail():
        with files.atomic_folder(folder) as aside:
            (aside / "new").write_text("2")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert visible(folder) == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"a": -float("inf")}]])
def test_json_without_a_meaning_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", value)
    assert list(tmp_path.iterdir()) == []


# ---- file systems that refuse -----------------------------------------------------------------------------------

LIMITED = """
    import resource, signal, sys
    from pathlib import Path
    from e2ray import files
    from e2ray.config.base import SettingsError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    folder, what = Path(sys.argv[1]), sys.argv[2]
    try:
        if what == "file":
            files.write_text(folder / "text.txt", "x" * 100_000)
        else:
            with files.atomic_folder(folder / "text.txt") as aside:
                (aside / "big").write_bytes(bytes(100_000))
    except SettingsError as error:
        print(error)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_beyond_the_limit_of_files_is_one_line_and_leaves_nothing(tmp_path, what):
    process = child(LIMITED, tmp_path, what)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    wanted = "a file may not grow that large here; raise the limit (`ulimit -f`) or choose another storage"
    assert output == f"{tmp_path / 'text.txt'}: {wanted}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    wanted = r"\A\S+text.txt: no space left on the device; free some or choose another storage\Z"
    with pytest.raises(SettingsError, match=wanted), files.atomic_path(tmp_path / "text.txt"):
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on the device; free some or choose another storage"),
        (errno.EDQUOT, "the disk quota is used up; free some of it, have it raised or choose another storage"),
        (errno.EFBIG, "a file may not grow that large here; raise the limit (`ulimit -f`) or choose another storage"),
        (errno.EROFS, "cannot be written: Read-only file system; choose another storage"),
    ],
)
def test_each_refusal_of_a_file_system_has_its_own_words(tmp_path, number, words):
    plain = OSError(number, os.strerror(number))
    hidden = RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    for error in (plain, hidden):
        with (
            pytest.raises(SettingsError, match=rf"\A\S+text\.txt: {re.escape(words)}\Z"),
            files.naming(tmp_path / "text.txt"),
        ):
            raise error
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("os error 28"), KeyError("x")):
        with pytest.raises(type(error)) as found, files.naming(tmp_path / "text.txt"):
            raise error
        assert found.value is error and error.__cause__ is None


def save_tensors(path):
    save_file({"a": np.zeros(50_000)}, path)


def save_table(path):
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(50_000)}), path)


def save_picture(path):
    figure = Figure()
    figure.subplots().plot(np.random.default_rng(0).random(5_000))
    figure.savefig(path, format="png", dpi=400)


def save_tokenizer(path):
    Tokenizer(models.WordLevel({f"word {n}": n for n in range(9_000)}, unk_token="word 0")).save(str(path))


def save_text(path):
    path.write_bytes(bytes(100_000))


@pytest.mark.parametrize("save", [save_tensors, save_table, save_picture, save_tokenizer, save_text])
def test_a_full_disk_is_told_whatever_library_writes(small_disk, limited, save):
    def write():
        with files.atomic_path(small_disk / "file") as aside:
            save(aside)

    with pytest.raises(SettingsError, match=r"\A\S+disk/file: no space left on the device; free some or choose .*\Z"):
        write()
    with (
        limited(4096),
        pytest.raises(SettingsError, match=r"\A\S+disk/file: a file may not grow that large here; .*\Z"),
    ):
        write()
    assert list(small_disk.iterdir()) == []


def write(path):
    files.write_text(path, "x")


def fill(path):
    with files.atomic_folder(path) as aside:
        (aside / "file").write_text("x")


def hold(path):
    with files.lock(path, what="testing"):
        pass


@pytest.mark.parametrize("action", [write, fill, hold])
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("file", "name"), "File exists|Not a directory"),
        (("file", "deeper", "name"), "Not a directory"),
        (("n" * 300, "name"), "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, action, parts, reason):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=rf"\A\S+name: cannot be written: ({reason}); choose another storage\Z"):
        action(tmp_path.joinpath(*parts))
    assert visible(tmp_path) == ["file"]


def test_a_file_that_is_read_for_a_folder_is_named_itself(tmp_path):
    with (
        pytest.raises(SettingsError, match=r"\A/elsewhere/LICENSE: cannot be read: Permission denied\Z"),
        files.atomic_folder(tmp_path / "model"),
    ):
        raise PermissionError(13, "Permission denied", "/elsewhere/LICENSE")
    with (
        pytest.raises(SettingsError, match=r"model: cannot be written: Permission denied; choose another storage\Z"),
        files.atomic_folder(tmp_path / "model") as aside,
    ):
        raise PermissionError(13, "Permission denied", str(aside / "LICENSE"))
    assert visible(tmp_path) == []


UNPRIVILEGED = """
    import os, sys
    from e2ray import files
    from e2ray.config.base import SettingsError
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write everywhere
    path, what = sys.argv[1:]
    try:
        if what == "lock":
            with files.lock(path, what="testing"):
                print("taken")
        elif what == "file":
            files.write_text(path, "x")
        else:
            with files.atomic_folder(path):
                print("made")
    except SettingsError as error:
        print(error)
"""


@pytest.mark.parametrize("what", ["file", "folder", "lock"])
def test_a_folder_without_permission_is_one_line(tmp_path, what):
    tmp_path.chmod(0o500)
    try:
        output, errors = child(UNPRIVILEGED, tmp_path / "name", what).communicate(timeout=60)
    finally:
        tmp_path.chmod(0o700)
    wanted = f"{tmp_path / 'name'}: cannot be written: Permission denied; choose another storage\n"
    assert (output, errors) == (wanted, "")


# ---- reading and digests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"is no JSON \(Expecting property name .*\); wanted a manifest"),
        (b"", r"is no JSON \(Expecting value: .*\); wanted a manifest"),
        (b"\xff\xfe", r"is no JSON \(.*invalid start byte\); wanted a manifest"),
        (b"[" * 100_000, "is nested too deep; wanted a manifest"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deep; wanted a manifest"),
        (b"9" * 5_000, r"is no JSON \(Exceeds the limit .*\); wanted a manifest"),
    ],
)
def test_a_damaged_json_file_is_named_with_what_it_should_be(tmp_path, content, message):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"\A\S+value\.json: {message}\Z"):
        files.read_json(path, wanted="a manifest")


def test_every_flipped_bit_of_a_sealed_object_is_noticed_or_harmless(tmp_path):
    path, value = tmp_path / "value.json", {"name": "ä", "nll": [1.25, 3e-5, 7], "none": None, "deep": {"a": True}}
    files.write_sealed(path, value)
    assert files.read_told(path, wanted="it") == (value, True)
    content, noticed = path.read_bytes(), 0
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found, told = files.read_told(path, wanted="it")
        except SettingsError as error:
            noticed += "value.json: is " in str(error)
        else:  # white space
            assert (found, told) == (value, True)
    assert noticed > 0.8 * 8 * len(content)
    files.write_json(path, value)  # as an earlier version wrote it
    assert files.read_told(path, wanted="it") == (value, False)


def test_a_missing_json_file_is_named_with_what_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"value\.json: not found; wanted a manifest"):
        files.read_json(tmp_path / "value.json", wanted="a manifest")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory; wanted a manifest"):
        files.read_json(tmp_path, wanted="a manifest")


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"ä": [1, 2.5, None, True, "\u2028"], "b": {}}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json", wanted="it") == value


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_the_digest_of_a_file_is_its_sha256(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abä"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=2), DATA, max_size=4))
def test_the_digest_of_data_knows_no_order_of_keys(value):
    shuffled = dict(reversed(value.items()))
    assert files.digest(value) == files.digest(shuffled)
    assert files.digest(value) == files.digest(json.loads(json.dumps(value)))


@given(DATA, DATA)
def test_different_data_have_different_digests(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (files.digest(one) == files.digest(other)) == same


def test_the_digest_of_data_never_changes_between_versions():
    wanted = hashlib.sha256('{"a":[1,2.5,null],"b":"ä"}'.encode()).hexdigest()
    assert files.digest({"b": "ä", "a": (1, 2.5, None)}) == wanted


# ---- locks ------------------------------------------------------------------------------------------------------

HOLDER = """
    import sys, time
    from e2ray import files
    with files.lock(sys.argv[1], what="holding it"):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_lock_of_another_process_is_named_and_freed_by_its_death(tmp_path):
    path = tmp_path / "new" / ".lock"
    process = child(HOLDER, path)
    assert process.stdout.readline() == "held\n"
    wanted = r"\A\S+\.lock: locked, another process is preparing these shards; wait for it or end it\Z"
    with pytest.raises(SettingsError, match=wanted), files.lock(path, what="preparing these shards"):
        pytest.fail("two holders")
    kill(process)
    with files.lock(path, what="preparing these shards"):
        assert path.exists()


def test_a_lock_is_free_again_behind_its_block_and_behind_an_error(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), files.lock(path, what="testing"):
            raise RuntimeError("inside")
    with files.lock(path, what="testing"):
        with pytest.raises(SettingsError, match="locked"), files.lock(path, what="testing"):
            pytest.fail("two holders")
    with files.lock(path, what="testing"):
        pass


def test_errors_of_the_locked_work_are_left_as_they_are(tmp_path):
    with pytest.raises(PermissionError, match="of the work"), files.lock(tmp_path / ".lock", what="testing"):
        raise PermissionError("of the work")


def test_what_is_no_finite_number_becomes_null():
    value = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf}, "d": "nan", "e": True, "f": None}
    assert files.finite(value) == {"a": [1.5, None, [None, 2]], "b": {"c": None}, "d": "nan", "e": True, "f": None}
    json.dumps(files.finite(value), allow_nan=False)


def test_whether_a_lock_is_held_is_known_without_taking_it(tmp_path):
    path = tmp_path / ".lock"
    assert files.is_locked(path) is None
    with files.lock(path, what="testing"):
        assert files.is_locked(path) is True
    assert files.is_locked(path) is False
    process = child(HOLDER, path)
    assert process.stdout.readline() == "held\n"
    assert files.is_locked(path) is True
    kill(process)
    assert files.is_locked(path) is False


def test_who_asks_whether_a_lock_is_held_keeps_nobody_from_taking_it(tmp_path):
    path, ended = tmp_path / ".lock", threading.Event()
    path.touch()

    def ask():
        while not ended.is_set():
            files.is_locked(path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            with files.lock(path, what="testing"):
                pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "text", ['{"a": NaN, "digest": "0"}', '{"a": "\\ud800", "digest": "0"}', '{"a": 1, "digest": null}']
)
def test_what_no_digest_can_vouch_for_is_damage(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(SettingsError, match="file: is damaged, its digest does not match; wanted a file"):
        files.read_told(tmp_path / "file", wanted="a file")


@pytest.mark.parametrize("name", ["digesu", "eigest", "dhgest"])
def test_a_digest_under_a_name_of_one_other_bit_is_damage_and_another_key_of_its_length_is_none(tmp_path, name):
    files.write_sealed(tmp_path / "file", {"a": 1})
    text = (tmp_path / "file").read_text()
    (tmp_path / "file").write_text(text.replace('"digest"', f'"{name}"'))
    with pytest.raises(SettingsError, match="its digest does not match"):
        files.read_told(tmp_path / "file", wanted="a file")
    value = {"bytes": 1, "sha256": "a" * 64}
    (tmp_path / "file").write_text(json.dumps(value))
    assert files.read_told(tmp_path / "file", wanted="a file") == (value, False)
