"""Trials without Ray: one after the other on one bench, equal to a training run in every bit."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from train.spoiling import spoiled
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.trackers import MlflowTracker
from e2ray.core.model import build_model
from e2ray.core.rope import RotaryHook
from e2ray.data.shards import ShardSet, local_batches
from e2ray.evaluate.documents import select_documents
from e2ray.evaluate.perplexity import cell as cell_of
from e2ray.evaluate.perplexity import document_sums
from e2ray.records.retrieval import RetrievalRow
from e2ray.search import examiner
from e2ray.search.trial import Rungs, Workbench, examine_base
from e2ray.search.trial_plan import Plan
from e2ray.train import worker
from e2ray.train.record import read_metrics
from e2ray.train.trackers import located

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def base(tmp_path):
    """A pretrained folder: a tiny Llama with random weights."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return {"kind": "pretrained", "path": str(tmp_path / "base")}


def plan_of(config, number=0, rungs=(1, 3)):
    return Plan(number, config.trial(), rungs, None, None, {})


def run_through(bench, plan):
    bench.begin(plan)
    found = [bench.advance()]
    while not found[-1].get("complete") and "failed" not in found[-1]:
        found.append(bench.advance())
    return found


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}], ids=["full", "lora"])
def test_a_trial_has_the_losses_of_a_training_run_to_the_bit(configured, shared_of, base, tmp_path, lora):
    model = base | {"base_context_length": 32, "lora": lora}
    config = configured()
    config = type(config).model_validate(config.model_dump(mode="json") | {"model": model, "pretrain": None})
    shared = shared_of(config)
    lines = []
    bench = Workbench(shared, device=CPU, gauges=lambda name: lines.append)
    run_through(bench, plan_of(config))
    task = replace(shared.task, folder=tmp_path / "run")
    task.folder.mkdir()
    rows = partial(
        local_batches,
        task.shards,
        seed=task.seed,
        rank=0,
        num_workers=1,
        batch_sequences=4,
        window=32,
        tokenizer_hash=None,
    )
    worker.run(task, device=CPU, open_rows=lambda start, stop: rows(start_step=start, stop_step=stop))
    trained = read_metrics(task.folder)
    assert [line["loss"] for line in lines] == [line.loss for line in trained]
    assert [line["grad_norm"] for line in lines] == [line.grad_norm for line in trained]
    assert len(lines) == 9 and lines[0]["loss"] != lines[-1]["loss"]


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")  # DeepSpeed's own calls under ZeRO-3
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_trial_leaves_nothing_to_the_next_one(configured, shared_of, zero_stage):
    one = configured(train={"zero_stage": zero_stage})
    other = configured(positions={"preset": "pose", "max_scale": 4}, train={"lr": 0.05, "zero_stage": zero_stage})
    shared = shared_of(one)

    def values(bench, config):
        return [(found["loss"], found["cells"]) for found in run_through(bench, plan_of(config))]

    bench = Workbench(shared, device=CPU)
    first = values(bench, one)
    assert values(bench, other) != first
    bench.begin(plan_of(other))
    bench.advance()  # given up at its first rung
    assert values(bench, one) == first == values(Workbench(shared, device=CPU), one)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # within mlflow
def test_each_trial_is_a_run_of_its_own_where_the_studys_trackers_are(configured, shared_of, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    shared = shared_of(configured())
    known = located((MlflowTracker(experiment="mine"),), tmp_path)
    bench = Workbench(replace(shared, task=replace(shared.task, trackers=known)), device=CPU)
    losses = {}
    for number in range(2):
        found = run_through(bench, plan_of(configured(), number=number))
        losses[f"{shared.study}-{number}"] = found[-1]["loss"]
    diverging = configured(train={"clip_norm": 0.0, "eps": 1e-30, "weight_decay": 1e39, "lr": 1.0})
    bench.begin(plan_of(diverging, number=2))
    while "failed" not in bench.advance():
        pass
    bench.begin(plan_of(configured(), number=3))

    def broken(*given, **named):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench.engine, "update", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench.advance()
    bench.end()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    kept = {each.info.run_name: each.data.metrics["train.loss"] for each in runs if each.info.run_name in losses}
    assert kept == pytest.approx(losses)
    ends = {each.info.run_name.removeprefix(f"{shared.study}-"): each.info.status for each in runs}
    assert ends == {"0": "FINISHED", "1": "FINISHED", "2": "FAILED", "3": "FAILED"}


def test_an_engine_is_kept_while_trials_are_built_alike(configured, shared_of):
    bench = Workbench(shared_of(configured()), device=CPU)
    run_through(bench, plan_of(configured()))
    first = bench.engine
    run_through(bench, plan_of(configured(train={"lr": 0.05, "warmup_steps": 2}), number=1))
    assert bench.engine is first
    run_through(bench, plan_of(configured(train={"weight_decay": 0.5}), number=2))
    assert bench.engine is not first
    bench.begin(plan_of(configured(train={"clip_norm": 0.0, "eps": 1e-30, "weight_decay": 1e39, "lr": 1.0}), number=3))
    while "failed" not in (found := bench.advance()):
        assert not found["complete"]
    assert bench.engine is None  # what came of it is no number
    run_through(bench, plan_of(configured(), number=4))


def test_a_trial_is_measured_at_its_rungs_and_whole_at_its_end(configured, shared_of):
    config = configured()
    found = run_through(Workbench(shared_of(config), device=CPU), plan_of(config))
    assert [metrics["step"] for metrics in found] == [1, 3, 9]
    assert [metrics["complete"] for metrics in found] == [False, False, True]
    served = {(32, 1.0), (64, 2.0), (128, 4.0)}
    assert all({(c["window"], c["scale"]) for c in metrics["cells"]} == served for metrics in found[:2])
    assert {(c["window"], c["scale"]) for c in found[2]["cells"]} == {(w, g) for w in (32, 64, 128) for g in (1, 2, 4)}
    assert [metrics["tokens"] for metrics in found] == [128, 3 * 128, 9 * 128]
    assert found[0]["trial_seconds"] < found[2]["trial_seconds"]


def test_without_a_surface_only_served_scales_are_measured(configured, shared_of):
    config = configured({"surface": False})
    last = run_through(Workbench(shared_of(config), device=CPU), plan_of(config))[-1]
    assert {(c["window"], c["scale"]) for c in last["cells"]} == {(32, 1.0), (64, 2.0), (128, 4.0)}


def test_a_trial_that_cannot_lead_is_measured_at_served_scales_alone(configured, shared_of):
    config = configured()
    bench, plan = Workbench(shared_of(config), device=CPU), plan_of(config)
    served = {(32, 1.0), (64, 2.0), (128, 4.0)}
    cells = run_through(bench, plan)[-1]["cells"]
    nll = {(c["window"], c["scale"]): c["nll"] for c in cells}
    mine = ((nll[64, 2.0] + nll[128, 4.0]) / 2, nll[32, 1.0])
    better = replace(plan, front=((mine[0] - 1e-3, mine[1] - 1e-3),))
    last = run_through(bench, better)[-1]["cells"]
    assert {(c["window"], c["scale"]): c["nll"] for c in last} == {key: nll[key] for key in served}
    trade = replace(plan, front=((mine[0] - 1e-3, mine[1] + 1e-3), (mine[0] + 1e-3, mine[1] - 1e-3)))
    assert run_through(bench, trade)[-1]["cells"] == cells
    assert not replace(plan, front=(mine,)).may_lead(cells, (64, 128), 32)


def test_cells_are_those_of_the_evaluation_of_a_run(configured, shared_of):
    config = configured()
    shared = shared_of(config)
    task = shared.task
    model = build_model(task.model, dtype=torch.float32, vocab_size=64, seed=task.seed).eval()
    documents = ShardSet.open(task.shards).held_out()
    sums = document_sums(
        model,
        RotaryHook(model),
        select_documents(documents, minimum_tokens=128, limit=2, cut=None),
        windows=(32, 64, 128),
        scales=(1.0, 2.0, 4.0),
        stride=16,
        batch_tokens=config.evaluate.batch_tokens,
        device=CPU,
        name="base",
    )
    wanted = [cell_of(each) for each in sums]
    found, _, yarn = examine_base(shared, CPU)
    assert {(c["window"], c["scale"]): c["nll"] for c in found} == {(c.window, c.scale): c.nll for c in wanted}
    as_found = {(c["window"], c["scale"]): c["nll"] for c in found}
    for cell in yarn["cells"]:  # YaRN leaves L alone, and reads what is longer otherwise
        same = cell["nll"] == pytest.approx(as_found[cell["window"], cell["scale"]], abs=1e-6)
        assert same == (cell["window"] == 32)
    assert [(c["window"], c["scale"]) for c in yarn["cells"]] == [(32, 1), (64, 2), (128, 4)]


def test_what_is_asked_for_is_found_and_its_nll_is_the_mean_over_all_prompts(configured, shared_of, monkeypatch):
    shared = shared_of(configured({"weights": {"answer_nll": 1.0}}))
    cell = {"task": "passkey", "context_length": 32, "depth": 0.5, "scale": 1.0}
    found = [{"found": 1, "trials": 4, "answer_nll": 2.0}, {"found": 2, "trials": 2, "answer_nll": 5.0}]
    rows = [RetrievalRow.model_validate(cell | row) for row in found]
    monkeypatch.setattr(examiner, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(examiner, "accuracy", lambda *args, **options: rows)
    _, asked, yarn = examine_base(shared, CPU)
    assert asked == {"retrieval": 0.5, "answer_nll": 3.0} == {name: yarn[name] for name in asked}


def test_a_loss_that_is_no_number_fails_the_trial_and_leaves_the_bench_usable(configured, shared_of):
    config = configured()
    shared = shared_of(config)
    bench = Workbench(shared, device=CPU)
    wild = configured(train={"lr": 1.0, "clip_norm": 0.0, "eps": 1e-30, "weight_decay": 1e39})
    failed = run_through(bench, plan_of(wild))[-1]
    assert failed["failed"].startswith("step 1: the weight of ") and "is not finite" in failed["failed"]
    assert failed["tokens"] == failed["step"] * 128 and failed["trial_seconds"] > 0
    assert run_through(bench, plan_of(config))[-1]["complete"]
    short = {"lr": 1.0, "weight_decay": 1e39, "steps": 1, "checkpoint_every": 1}
    bench.begin(plan_of(configured({"early_stopping": None}, train=short)))
    assert "is not finite" in bench.advance(measured=False)["failed"]  # what would be measured by others


def skipping(bench, *steps):
    """Make the steps of the trial on the bench go wrong."""

    def read(batches):
        for step, batch in enumerate(batches):
            with spoiled(bench.engine.ds.module, "gradient") if step in steps else nullcontext():
                yield batch

    bench.batches = read(bench.batches)


def test_a_trial_goes_on_behind_skipped_steps_and_fails_where_too_many_follow_each_other(configured, shared_of):
    config = configured()
    shared = shared_of(config)
    bench = Workbench(shared, device=CPU)
    wanted = run_through(bench, plan_of(config))[-1]
    bench.begin(plan_of(config, 7))
    skipping(bench, 0, 2, 4, 5)  # around the rungs 1 and 3
    found = [bench.advance() for _ in range(3)]
    assert [one["skipped_steps"] for one in found] == [1, 1, 0] and found[-1]["complete"]
    assert found[-1]["cells"] != wanted["cells"]
    noted = (shared.folder / "trials" / "7" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in noted] == [1, 3, 5, 6]
    assert all(len(json.loads(line)["rows"]) == 4 for line in noted)
    bench.begin(plan_of(config, 8))
    skipping(bench, 2, 3, 4)  # the rung 3 lies between them
    bench.advance(), bench.advance()
    failed = bench.advance()
    assert failed["failed"].startswith("steps 3 to 5 had no finite gradient norm or loss") and failed["step"] == 5
    assert run_through(bench, plan_of(config))[-1]["cells"] == wanted["cells"]  # the bench is whole again


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")  # DeepSpeed's own calls
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_any_zero_stage_goes_on_behind_a_rung(configured, shared_of, stage):
    config = configured(train={"zero_stage": stage})
    found = run_through(Workbench(shared_of(config), device=CPU), plan_of(config))
    assert found[-1]["complete"] and found[-1]["loss"] != found[0]["loss"]


def test_the_base_window_is_measured_though_no_window_of_the_study(configured, shared_of):
    config = configured(evaluate={"windows": [64, 128]})
    found = run_through(Workbench(shared_of(config), device=CPU), plan_of(config))
    assert {(c["window"], c["scale"]) for c in found[0]["cells"]} == {(32, 1.0), (64, 2.0), (128, 4.0)}
    config = configured(evaluate={"windows": [16, 64]})
    found = run_through(Workbench(shared_of(config), device=CPU), plan_of(config))
    assert {(c["window"], c["scale"]) for c in found[0]["cells"]} == {(16, 1.0), (32, 1.0), (64, 2.0)}


def test_a_built_model_follows_the_seed_of_the_trial(configured, shared_of):
    config = configured()
    bench = Workbench(shared_of(config), device=CPU)
    first = run_through(bench, plan_of(config))[0]["loss"]
    assert run_through(bench, plan_of(configured(seed=1)))[0]["loss"] != first
    assert run_through(bench, plan_of(config))[0]["loss"] == first


def test_a_trial_is_measured_at_its_rungs_and_never_looked_at_beside_them(configured, shared_of):
    watched = {"log_every": 1, "watch_every": 1, "stop": {"price_at_base": 1e-6}}
    config = configured(train=watched)
    assert config.train.watch_every == 1
    shared = shared_of(config)
    task = shared.task_of(plan_of(config))
    assert (task.train.watch_every, task.train.stop) == (None, None)
    plain = configured(train={"log_every": 1})
    wanted = run_through(Workbench(shared_of(plain), device=CPU), plan_of(plain))
    found = run_through(Workbench(shared, device=CPU), plan_of(config))
    assert [one["loss"] for one in found] == [one["loss"] for one in wanted] and found[-1]["complete"]


def test_trials_of_several_workers_are_measured_by_the_same_code(configured, shared_of, tmp_path):
    config = configured()
    shared = shared_of(config)
    wanted = run_through(Workbench(shared, device=CPU), plan_of(config))
    plan = plan_of(config)
    task = shared.task_of(plan)
    task.folder.mkdir(parents=True)
    rows = partial(
        local_batches,
        task.shards,
        seed=task.seed,
        rank=0,
        num_workers=1,
        batch_sequences=4,
        window=32,
        tokenizer_hash=None,
    )
    found = []
    worker.run(
        task,
        device=CPU,
        open_rows=lambda start, stop: rows(start_step=start, stop_step=stop),
        report=lambda metrics: found.append(metrics.plain()) if "cells" in metrics.plain() else None,
        evaluate=Rungs(shared, plan).open(CPU),
    )
    assert [metrics["cells"] for metrics in found] == [metrics["cells"] for metrics in wanted]
    assert not (task.folder / "checkpoints").exists()
