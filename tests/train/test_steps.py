"""Which checkpoint a training continues from, told by names alone."""

import subprocess

import pytest

from e2ray.config.base import SettingsError
from e2ray.train import steps


@pytest.fixture
def folder(tmp_path):
    for name in ("step-4", "step-12", "step-8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "latest").write_text("step-12\n")
    return tmp_path


def test_the_newest_stands_first_and_other_names_are_no_checkpoints(folder):
    for name in ("step-", "step-old", "step--3", "step-3.5", ".tmp-step-16", "step-99999999999999999999", "step-2"):
        (folder / name).mkdir()
    assert [step for step, _ in steps.step_folders(folder)] == [12, 8, 4]
    assert steps.latest(folder) == folder / "step-12"


def test_a_lost_pointer_is_refused_with_the_command_that_writes_it_again(folder):
    (folder / "latest").unlink()
    with pytest.raises(SettingsError, match=r"latest: is lost, and 3 checkpoints.*`echo step-12 > .*/latest`"):
        steps.latest(folder)


def test_a_training_that_began_has_a_pointer_before_its_first_checkpoint(tmp_path):
    assert steps.latest(tmp_path / "checkpoints") is None
    steps.begin(tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-0\n"
    assert steps.latest(tmp_path / "checkpoints") is None


def test_a_checkpoint_whose_pointer_was_not_written_any_more_is_taken(folder):
    (folder / "latest").write_text("step-0\n")
    assert steps.latest(folder) == folder / "step-12"


def test_beginning_leaves_a_pointer_and_a_lost_one_alone(folder):
    steps.begin(folder)
    assert steps.latest(folder) == folder / "step-12"
    (folder / "latest").unlink()
    steps.begin(folder)
    assert not (folder / "latest").exists()


@pytest.mark.parametrize(
    "content", [b"", b"step-", b"\xff\xfe", b"../step-4", b"step-4/../step-8", b"8", b"step-4 step-8", b"x" * 5000]
)
def test_a_pointer_that_says_something_else_is_one_short_line(folder, content):
    (folder / "latest").write_bytes(content)
    with pytest.raises(SettingsError, match=r"latest: .*wanted step-<n>; `echo step-12") as error:
        steps.latest(folder)
    assert len(str(error.value)) < 500


def test_a_pointer_that_is_a_folder_or_names_nothing_is_told(folder):
    (folder / "latest").write_text("step-16\n")
    with pytest.raises(SettingsError, match="names step-16, which is not there"):
        steps.latest(folder)
    (folder / "latest").unlink()
    (folder / "latest").mkdir()
    with pytest.raises(SettingsError, match="latest: cannot be read"):
        steps.latest(folder)


def test_the_command_that_writes_the_pointer_again_works_in_a_folder_with_spaces(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("my runs") / "it's mine"
    folder.rename(other)
    (other / "latest").unlink()
    with pytest.raises(SettingsError) as told:
        steps.latest(other)
    subprocess.run(str(told.value).split("`")[1], shell=True, check=True)
    assert steps.latest(other) == other / "step-12"


def test_a_named_checkpoint_without_its_manifest_is_one_to_look_at(folder):
    (folder / "step-12" / "manifest.json").unlink()
    assert steps.latest(folder) == folder / "step-12"  # whoever reads it says what it lacks, and takes the one before
