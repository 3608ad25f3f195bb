"""One training worker, free of Ray: model, engine, proof, resume, loop.

`launch.py` calls this inside Ray Train; a script under torchrun calls it with the plain reader instead.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from e2ray.config.base import Plain
from e2ray.config.kinds import made_by
from e2ray.config.model import PretrainedModel
from e2ray.config.train import OBJECTIVES
from e2ray.core.compiled import refuse_compile
from e2ray.core.liger import refuse_liger, use_liger
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model, known_probe, prove
from e2ray.core.positions import draw
from e2ray.core.proof import prove_apart
from e2ray.core.reach import weights
from e2ray.data.order import local_indices
from e2ray.data.shards import Rows
from e2ray.records.checkpoint import CheckpointState
from e2ray.records.folders import RunFolder
from e2ray.records.run import MetricsLine, Training
from e2ray.train import checkpoint, steps
from e2ray.train.ahead import ahead
from e2ray.train.batch import Batch
from e2ray.train.checkpoint import together
from e2ray.train.engine import Engine
from e2ray.train.environment import peak_memory_mib
from e2ray.train.ledger import Ledger, rows_of
from e2ray.train.lookout import Lookout, lookout_of, pays_too_much
from e2ray.train.loop import Answer, Skips, fit
from e2ray.train.objectives import Forward
from e2ray.train.origin import base_identity
from e2ray.train.parameters import precision_of
from e2ray.train.record import Recorder, note_training
from e2ray.train.task import Task
from e2ray.train.teacher import adapters_alone, frozen
from e2ray.train.trackers import Gauges, Show, TensorBoard, Tracker, Trackers, configured

Look = Callable[[int], Mapping[str, object]]


def use_cores(threads: int | None, local_workers: int) -> None:
    """Use that many threads; None shares this machine's cores among its workers, whatever Ray reserved for each."""
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_workers))


def drawn(
    read: Iterator[Rows],
    task: Task,
    *,
    rank: int,
    num_workers: int,
    start_step: int,
    ledger: Ledger | None = None,
    engine: Engine | None = None,
) -> Iterator[Batch]:
    """Yield this rank's rows of each step with their draws, and reseed everything random from (seed, step, rank).

    The rows of an example share the draw of its place in the global batch. What is yielded is noted in the ledger,
    where there is one, and lies on the engine's GPU already, where one is named.
    """
    indices = local_indices(rank, num_workers, task.train.batch_sequences)
    batches = _batches(read, task, indices, start_step=start_step)
    for step, batch in enumerate(batches if engine is None else ahead(batches, engine), start_step):
        torch.manual_seed(int(np.random.SeedSequence([task.seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))
        if ledger is not None:
            assert batch.ids is not None
            ledger.add(step, indices, batch.ids, batch.draw)
        yield batch


def _batches(read: Iterator[Rows], task: Task, indices: range, *, start_step: int) -> Iterator[Batch]:
    """Yield rows with their draws, on the CPU."""
    for step, rows in enumerate(read, start_step):
        positions = draw(
            task.positions,
            seed=task.seed,
            step=step,
            indices=indices,
            window=task.window,
            base_context_length=task.base_context_length,
        ).repeated(task.rows_per_example)
        token_index = None if rows.token_index is None else torch.from_numpy(rows.token_index.astype(np.int64))
        tokens, ids = torch.from_numpy(rows.tokens.astype(np.int64)), torch.tensor(rows.ids)
        yield Batch(tokens, positions, token_index, ids, task.rows_per_example)


def begin(task: Task, *, device: torch.device, model: nn.Module | None = None, base: nn.Module | None = None) -> Engine:
    """Return the engine of a task, its positions proven on the loaded model.

    torch.distributed is initialised with a backend for the device. A model that is loaded already is on the CPU,
    and the engine takes it over; `base`, the same without adapters, stays as it is and teaches a distillation.

    Raises:
        SettingsError: If the model cannot be hooked or fails the proof, or no teacher fits into the memory.
    """
    disable_progress_bar()
    if task.train.compile:
        refuse_compile(device)
    if task.model.liger:
        refuse_liger(device)
    dtype = precision_of(task.train, device)
    if model is None:
        model = build_model(
            task.model, dtype=dtype, vocab_size=task.vocab_size, seed=task.seed, device="cpu", runs_on=device
        )
    if task.model.liger:
        use_liger(model, device=device)
    model.train()
    teacher = None
    if task.train.objective.is_taught and not adapters_alone(model):
        teacher = frozen(model if base is None else base, device=device, copied=base is None)
    engine = Engine(
        model,
        task.train,
        device=device,
        dtype=dtype,
        method=method_of(task.positions.method),
        base_context_length=task.base_context_length,
    )
    if (probe := known_probe(task.model)) is not None and isinstance(task.model, PretrainedModel):
        engine.refuse_other_answers(probe, what=f"model.path {task.model.path}")
    set_out(engine, task, teacher=teacher)
    return engine


def set_out(engine: Engine, task: Task, *, teacher: Forward | None = None) -> None:
    """Prove a task's positions on an untrained engine, and set its objective.

    A distillation without `teacher` is taught by the base under the adapters.

    Raises:
        SettingsError: If a proof fails.
    """
    device = engine.device
    prove(engine.logits, engine.hook, engine.ds.module, vocab_size=task.vocab_size, device=device)
    if task.packed:
        prove_apart(engine.logits, engine.hook, engine.ds.module, vocab_size=task.vocab_size, device=device)
    settings = task.train.objective
    if settings.is_plain:
        return
    by_reach = None
    if settings.weighs_reach:
        options = {"window": task.window, "base_context_length": task.base_context_length}
        by_reach = weights(task.positions, **options).to(device)
    if settings.is_taught and teacher is None:
        teacher = engine.untouched_logits
    engine.objective = made_by(OBJECTIVES, settings)(settings, teacher=teacher, weights=by_reach)


def run(
    task: Task,
    *,
    device: torch.device,
    open_rows: Callable[[int, int], Iterator[Rows]],
    report: Callable[[MetricsLine], Answer] = lambda metrics: None,
    gauges: Show | None = None,
    evaluate: Callable[[Engine, int], Mapping[str, object]] | None = None,
    looking: Callable[[Look], Look] = lambda look: look,
) -> int:
    """Train this rank's part of a task to its end and return the updates made in all.

    torch.distributed is initialised with a backend for the device. `open_rows` is called with (first step, step behind
    the last) and returns this rank's rows of each step. Each logged step goes to `report` on every rank, which may
    answer "stop", and to `gauges` on rank 0; what `evaluate` returns for it joins it. `looking` wraps the looks of
    `train.watch_every`, which may take long.

    Raises:
        SettingsError: If the model cannot be hooked, fails the proof, or a checkpoint or shard is damaged.
        Diverged: If too many steps in a row had no finite gradient norm or loss, or the state is not finite.
    """
    engine = begin(task, device=device)
    identity = together(partial(_identity, task, engine), doing="reading the base model")[0] or {}
    latest = steps.latest(RunFolder(task.folder).checkpoints)
    state = checkpoint.load(engine, latest, identity=identity) if latest else checkpoint.BEGINNING
    if engine.rank == 0:
        _tell(task, engine)
    last = state.watched.last if state.watched else None
    if state.stopped and last and pays_too_much(task.train, last, task.base_context_length):
        return state.step
    lookout = lookout_of(engine, task)
    if lookout is not None and latest:
        lookout.resume(state.watched)
    elif lookout is not None:
        looking(lookout.begin)(state.step)
    training = _Training(task, engine, identity, state, lookout, report=report, evaluate=evaluate, looking=looking)
    return training.fit(open_rows, gauges)


class _Training:
    """This rank's part of a training: what the loop calls, and what it keeps in between."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        identity: Plain,
        state: CheckpointState,
        lookout: Lookout | None,
        *,
        report: Callable[[MetricsLine], Answer],
        evaluate: Callable[[Engine, int], Mapping[str, object]] | None,
        looking: Callable[[Look], Look],
    ) -> None:
        self.task, self.engine, self.identity, self.lookout = task, engine, identity, lookout
        self.report, self.evaluate, self.looking = report, evaluate, looking
        self.start, self.tokens, self.stopped = state.step, state.tokens, False
        self.skips = Skips(state.skipped_steps, state.skipped_in_a_row)
        self.ledger = Ledger(task.folder, rank=engine.rank, start_step=state.step) if task.ledger else None
        self.recorder: Recorder | None = None

    def fit(self, open_rows: Callable[[int, int], Iterator[Rows]], gauges: Show | None) -> int:
        """Train to the end and return the updates made in all; arguments as `run`."""
        task, engine = self.task, self.engine
        rows = drawn(
            open_rows(self.start, task.train.steps),
            task,
            rank=engine.rank,
            num_workers=engine.num_workers,
            start_step=self.start,
            ledger=self.ledger,
            engine=engine,
        )
        if task.keep and engine.rank == 0:
            steps.begin(RunFolder(task.folder).checkpoints)
        if engine.rank == 0:
            self.recorder = _recorder(task, self.start, gauges)  # last, so that no failure leaves it open
        try:
            return fit(
                engine,
                rows,
                task.train,
                start_step=self.start,
                report=self._record,
                save=self._save,
                evaluate=self._look,
                progress=self.recorder.progress if self.recorder else None,
                note_skipped=self._note_skipped,
                skips=self.skips,
                tokens=self.tokens,
            )
        finally:
            if self.recorder:
                self.recorder.close(failed=sys.exc_info()[0] is not None)

    def _record(self, metrics: MetricsLine) -> Answer:
        task = self.task
        self.tokens = metrics.tokens
        if self.recorder:
            peak = peak_memory_mib(self.engine.device)
            self.recorder.report(metrics if peak is None else metrics.changed(peak_memory_mib=round(peak, 1)))
        answer = self.report(metrics)
        reason = pays_too_much(task.train, metrics, task.base_context_length)
        if reason is None or metrics.step == task.train.steps:  # it ran in full, whatever that cost
            return answer
        self.stopped = True
        if self.engine.rank == 0:
            print(f"{task.name}: {reason}", flush=True)
        return "stop"

    def _look(self, step: int) -> dict[str, object]:
        numbers = {} if self.evaluate is None else dict(self.evaluate(self.engine, step))
        settings = self.task.train
        if self.lookout is not None and (step % (settings.watch_every or 1) == 0 or step == settings.steps):
            numbers |= self.looking(self.lookout.metrics)(step)
        return numbers

    def _note_skipped(self, step: int, batch: Batch, nll: Tensor) -> None:
        assert batch.ids is not None
        own = rows_of(batch.ids, batch.draw, nll)
        parts = together(lambda: own, doing="telling its rows of a skipped step")
        if self.recorder:
            self.recorder.skipped(step, [row for part in parts for row in part])

    def _save(self, step: int) -> None:
        task = self.task
        if not task.keep:
            return
        if self.ledger:
            self.ledger.commit(step)
        facts = {
            "tokens": self.tokens,
            "skipped_steps": self.skips.total,
            "skipped_in_a_row": self.skips.in_a_row,
            "watched": self.lookout.watched() if self.lookout else None,
            "stopped": self.stopped,
            "identity": self.identity,
            "dtype": str(precision_of(task.train, self.engine.device)).removeprefix("torch."),
        }
        folder = RunFolder(task.folder).checkpoints
        checkpoint.save(self.engine, folder, step=step, facts=facts, keep=task.train.keep_checkpoints)


def _identity(task: Task, engine: Engine) -> Plain | None:
    """Return what the training is, on the first rank; the others need not read the weights again."""
    if engine.rank or not task.keep:
        return None
    return task.identity(*base_identity(task.model))


def _tell(task: Task, engine: Engine) -> None:
    """Say what runs, in the first line and in environment.json."""
    facts = engine.facts
    note_training(task.folder, Training(**facts))
    workers = f"{engine.num_workers} worker{'s' * (engine.num_workers > 1)}"
    print(
        f"{task.name}: {workers} on {facts['device']}, {facts['dtype']} weights, {facts['attention']} attention",
        flush=True,
    )


def trackers_of(task: Task, start: int, gauges: Show | None, *, without: Collection[str] = ()) -> Trackers:
    """Return where rank 0 logs: TensorBoard where the run keeps files, gauges if any, and what the recipe asks for.

    Those named in `without` stay closed: they were lost before, which was reported.
    """
    openers: list[tuple[str, Callable[[], Tracker]]] = []
    if task.keep:
        openers.append(("tensorboard", partial(TensorBoard, task.folder, start_step=start)))
    if gauges is not None:
        openers.append(("gauges", partial(Gauges, gauges)))
    openers += configured(task.trackers, task.folder, name=task.name, continued=task.keep)
    return Trackers(openers, lost=without)


def _recorder(task: Task, start: int, gauges: Show | None) -> Recorder:
    recorder = Recorder(
        task.folder,
        start_step=start,
        steps=task.train.steps,
        progress_s=task.train.progress_s,
        show=(lambda line: print(line, flush=True)) if task.show_progress else None,
    )
    recorder.trackers = trackers_of(task, start, gauges)  # after all that can fail, so that no failure leaves them open
    return recorder
