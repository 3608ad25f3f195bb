import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import ObjectiveSettings, TrainSettings
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model
from e2ray.core.positions import Draw, draw
from e2ray.core.rope import RotaryHook
from e2ray.train import loop
from e2ray.train.batch import Batch
from e2ray.train.engine import telling
from e2ray.train.loop import Diverged, Meter, Skips, fit, scale_bucket
from e2ray.train.objectives import Mixture, Reader, objective_of

WINDOW, ROWS = 16, 4


class Recording:
    """An engine without a model: a row's NLL is its scale plus the step, so every mean is known.

    `bad` names the steps that it skips, each with the losses of its first rows.
    """

    device = torch.device("cpu")
    num_workers = 1

    def __init__(self, bad=()):
        self.rates, self.draws, self.bad, self.skipped = [], [], dict(bad), False
        self.figures = {}

    @property
    def grad_norm(self):
        return math.inf if self.skipped else 0.5

    def update(self, batch, *, lr):
        step = len(self.rates)
        self.rates.append(lr)
        self.draws.append(batch.draw)
        self.skipped = step in self.bad
        nll = batch.draw.scale + step
        losses = self.bad.get(step, ())
        nll[: len(losses)] = torch.tensor(losses)
        return nll

    def mfu(self, tokens_per_second, *, window):
        return None

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


def run(engine, train, *, start=0, answer=None, evaluate=None, **options):
    lines, saved = [], []

    def report(metrics):
        lines.append(metrics.plain())
        return answer(lines[-1]) if answer else None

    hooks = {"report": report, "save": saved.append, "evaluate": evaluate}
    done = fit(engine, batches(start), train, start_step=start, **hooks, **options)
    return done, lines, saved


def test_the_time_of_a_save_or_a_look_is_no_time_of_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(Recording):
        def update(self, batch, *, lr):
            now[0] += 2.0
            return super().update(batch, lr=lr)

    lines = []

    def save(step):
        now[0] += 100.0

    def evaluate(step):
        now[0] += 1000.0
        return {}

    train = settings(log_every=3, checkpoint_every=3)
    fit(Slow(), batches(), train, start_step=0, report=lines.append, save=save, evaluate=evaluate)
    assert [line.tokens_per_second for line in lines] == [pytest.approx(ROWS * WINDOW / 2.0)] * 4


class Unreadable(Recording):
    """An engine on a device whose values nobody can read: each look at one would make the process wait."""

    device = torch.device("meta")

    def update(self, batch, *, lr):
        return torch.zeros(len(batch.tokens), device="meta")


@pytest.mark.parametrize("kind", ["linear", "yarn", "ntk", "ramp_power", "truncated"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("objective", [None, ObjectiveSettings(distill=1.0)])
def test_nothing_of_a_step_looks_at_values_on_the_device(kind, packed, objective):
    sizes = LlamaModel(hidden_size=32, num_layers=1, num_heads=2, num_key_value_heads=2)
    model = build_model(sizes, dtype=torch.float32, vocab_size=20).train()
    positions = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 8, "method": {"kind": kind}})
    hook = RotaryHook(model, method_of(positions.method), base_context_length=WINDOW)
    with hook.applied(2.0):  # the first forward reads the model's frequencies, once
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    model = model.to("meta")
    mask = torch.zeros(ROWS, 1, WINDOW, WINDOW, device="meta")  # else transformers looks at the ids for documents

    def forward(tokens, **given):
        return model(input_ids=tokens, attention_mask=mask, use_cache=False, **given).logits

    batch = next(batches())
    if packed:
        index = torch.arange(WINDOW).remainder(WINDOW // 2).repeat(ROWS, 1)
        batch = replace(batch, token_index=index, token_weight=torch.zeros((), device="meta"))
    minimise = Mixture(objective, teacher=forward) if objective else objective_of(packed=packed)
    there = batch.to("meta")
    with hook.applied(there.draw.scale, there.draw.offsets):
        outcome = minimise(Reader(forward), there)
        telling(outcome.loss).backward()
    meter = Meter(Unreadable(), WINDOW)
    meter.add(batch, outcome.nll.detach(), 0.0)
    assert outcome.loss.device.type == "meta" and all(p.grad is not None for p in model.parameters())


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
    fit(
        engine,
        read,
        settings(steps=3),
        start_step=0,
        report=lambda line: lines.append(line.plain()),
        save=lambda step: None,
    )
    scales = torch.stack([drawn.scale for drawn in engine.draws])
    losses, counts = scales + torch.arange(3)[:, None], torch.tensor([15.0, 5.0, 15.0, 5.0])
    assert lines[0]["loss"] == pytest.approx(((losses * counts).sum() / (3 * counts.sum())).item())
    assert lines[0]["tokens"] == 3 * ROWS * WINDOW


def test_a_restart_logs_what_the_unbroken_run_logs():
    class Continued(Recording):
        def update(self, batch, *, lr):
            nll = super().update(batch, lr=lr)
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


@pytest.mark.parametrize("losses", [(), (math.nan, math.inf), (-math.inf,)], ids=["gradient", "some", "one"])
def test_an_interval_with_skipped_steps_holds_the_means_over_the_finite_rows(losses):
    engine, noted = Recording({1: losses, 5: losses}), []
    _, lines, saved = run(engine, settings(), note_skipped=lambda step, batch, nll: noted.append((step, len(nll))))
    assert [line["skipped_steps"] for line in lines] == [1, 1, 0, 0] and saved == [6, 12]
    assert noted == [(2, ROWS), (6, ROWS)]
    kept = [engine.draws[step].scale[len(losses) if step == 1 else 0 :] for step in range(3)]
    wanted = torch.cat([scales + step for step, scales in enumerate(kept)])
    assert lines[0]["loss"] == pytest.approx(wanted.mean().item())
    assert lines[0]["scale_mean"] == pytest.approx(torch.cat(kept).mean().item())
    assert [line["grad_norm"] for line in lines] == [0.5, None, 0.5, 0.5]  # the second line ends with a skipped step
    assert lines[-1]["tokens"] == 12 * ROWS * WINDOW
    json.dumps(lines, allow_nan=False)


def test_an_interval_without_any_finite_row_has_no_mean():
    _, lines, _ = run(Recording({4: [math.nan] * ROWS}), settings(log_every=1))
    assert (lines[4]["loss"], lines[4]["scale_mean"], lines[4]["loss_by_scale"]) == (None, None, {})
    assert lines[3]["loss"] is not None is not lines[5]["loss"]


class Telling(Recording):
    """One that finds a second figure: a hundredth of the NLL, and nothing finite at the steps named."""

    def update(self, batch, *, lr):
        nll = super().update(batch, lr=lr)
        self.figures = {"apart": nll / 100}
        return nll


def test_further_figures_are_logged_apart_as_means_over_the_same_rows():
    _, lines, _ = run(Telling(), settings())
    assert lines and all(line["apart"] == pytest.approx(line["loss"] / 100) for line in lines)
    _, lines, _ = run(Telling(bad={0: [math.nan] * 4}), settings(max_skipped_steps=2))
    assert all(line["apart"] == pytest.approx(line["loss"] / 100) for line in lines)


def test_what_an_evaluation_finds_is_logged_as_a_number_or_null():
    _, lines, _ = run(Recording(), settings(), evaluate=lambda step: {"cells": [{"nll": math.inf, "window": 8}]})
    assert {line["cells"][0]["nll"] for line in lines} == {None} and lines[0]["cells"][0]["window"] == 8


@pytest.mark.parametrize(
    ("bad", "most", "told"),
    [
        ([4, 5, 6], 3, r"^steps 5 to 7 had no finite gradient norm or loss .*, 3 in a row end the run"),
        ([7], 1, r"^step 8 had no finite .*, 1 in a row end the run"),
        ([2, 3, 5, 6, 8, 9, 10, 11], 4, r"^steps 9 to 12 had"),
    ],
)
def test_too_many_skipped_steps_in_a_row_end_the_run(bad, most, told):
    with pytest.raises(Diverged, match=told):
        run(Recording(dict.fromkeys(bad, ())), settings(max_skipped_steps=most))
    assert run(Recording(dict.fromkeys(bad, ())), settings(max_skipped_steps=most + 1))[0] == 12


def test_skipped_steps_are_counted_on_behind_a_restart():
    skips = Skips(total=5, in_a_row=2)
    with pytest.raises(Diverged, match=r"^steps 5 to 7 had"):
        run(Recording({0: ()}), settings(), start=6, skips=skips)
    skips = Skips(total=5, in_a_row=2)
    run(Recording({1: ()}), settings(), start=6, skips=skips)
    assert (skips.total, skips.in_a_row) == (6, 0)


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


def test_the_clock_of_a_line_leaves_out_what_looking_took(monkeypatch):
    """A step takes one second here and a look a hundred."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(Recording):
        def update(self, batch, *, lr):
            now[0] += 1.0
            return super().update(batch, lr=lr)

    def look(step):
        now[0] += 100.0
        return {"seen": step}

    _, lines, _ = run(Slow(), settings(), evaluate=look)
    assert [line["seen"] for line in lines] == [3, 6, 9, 12]
    assert [line["tokens_per_second"] for line in lines] == pytest.approx([ROWS * WINDOW] * 4)
