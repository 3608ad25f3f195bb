"""Looking on while a model trains: what is scored, what joins metrics and checkpoints, and a run that pays too much."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.config.train import StopSettings, TrainSettings
from e2ray.core.losses import token_nll
from e2ray.testing.tasks import CPU, VOCABULARY, small_task
from e2ray.testing.tasks import run as small_run
from e2ray.train import lookout as lookouts
from e2ray.train import steps, worker
from e2ray.train.checkpoint import read_state
from e2ray.train.lookout import Lookout, watched_windows
from e2ray.train.record import read_metrics

pytestmark = pytest.mark.usefixtures("one_rank")


def documents():
    rng = np.random.default_rng(4)
    return [rng.integers(0, VOCABULARY, length) for length in (20, 150, 96, 400, 99)]


@pytest.fixture
def task(tmp_path):
    return small_task(
        tmp_path, preset="e2yarn", model={"initializer_range": 0.3}, steps=8, checkpoint_every=4, watch_every=2,
        watch_documents=3,
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(
        worker, "lookout_of", lambda engine, task: task.train.watch_every and Lookout(engine, task, documents())
    )

    return small_run


@pytest.mark.parametrize(
    ("length", "largest", "windows"), [(128, 16, (128, 512, 2048)), (100, 2, (100, 141, 200)), (64, 1, (64,))]
)
def test_windows_are_l_the_longest_and_one_half_way(length, largest, windows):
    assert watched_windows(length, largest) == windows


def test_every_window_scores_the_same_last_tokens_at_the_scale_it_is_served_with(task):
    engine = worker.begin(task, device=CPU)
    found = Lookout(engine, task, documents()).look()
    assert list(found) == ["24", "48", "96"]
    chosen = [document[:96] for document in documents() if len(document) >= 96][:3]
    for window, scale in ((24, 1.0), (48, 2.0), (96, 4.0)):
        text = torch.from_numpy(np.stack([document[-window:] for document in chosen]))
        with torch.no_grad(), engine.hook.applied(scale):
            logits = engine.ds.module.eval()(input_ids=text, use_cache=False).logits
        assert found[str(window)] == pytest.approx(token_nll(logits, text)[:, -12:].mean().item(), rel=1e-5)


def test_windows_that_no_document_fills_are_left_out_and_without_any_it_is_refused(task):
    engine = worker.begin(task, device=CPU)
    assert list(Lookout(engine, task, [np.zeros(50, dtype=np.int64)]).look()) == ["24", "48"]
    with pytest.raises(SettingsError, match=r"^train\.watch_every: the longest .* has 20 tokens, wanted the 24 of L"):
        Lookout(engine, task, [np.zeros(20, dtype=np.int64)])


@pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning")
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_what_is_seen_joins_the_metrics_and_the_checkpoint_and_changes_no_weight(task, run, stage):
    task = replace(task, train=task.train.model_copy(update={"zero_stage": stage}))
    run(task)
    lines = read_metrics(task.folder)
    assert [line.step for line in lines if line.watch_nll is not None] == [2, 4, 6, 8]
    state = read_state(steps.latest(task.folder / "checkpoints"))
    base, last = state.watched.base.plain(), state.watched.last.plain()
    assert last == {"step": 8, "watch_nll": lines[-1].watch_nll, "price_at_base": lines[-1].price_at_base}
    assert last["price_at_base"] == pytest.approx(last["watch_nll"]["24"] - base["nll"])
    blind = replace(
        task, folder=task.folder.parent / "blind", train=task.train.model_copy(update={"watch_every": None})
    )
    run(blind)
    assert [line.loss for line in read_metrics(blind.folder)] == [line.loss for line in lines]


def test_a_restart_holds_the_price_against_the_model_before_its_first_step(task, run):
    run(task)
    wanted = read_metrics(task.folder)
    broken = replace(task, folder=task.folder.parent / "again")
    run(broken, until=4)
    run(broken)
    for one, other in zip(read_metrics(broken.folder), wanted, strict=True):
        assert (one.loss, one.price_at_base) == (other.loss, other.price_at_base)


def test_the_price_is_held_against_the_untouched_model_at_scale_1_whatever_the_draws(task, run):
    """PI serves L at the one scale it trains for, at which an untrained model is worse."""
    task = replace(task, positions=PositionSettings.model_validate({"preset": "pi", "max_scale": 4}))
    engine = worker.begin(task, device=CPU)
    lookout = Lookout(engine, task, documents())
    lookout.begin()
    found = lookout.metrics(0)
    assert lookout.base.nll == lookout._nll(24, 1.0) != found["watch_nll"]["24"] == lookout._nll(24, 4.0)
    assert found["price_at_base"] == found["watch_nll"]["24"] - lookout.base.nll


def test_a_restart_on_other_documents_is_refused(task, run):
    run(task, until=4)
    fewer = replace(task, train=task.train.model_copy(update={"watch_documents": 2}))
    with pytest.raises(
        SettingsError, match=r"^train\.watch_every: the checkpoint was made without a look at these doc"
    ):
        run(fewer)


def test_a_window_that_does_not_fit_into_memory_has_no_number_and_ends_nothing(task, memory_for):
    engine = worker.begin(task, device=CPU)
    lookout = Lookout(engine, task, documents())
    lookout.begin()
    memory_for(lookouts, 48)
    found = lookout.metrics(2)
    assert found["watch_nll"]["96"] is None and found["watch_nll"]["48"] > 0
    memory_for(lookouts, 0)
    assert lookout.metrics(4)["price_at_base"] is None


def test_a_restart_that_cannot_know_the_price_is_refused(task, run):
    blind = replace(task, train=task.train.model_copy(update={"watch_every": None}))
    run(blind, until=4)
    with pytest.raises(SettingsError, match=r"^train\.watch_every: the checkpoint was made without a look"):
        run(task)


def test_a_run_that_pays_too_much_at_l_ends_with_what_it_has_and_is_not_gone_on_with(task, run, capsys):
    """Rows of noise teach nothing, and a high learning rate costs."""
    fresh = task.model.model_copy(update={"initializer_range": 0.02})  # which knows no better than chance
    task = replace(task, model=fresh, train=task.train.model_copy(update={"lr": 0.3}))
    limited = replace(task, train=task.train.model_copy(update={"stop": StopSettings(price_at_base=1e-3)}))
    done = run(limited)
    assert 0 < done < 8 and done % 2 == 0
    assert "nats above the base's, train.stop.price_at_base is 0.001: it ends here" in capsys.readouterr().out
    assert [line.price_at_base > 1e-3 for line in read_metrics(task.folder) if line.watch_nll is not None][-1:] == [
        True
    ]
    assert steps.latest(task.folder / "checkpoints").name == f"step-{done}"
    before = read_metrics(task.folder)
    assert run(limited) == done and read_metrics(task.folder) == before
    higher = replace(task, train=task.train.model_copy(update={"stop": StopSettings(price_at_base=50.0)}))
    assert run(higher) == 8  # who allows more goes on


def test_a_run_whose_last_look_is_too_dear_ran_in_full(task, run):
    fresh = task.model.model_copy(update={"initializer_range": 0.02})
    dear = {"lr": 0.3, "watch_every": 8, "stop": StopSettings(price_at_base=1e-3)}
    task = replace(task, model=fresh, train=task.train.model_copy(update=dear))
    assert run(task) == 8
    state = read_state(steps.latest(task.folder / "checkpoints"))
    assert state.watched.last.price_at_base > 1e-3 and state.stopped is False


def test_who_would_end_by_a_price_wants_a_number_to_hold_it_against(task, memory_for):
    engine = worker.begin(task, device=CPU)
    memory_for(lookouts, 0)
    Lookout(engine, task, documents()).begin()
    ends = replace(task, train=task.train.model_copy(update={"stop": StopSettings(price_at_base=0.1)}))
    with pytest.raises(SettingsError, match=r"^train\.stop: NLL of the untouched model at 24 tok.*; set it to null$"):
        Lookout(engine, ends, documents()).begin()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watch_every": 15}, r"watch_every must be a multiple of log_every \(10\)"),
        ({"stop": {"price_at_base": 0.1}}, r"stop: watch_every is null, so nothing is seen"),
        ({"watch_every": 10, "stop": {"price_at_base": 0.0}}, "greater than 0"),
    ],
)
def test_settings_that_see_nothing_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        TrainSettings.model_validate({"steps": 20, "log_every": 10, "checkpoint_every": 20} | changes)
