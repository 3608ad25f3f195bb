import itertools
import math

import pytest
import torch

from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.positions import Draw, draw
from e2ray.train.loop import Batch, Diverged, fit, scale_bucket

WINDOW, ROWS = 16, 4


class Recording:
    """An engine without a model: a row's NLL is its scale plus the step, so every mean is known."""

    device = torch.device("cpu")
    num_workers = 1
    grad_norm = 0.5
    skipped = False

    def __init__(self, fail_at=None):
        self.rates, self.draws, self.fail_at = [], [], fail_at

    def update(self, tokens, drawn, *, lr, places=None):
        step = len(self.rates)
        self.rates.append(lr)
        self.draws.append(drawn)
        return drawn.scale + step if step != self.fail_at else torch.full_like(drawn.scale, math.nan)

    def total(self, values):
        return values

    def any(self, flag):
        return flag


def settings(**changes):
    return TrainSettings(**({"steps": 12, "log_every": 3, "checkpoint_every": 6} | changes))


def batches(start=0):
    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8})
    for step in itertools.count(start):
        drawn = draw(positions, seed=0, step=step, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)
        yield Batch(torch.zeros(ROWS, WINDOW, dtype=torch.int64), drawn)


def run(engine, train, *, start=0, answer=None, evaluate=None):
    lines, saved = [], []

    def report(metrics):
        lines.append(metrics)
        return answer(metrics) if answer else None

    done = fit(engine, batches(start), train, start_step=start, report=report, save=saved.append, evaluate=evaluate)
    return done, lines, saved


def test_logs_and_saves_at_their_steps_and_at_the_end():
    done, lines, saved = run(Recording(), settings(steps=11))
    assert done == 11
    assert [line["step"] for line in lines] == [3, 6, 9, 11]
    assert saved == [6, 11]


def test_a_line_holds_the_mean_over_the_rows_since_the_last_one():
    engine = Recording()
    _, lines, _ = run(engine, settings())
    for number, line in enumerate(lines):
        steps = range(3 * number, 3 * number + 3)
        losses = torch.cat([engine.draws[step].scale + step for step in steps])
        scales = torch.cat([engine.draws[step].scale for step in steps])
        assert line["loss"] == pytest.approx(losses.mean().item())
        assert line["scale_mean"] == pytest.approx(scales.mean().item())
        assert line["tokens"] == 3 * (number + 1) * ROWS * WINDOW
        for bucket, loss in line["loss_by_scale"].items():
            inside = (scales <= int(bucket)) & (scales > int(bucket) / 2)
            assert loss == pytest.approx(losses[inside].mean().item())


def test_packed_rows_weigh_by_what_they_predict():
    engine = Recording()
    places = torch.stack([torch.arange(WINDOW), torch.tensor([*range(6), *(-1 - p for p in range(WINDOW - 6))])] * 2)
    read = (Batch(batch.tokens, batch.draw, places) for batch in batches())
    lines = []
    fit(engine, read, settings(steps=3), start_step=0, report=lines.append, save=lambda step: None)
    scales = torch.stack([drawn.scale for drawn in engine.draws])
    losses, counts = scales + torch.arange(3)[:, None], torch.tensor([15.0, 5.0, 15.0, 5.0])
    assert lines[0]["loss"] == pytest.approx(((losses * counts).sum() / (3 * counts.sum())).item())
    assert lines[0]["tokens"] == 3 * ROWS * WINDOW


def test_a_restart_logs_what_the_unbroken_run_logs():
    class Continued(Recording):
        def update(self, tokens, drawn, *, lr, places=None):
            nll = super().update(tokens, drawn, lr=lr)
            return nll + self.before

    unbroken = run(Recording(), settings())[1]
    engine = Continued()
    engine.before = 6
    restarted = run(engine, settings(), start=6)[1]
    for mine, wanted in zip(restarted, unbroken[2:], strict=True):
        for key in ("step", "loss", "lr", "scale_mean", "loss_by_scale"):
            assert mine[key] == wanted[key]


def test_stop_is_obeyed_and_saved():
    done, lines, saved = run(Recording(), settings(), answer=lambda line: "stop" if line["step"] >= 9 else None)
    assert (done, saved, lines[-1]["step"]) == (9, [6, 9], 9)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved():
    engine = Recording(fail_at=4)
    with pytest.raises(Diverged, match=r"loss is nan at step 6; lower train\.lr"):
        run(engine, settings())


def test_evaluation_joins_the_line_of_the_steps_it_chooses():
    _, lines, _ = run(Recording(), settings(), evaluate=lambda step: {"nll": float(step)} if step % 6 == 0 else {})
    assert [line.get("nll") for line in lines] == [None, 6.0, None, 12.0]


def test_buckets_are_half_open_powers_of_two():
    scales = torch.tensor([1.0, 1.001, 2.0, 2.001, 4.0, 16.0, 16.5])
    assert scale_bucket(scales).tolist() == [0, 1, 1, 2, 2, 4, 5]


def test_draws_reach_the_engine_untouched():
    engine = Recording()
    run(engine, settings())
    wanted = next(batches()).draw
    assert isinstance(engine.draws[0], Draw)
    assert torch.equal(engine.draws[0].offsets, wanted.offsets)
