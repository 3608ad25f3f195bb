import json
import shutil

import pytest

from e2ray.config.base import SettingsError
from e2ray.train import checkpoint

FIRST, THEN, END = 0, 4, 7


@pytest.fixture(scope="module")
def saved_by_two(train_on_ranks, tmp_path_factory):
    """Two ranks under ZeRO-3 train unbroken and save at step 4; then load it again under stages 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    unbroken = {"stage": 3, "start": FIRST, "stop": END}
    saving = {"stage": 3, "start": FIRST, "stop": THEN, "save": str(folder)}
    loading = [
        {"stage": stage, "load": str(folder / f"step-{THEN}"), "start": THEN, "stop": END} for stage in (0, 1, 2, 3)
    ]
    losses = train_on_ranks(2, [unbroken, saving, *loading])
    return folder, losses[0], losses[2:]


@pytest.fixture(scope="module")
def loaded_by_one(saved_by_two, train_on_ranks):
    folder, unbroken, _ = saved_by_two
    phases = [
        {"stage": stage, "load": str(folder / f"step-{THEN}"), "start": THEN, "stop": END} for stage in (0, 1, 2, 3)
    ]
    return unbroken, train_on_ranks(1, [*phases, {"stage": 0, "start": FIRST, "stop": END}])


def test_two_ranks_continue_in_every_stage_as_if_unbroken(saved_by_two):
    _, unbroken, loaded = saved_by_two
    for losses in loaded:
        for mine, wanted in zip(losses, unbroken[THEN:], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-6)  # the order of sums over ranks differs by stage


def test_one_rank_continues_in_every_stage_what_two_ranks_began(loaded_by_one):
    unbroken, (*loaded, _) = loaded_by_one
    for losses in loaded:
        for mine, wanted in zip(losses, unbroken[THEN:], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-6)


def test_one_rank_without_zero_trains_like_two_under_zero_3(loaded_by_one):
    unbroken, (*_, alone) = loaded_by_one
    for mine, wanted in zip(alone, unbroken, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-6)


def test_restart_in_one_world_is_equal_in_every_bit(train_on_ranks, tmp_path):
    cases = [
        {"stage": 2, "precision": "bf16"},
        {"stage": 1, "precision": "bf16", "tied": False},
        {"stage": 2, "offload": "optimizer"},
        {"stage": 1, "lora": True},
    ]
    phases = []
    for number, case in enumerate(cases):
        folder = str(tmp_path / str(number))
        phases += [
            case | {"start": FIRST, "stop": END},
            case | {"start": FIRST, "stop": THEN, "save": folder},
            case | {"start": THEN, "stop": END, "load": f"{folder}/step-{THEN}"},
        ]
    losses = train_on_ranks(1, phases)
    for number in range(len(cases)):
        unbroken, _, restarted = losses[3 * number : 3 * number + 3]
        assert restarted == unbroken[THEN:], cases[number]


def test_every_parameter_is_saved_once_in_plain_safetensors(saved_by_two):
    from safetensors import safe_open

    folder = saved_by_two[0] / f"step-{THEN}"
    state = checkpoint.read_state(folder)
    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as part:
            names += list(part.keys())
    wanted = [f"{kind}/{name}" for kind in checkpoint.KINDS for name in state["parameters"]]
    assert sorted(names) == sorted(wanted)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert len(list(folder.glob("*.safetensors"))) == 2  # each rank wrote its part
    assert checkpoint.latest(saved_by_two[0]) == folder


@pytest.fixture
def copied(saved_by_two, tmp_path):
    shutil.copytree(saved_by_two[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / f"step-{THEN}"


def test_a_flipped_bit_is_named(copied):
    path = sorted(copied.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{path.name}: is damaged.*choose an older"):
        checkpoint.read_state(copied)


def test_a_truncated_or_missing_part_is_named(copied):
    path = min(copied.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SettingsError, match=rf"{path.name}: is missing or truncated"):
        checkpoint.read_state(copied)
    path.unlink()
    with pytest.raises(SettingsError, match=rf"{path.name}: is missing or truncated"):
        checkpoint.read_state(copied)


def test_a_changed_manifest_is_named(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["state.json"]["bytes"] += 1
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SettingsError, match=r"manifest\.json: is damaged"):
        checkpoint.read_state(copied)


def test_latest_that_names_nothing_is_told(copied):
    (copied.parent / "latest").write_text("step-99\n")
    with pytest.raises(SettingsError, match="names step-99, which is not there"):
        checkpoint.latest(copied.parent)
    assert checkpoint.latest(copied) is None  # a folder without the pointer holds no checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: Is a directory; write the name of a step-<n> folder beside it into it, as a file"),
        (b"\x80\xff\x00", "is damaged, it holds no text; write the name"),
        (b"", "is damaged, it holds '', wanted step-<n>; write the name"),
        (b"\n", "is damaged, it holds '', wanted step-<n>"),
        (b"../other/step-4\n", r"is damaged, it holds '\.\./other/step-4', wanted step-<n>"),
        (b"..", r"is damaged, it holds '\.\.', wanted step-<n>"),
        (b"/etc", "is damaged, it holds '/etc', wanted step-<n>"),
        (b"step-4/../step-4", "is damaged, it holds 'step-4/"),
        (b"step-4\0", r"is damaged, it holds 'step-4\\x00'"),
        (b"step-" + b"9" * 5000, f"names step-{'9' * 95}, which is not there; write"),
        (b"x" * 5000, f"is damaged, it holds '{'x' * 100}', wanted step-<n>"),
    ],
)
def test_a_pointer_that_names_no_checkpoint_is_one_short_line(tmp_path, content, message):
    pointer = tmp_path / "latest"
    if content is None:
        pointer.mkdir()
    else:
        pointer.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"\A\S+latest: {message}") as error:
        checkpoint.latest(tmp_path)
    assert len(str(error.value)) < 400
