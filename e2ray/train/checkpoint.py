"""Checkpoints in our own format: safetensors and JSON, no pickle, no world size, no ZeRO stage.

`checkpoints/step-<n>/` holds `part-<k>.safetensors` (per trainable parameter the fp32 weight and Adam's two
moments), `state.json` (step, counters, what the training is, where each parameter is), `probe.safetensors` (what the
engine answers to fixed tokens) and `manifest.json` (bytes and sha256 of every file). The ranks write their parts in
parallel into a folder aside, which is flushed and renamed when all of them are done; `checkpoints/latest` then names
it. Damage is found before anything is loaded, and so is a checkpoint of another training.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from e2ray import files
from e2ray.config.base import Plain, SettingsError
from e2ray.config.run import difference
from e2ray.core.probe import Probe
from e2ray.files import Fingerprint
from e2ray.records.checkpoint import FORMAT, CheckpointManifest, CheckpointState, Parameter
from e2ray.records.folders import CheckpointFolder
from e2ray.records.record import NewerError
from e2ray.train import steps
from e2ray.train.loop import Diverged
from e2ray.train.parameters import ParameterState
from e2ray.train.task import completed

if TYPE_CHECKING:  # what reads a checkpoint needs no engine
    from e2ray.train.engine import Engine

PROBE = CheckpointFolder.probe.name
PART_BYTES = 2 * 2**30
BEGINNING = CheckpointState(format=FORMAT, step=0, parameters={})  # where there is no checkpoint yet
KINDS = ("weight", "exp_avg", "exp_avg_sq")
T = TypeVar("T")


class DamagedError(SettingsError):
    """A checkpoint is not what was written; an older one may be."""


def together(work: Callable[[], T], *, doing: str) -> list[T]:
    """Run `work` on every rank and return all results in rank order; one rank's error is raised on every rank.

    Without this, a full disk on one rank would leave the others waiting for it in the next collective.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, _portable(error)))
    for rank, (_, (is_settings, text)) in enumerate(outcomes):
        if text is not None:
            message = text if is_settings else f"rank {rank} failed {doing}: {text}"
            raise (SettingsError if is_settings else RuntimeError)(message) from error
    return [value for value, _ in outcomes]


def _portable(error: Exception | None) -> tuple[bool, str | None]:
    if error is None:
        return False, None
    return isinstance(error, SettingsError), str(error) if isinstance(error, SettingsError) else repr(error)


def save(engine: "Engine", folder: Path, *, step: int, facts: Mapping[str, object], keep: int) -> Path:
    """Write the checkpoint after `step` updates and return its folder; every rank must call this.

    `folder` is the run's `checkpoints`, of which the newest `keep` stay; `facts` are fields of `CheckpointState`.

    Raises:
        SettingsError: On every rank, if the disk of one of them is full.
        Diverged: On every rank, if a weight or a moment is not finite; nothing is written then.
    """
    refuse_non_finite(engine, step=step, folder=folder)
    aside, final = folder / f"{files.TEMPORARY}step-{step}", folder / f"step-{step}"

    def begin() -> None:
        if engine.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"{files.TEMPORARY}*"):
                shutil.rmtree(old, ignore_errors=True)
            aside.mkdir()

    together(begin, doing="making the checkpoint folder")
    written = together(_writer(engine, aside), doing="writing its part of the checkpoint")
    probe = engine.probe()  # every rank takes part in it

    def commit() -> None:
        if engine.rank == 0:
            parameters = {name: entry for part in written for name, entry in part.parameters.items()}
            in_order = {name: parameters[name] for name, _ in engine.parameters()}
            known = {"format": FORMAT, "step": step, **facts, "parameters": in_order}
            here = CheckpointFolder(aside)
            with files.naming(final):
                CheckpointState.model_validate(known).write(here.state)
                digests = {name: entry for part in written for name, entry in part.files.items()}
                probe.save(here.probe)
                digests |= files.fingerprints(aside, [here.state.name, PROBE])
                CheckpointManifest(files=digests).write(here.manifest)
                files.commit_folder(aside, final)
                files.write_text(folder / steps.LATEST, f"step-{step}\n")
            _prune(folder, keep=keep, newest=step)

    together(commit, doing="committing the checkpoint")
    return final


def refuse_non_finite(engine: "Engine", *, step: int, folder: Path | None = None) -> None:
    """Raise Diverged on every rank if a trainable weight or one of its moments is not finite; all must call this.

    With `folder`, a run's `checkpoints`, the error names the newest one, which the run then continues from.
    """
    name = engine.non_finite()
    if name:
        kept = steps.latest(folder) if folder else None
        last = f"; {kept} is the last good checkpoint and stays" if kept else ""
        raise Diverged(
            f"step {step}: the {name} is not finite behind the last update, so the state is not saved{last}; lower "
            "train.lr or train.weight_decay, or set train.clip_norm"
        )


@dataclass(frozen=True)
class _Written:
    """What one rank has written: its files, and where each of its parameters is."""

    files: dict[str, Fingerprint]
    parameters: dict[str, Parameter]


def _writer(engine: "Engine", aside: Path) -> Callable[[], _Written]:
    """Return the work of one rank: take part in gathering every parameter, keep and write its own share.

    All parameters are gathered even after a failed write: the others wait in the same collectives.
    """

    def work() -> _Written:
        held: dict[str, torch.Tensor] = {}
        parts: dict[str, Fingerprint] = {}
        parameters: dict[str, Parameter] = {}
        failure: Exception | None = None

        def flush() -> None:
            nonlocal failure
            path = CheckpointFolder(aside).part(rank=engine.rank, number=len(parts))
            try:
                if failure is None and held:
                    _write_part(path, held)
                    parts[path.name] = files.fingerprint(path)
                    for key, value in held.items():
                        kind, parameter = key.split("/", 1)
                        if kind == "weight":
                            parameters[parameter] = Parameter(file=path.name, shape=tuple(value.shape))
            except Exception as error:  # safetensors has its own error for a failed write
                failure = error
            held.clear()

        for index, state in enumerate(engine.states()):
            if index % engine.num_workers == engine.rank:
                held.update({f"{kind}/{state.name}": getattr(state, kind) for kind in KINDS})
                if sum(value.nbytes for value in held.values()) >= PART_BYTES:
                    flush()
        flush()
        if failure:
            raise files.named_write_error(failure, aside) from failure
        return _Written(parts, parameters)

    return work


def _write_part(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _prune(folder: Path, *, keep: int, newest: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for _, path in [(step, path) for step, path in steps.step_folders(folder) if step <= newest][keep:]:
        shutil.rmtree(path, ignore_errors=True)


def read_state(checkpoint: Path, *, verify: range | None = None) -> CheckpointState:
    """Return state.json of a checkpoint whose files are as they were written.

    Args:
        checkpoint: A `step-<n>` folder.
        verify: Which of its files (by index in the manifest) are read in full; None means all. Sizes are always
            checked, so ranks can share the reading.

    Raises:
        DamagedError: Naming the missing, truncated or changed file.
        SettingsError: If it is whole but of another version.
    """
    here = CheckpointFolder(checkpoint)
    try:
        manifest = CheckpointManifest.read(here.manifest)
    except FileNotFoundError:
        raise DamagedError(f"{here.manifest}: is missing") from None
    except NewerError:
        raise
    except SettingsError as error:
        raise DamagedError(str(error)) from None
    names = list(manifest.files)
    read = names if verify is None else [names[index] for index in verify if index < len(names)]
    try:
        damage = files.damage(checkpoint, manifest.files, read=read)
    except OSError as error:
        damage = f"{checkpoint}: cannot be read: {error.strerror}"
    if damage:
        raise DamagedError(damage)
    state = CheckpointState.read(here.state)
    if checkpoint.name != f"step-{state.step}":
        raise DamagedError(f"{checkpoint}: holds the state after {state.step} updates")
    return state


def read_parameters(checkpoint: Path, state: CheckpointState) -> Iterator[ParameterState]:
    """Yield the state of each parameter in the order they were saved in, float32 on the CPU."""
    opened: dict[str, safe_open] = {}
    for name, entry in state.parameters.items():
        if entry.file not in opened:
            opened[entry.file] = safe_open(checkpoint / entry.file, framework="pt")
        part = opened[entry.file]
        yield ParameterState(name, *(part.get_tensor(f"{kind}/{name}") for kind in KINDS))


def refuse_other_training(checkpoint: Path, state: CheckpointState, identity: Plain) -> None:
    """Raise SettingsError naming the first difference if a checkpoint is not of the training that continues from it.

    The identity is all that determines a training's weights, as `Task.identity` gives it.
    """
    if mismatch := difference(completed(state.identity), identity, free=()):
        raise SettingsError(f"{checkpoint}: is of another training: {mismatch}; remove it, or choose another name")


def load(engine: "Engine", checkpoint: Path, *, identity: Plain) -> CheckpointState:
    """Make a new engine continue from a checkpoint and return its state.json; every rank must call this.

    A damaged one is reported, and the newest whole one before it is taken.

    Raises:
        SettingsError: On every rank, if none is whole, it belongs to another model or training, or the engine's
            answers differ from those of the one that wrote it.
    """
    newest = int(checkpoint.name.removeprefix("step-"))
    candidates = [checkpoint, *(path for step, path in steps.step_folders(checkpoint.parent) if step < newest)]
    complaints: list[str] = []
    for candidate in candidates:
        outcomes = together(partial(_whole, engine, candidate), doing="reading the checkpoint")
        complaint = next((each for each in outcomes if isinstance(each, str)), None)
        state = outcomes[engine.rank]
        if isinstance(state, CheckpointState) and complaint is None:
            _take_over(engine, candidate, state, identity)
            return state
        assert complaint is not None
        complaints.append(complaint)
        if engine.rank == 0:
            print(f"{complaint}; looking for an older checkpoint", flush=True)
    raise SettingsError(f"{complaints[0]}; no older one is whole either: remove {checkpoint.parent} to begin anew")


def _whole(engine: "Engine", checkpoint: Path) -> CheckpointState | str:
    """Return a checkpoint's state, or one line where a file that this rank reads is damaged."""
    count = len(list(checkpoint.iterdir())) if checkpoint.is_dir() else 0
    try:
        return read_state(checkpoint, verify=range(engine.rank, count, engine.num_workers))
    except DamagedError as error:
        return str(error)


def _take_over(engine: "Engine", checkpoint: Path, state: CheckpointState, identity: Plain) -> None:
    def check() -> None:
        refuse_other_training(checkpoint, state, identity)
        shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.parameters()}
        if shapes != {name: entry.shape for name, entry in state.parameters.items()}:
            raise SettingsError(f"{checkpoint}: belongs to another model, its parameters have other names or shapes")

    together(check, doing="reading the checkpoint")
    updates = state.step - state.skipped_steps
    engine.load(read_parameters(checkpoint, state), optimizer_step=updates)
    engine.refuse_other_answers(Probe.read(checkpoint / PROBE), what=str(checkpoint))
