import json
import shutil

import pytest

from e2ray.config.base import SettingsError
from e2ray.train import checkpoint, steps

FIRST, THEN, END = 0, 4, 7
RESTARTED = (
    {"stage": 2, "precision": "bf16"},
    {"stage": 1, "precision": "bf16", "tied": False},
    {"stage": 2, "offload": "optimizer"},
    {"stage": 1, "lora": True},
)


@pytest.fixture(scope="module")
def asked(train_on_ranks, tmp_path_factory):
    """Everything that these tests ask, started once, of two ranks and then of one: see the fixtures below."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    unbroken = {"stage": 3, "start": FIRST, "stop": END}
    saving = {"stage": 3, "start": FIRST, "stop": THEN, "save": str(folder)}
    loading = [
        {"stage": stage, "load": str(folder / f"step-{THEN}"), "start": THEN, "stop": END} for stage in (0, 1, 2, 3)
    ]
    spoiled, folders = spoiled_phases([{"stage": 0, "clip": 0.0}, {"stage": 3}], tmp_path_factory)
    restarts = []
    for case in RESTARTED:
        own = str(tmp_path_factory.mktemp("restarted"))
        restarts += [
            case | {"start": FIRST, "stop": END},
            case | {"start": FIRST, "stop": THEN, "save": own},
            case | {"start": THEN, "stop": END, "load": f"{own}/step-{THEN}"},
        ]
    alone = {"stage": 0, "start": FIRST, "stop": END}
    of_two, of_one = train_on_ranks(
        (2, [unbroken, saving, *loading, *spoiled]),
        (1, [*loading, alone, *restarts]),
    )
    return (folder, of_two[0], of_two[2:6]), spoiled_results(of_two[6:], folders), (of_one[:5], of_one[5:])


@pytest.fixture(scope="module")
def saved_by_two(asked):
    """Two ranks under ZeRO-3 train unbroken and save at step 4; then load it again under stages 0, 1, 2 and 3."""
    return asked[0]


@pytest.fixture(scope="module")
def asked_of_one(asked):
    """One rank loads what two saved and trains alone; and every restart of RESTARTED."""
    return asked[2]


@pytest.fixture(scope="module")
def loaded_by_one(saved_by_two, asked_of_one):
    return saved_by_two[1], asked_of_one[0]


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


def test_restart_in_one_world_is_equal_in_every_bit(asked_of_one):
    losses = asked_of_one[1]
    for number, case in enumerate(RESTARTED):
        unbroken, _, restarted = losses[3 * number : 3 * number + 3]
        assert restarted == unbroken[THEN:], case


def test_every_parameter_is_saved_once_in_plain_safetensors(saved_by_two):
    from safetensors import safe_open

    folder = saved_by_two[0] / f"step-{THEN}"
    state = checkpoint.read_state(folder)
    names = []
    for path in folder.glob("part-*.safetensors"):
        with safe_open(path, framework="pt") as part:
            names += list(part.keys())
    wanted = [f"{kind}/{name}" for kind in checkpoint.KINDS for name in state.parameters]
    assert sorted(names) == sorted(wanted)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert len(list(folder.glob("part-*.safetensors"))) == 2  # each rank wrote its part
    assert steps.latest(saved_by_two[0]) == folder


@pytest.fixture
def copied(saved_by_two, tmp_path):
    shutil.copytree(saved_by_two[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / f"step-{THEN}"


def test_a_flipped_bit_is_named(copied):
    path = sorted(copied.glob("part-*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{path.name}: is damaged"):
        checkpoint.read_state(copied)


def test_a_truncated_or_missing_part_is_named(copied):
    path = min(copied.glob("part-*.safetensors"))
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
        steps.latest(copied.parent)
    assert steps.latest(copied) is None  # a folder without the pointer holds no checkpoint


def spoiled_phases(cases, tmp_path_factory):
    """Return phases whose steps 2 and 3 go wrong on one rank, the same with a restart behind them, and without them."""
    phases, folders = [], []
    for case in cases:
        spoiled, between, without = (tmp_path_factory.mktemp("skipped") for _ in range(3))
        wrong = {"2": [1, "gradient"], "3": [0, "finite gradient"]}  # in step 3 some losses of rank 0 alone
        phases += [
            case | {"start": FIRST, "stop": END, "spoiled": wrong, "save": str(spoiled)},
            case | {"start": FIRST, "stop": THEN, "spoiled": wrong, "save": str(between)},
            case | {"start": THEN, "stop": END, "load": str(between / f"step-{THEN}")},
            case | {"start": FIRST, "stop": END, "without": [2, 3], "save": str(without)},
        ]
        folders.append((spoiled / f"step-{END}", without / f"step-{END}"))
    return phases, folders


def spoiled_results(losses, folders):
    return [(losses[4 * number : 4 * number + 4], pair) for number, pair in enumerate(folders)]


def check_spoiled(results):
    for (spoiled, _, restarted, without), folders in results:
        assert spoiled[2:4] == ["skipped"] * 2
        assert spoiled[:2] + spoiled[4:] == without  # losses and gradient norms, in every bit
        assert restarted == spoiled[THEN:]  # Adam's counter leaves out the skipped ones
        saved, wanted = ({path.name: path.read_bytes() for path in folder.glob("part-*")} for folder in folders)
        assert len(saved) == 2 and saved == wanted  # weights and moments


def test_a_step_that_goes_wrong_on_one_rank_is_skipped_on_both(asked):
    check_spoiled(asked[1])


@pytest.mark.slow
def test_a_step_that_goes_wrong_on_one_rank_is_skipped_on_both_in_the_other_stages(train_on_ranks, tmp_path_factory):
    cases = [{"stage": 1, "precision": "bf16"}, {"stage": 2, "offload": "optimizer"}, {"stage": 2, "clip": 0.0}]
    phases, folders = spoiled_phases(cases, tmp_path_factory)
    (losses,) = train_on_ranks((2, phases))
    check_spoiled(spoiled_results(losses, folders))
