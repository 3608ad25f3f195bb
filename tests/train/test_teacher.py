"""Self-distillation on a real engine: who teaches, what it reads, and that nothing of it is trained."""

import json
import multiprocessing
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from e2ray.config.base import SettingsError
from e2ray.config.model import LoraSettings
from e2ray.config.positions import PositionSettings
from e2ray.config.train import ObjectiveSettings
from e2ray.core.losses import token_kl
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.core.reach import weights
from e2ray.testing.tasks import CPU, VOCABULARY, WINDOW, small_task
from e2ray.train import teacher, worker
from e2ray.train.batch import Batch
from e2ray.train.teacher import adapters_alone

ROWS = 4
LORA = LoraSettings(rank=4, dropout=0.2)
pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def task(tmp_path):
    return small_task(
        tmp_path,
        preset="e2yarn",
        model={"initializer_range": 0.3, "tie_embeddings": False},
        steps=6,
        checkpoint_every=3,
        objective=ObjectiveSettings(next_token=0, distill=1),
    )


def tokens():
    return torch.randint(VOCABULARY, (ROWS, WINDOW), generator=torch.Generator().manual_seed(2))


def drawn(task, step=0):
    return draw(task.positions, seed=1, step=step, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)


def base_logits(task, text):
    model = build_model(
        task.model.model_copy(update={"lora": None}), dtype=torch.float32, vocab_size=VOCABULARY, seed=task.seed
    )
    with torch.no_grad():
        return model.eval()(input_ids=text, use_cache=False).logits


@pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning")
@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("lora", [None, LORA, LoraSettings(rank=2, trainable=("embed_tokens", "lm_head"))])
def test_the_teacher_is_the_base_reading_the_row_as_it_stands_before_and_after_updates(task, lora, stage):
    task = replace(
        task,
        model=task.model.model_copy(update={"lora": lora, "checkpoint_share": 1.0}),
        train=task.train.model_copy(update={"zero_stage": stage}),
    )
    engine = worker.begin(task, device=CPU)
    text, wanted = tokens(), base_logits(task, tokens())
    for step in range(3):
        with engine.hook.applied(drawn(task).scale, drawn(task).offsets):
            found = engine.objective.teacher(text)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        assert not found.requires_grad and engine.ds.module.training
        engine.update(Batch(text, drawn(task, step)), lr=1e-2)


def test_the_figure_is_the_distance_of_the_student_under_its_draw_from_the_base_at_scale_1(task):
    engine = worker.begin(task, device=CPU)
    given = drawn(task)
    with engine.hook.applied(given.scale, given.offsets):
        student = engine.logits(tokens())
    wanted = token_kl(student, base_logits(task, tokens())).mean(dim=1)
    engine.update(Batch(tokens(), given), lr=1e-2)
    torch.testing.assert_close(engine.figures["distill_loss"], wanted, rtol=1e-4, atol=1e-6)
    assert (wanted > 0).any()


def test_distilling_alone_brings_the_student_nearer(task):
    engine = worker.begin(task, device=CPU)
    found = []
    for _ in range(12):
        engine.update(Batch(tokens(), drawn(task)), lr=3e-3)
        found.append(engine.figures["distill_loss"].mean().item())
    assert found[-1] < 0.5 * found[0]


def test_rows_at_scale_1_without_a_shift_have_nothing_to_learn_from_their_teacher(task):
    task = replace(task, positions=PositionSettings.model_validate({"preset": "native"}))
    engine = worker.begin(task, device=CPU)
    engine.update(Batch(tokens(), drawn(task)), lr=0.0)
    assert engine.figures["distill_loss"].abs().max() < 1e-6


def test_only_adapters_can_be_switched_off(task):
    for lora, alone in ((None, False), (LORA, True), (LoraSettings(rank=2, trainable=("embed_tokens",)), True)):
        model = build_model(task.model.model_copy(update={"lora": lora}), dtype=torch.float32, vocab_size=VOCABULARY)
        assert adapters_alone(model) is alone
    tied = task.model.model_copy(
        update={"tie_embeddings": True, "lora": LoraSettings(rank=2, targets=("q_proj", "lm_head"))}
    )
    with pytest.warns(UserWarning, match="lm_head"):
        assert not adapters_alone(build_model(tied, dtype=torch.float32, vocab_size=VOCABULARY))


def test_a_teacher_without_memory_is_refused_with_the_next_move(task, monkeypatch):
    monkeypatch.setattr(teacher.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    wanted = r"^train\.objective\.distill: a teacher needs \S+ GiB .* train adapters .* or set distill to 0$"
    with pytest.raises(SettingsError, match=wanted):
        worker.begin(task, device=CPU)
    lora = replace(task, model=task.model.model_copy(update={"lora": LORA}))
    worker.begin(lora, device=CPU)


def test_a_teacher_without_room_on_the_disk_is_refused_with_the_next_move(task, monkeypatch):
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    wanted = r"^train\.objective\.distill: a teacher needs \S+ GiB of \S+ .* set TMPDIR to a folder with more, train "
    with pytest.raises(SettingsError, match=wanted):
        worker.begin(task, device=CPU)


def mapped_file(pointer):
    """Return device, inode and name of the file that a piece of this process's memory is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, device, inode, *name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= pointer < last:
            return [device, inode, *name]
    raise AssertionError("mapped nowhere")


def keep_teachers(rank, ranks, folder):
    """What a rank does in the test below; a process of its own."""
    os.environ["LOCAL_RANK"] = str(rank)
    tempfile.tempdir = str(folder / "temporary")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    found = []
    for tied in (False, True):
        task = small_task(folder, preset="e2yarn", model={"tie_embeddings": tied}, steps=6, checkpoint_every=3)
        model = build_model(task.model, dtype=torch.float32, vocab_size=VOCABULARY, seed=task.seed).eval()
        wanted = model(input_ids=tokens(), use_cache=False).logits.detach()
        kept = teacher.once_per_machine(model)
        for parameter in model.parameters():
            parameter.data += 1.0
        torch.testing.assert_close(kept(tokens(), use_cache=False).logits, wanted, rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in kept.parameters())
        assert len(list(kept.parameters())) == len(list(model.parameters()))
        found.append(sorted({tuple(mapped_file(parameter.data_ptr())) for parameter in kept.parameters()}))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_the_workers_of_a_machine_share_the_memory_of_one_teacher_and_leave_no_file(tmp_path):
    (tmp_path / "temporary").mkdir()
    multiprocessing.set_forkserver_preload(["deepspeed", "torch", "transformers.models.llama.modeling_llama"])
    torch.multiprocessing.start_processes(keep_teachers, (2, tmp_path), nprocs=2, start_method="forkserver")
    one, other = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert one == other and all(len(files) == 1 and files[0][-1].endswith("(deleted)") for files in one)
    assert not list((tmp_path / "temporary").iterdir())


def test_weights_by_distance_are_those_of_the_draws(task):
    settings = ObjectiveSettings(distance_weights=True)
    task = replace(task, train=task.train.model_copy(update={"objective": settings}))
    engine = worker.begin(task, device=CPU)
    wanted = weights(task.positions, window=WINDOW, base_context_length=WINDOW)
    assert engine.objective.teacher is None and torch.equal(engine.objective.weights, wanted) and wanted.max() > 1.5
    plain = worker.begin(
        replace(task, train=task.train.model_copy(update={"objective": ObjectiveSettings()})), device=CPU
    )
    nll = [each.update(Batch(tokens(), drawn(task)), lr=1e-2) for each in (engine, plain)]
    torch.testing.assert_close(*nll)  # what is logged is the NLL
    assert engine.figures == {}
    learned = [torch.cat([p.flatten() for p in each.ds.module.parameters()]) for each in (engine, plain)]
    assert not torch.allclose(*learned)
