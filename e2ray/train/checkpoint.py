"""Checkpoints in our own format: safetensors and JSON, no pickle, no world size, no ZeRO stage.

`checkpoints/step-<n>/` holds `part-<k>.safetensors` (per trainable parameter the fp32 weight and Adam's two
moments), `state.json` (step, counters, where each parameter lies) and `manifest.json` (bytes and sha256 of every
file). The ranks write their parts in parallel into a folder aside, which is flushed and renamed when all of them
are done; `checkpoints/latest` then names it. Damage is found before anything is loaded.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.train.engine import Engine, ParameterState

FORMAT = 1
PART_BYTES = 2 * 2**30
KINDS = ("weight", "exp_avg", "exp_avg_sq")
T = TypeVar("T")


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


def save(engine: Engine, folder: Path, *, step: int, facts: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint after `step` updates and return its folder; every rank must call this.

    Args:
        engine: The engine whose state is saved.
        folder: The run's `checkpoints` folder.
        step: Updates made so far.
        facts: Plain data kept in state.json (tokens, digest of the settings, ...).
        keep: Newest checkpoints that stay.

    Raises:
        SettingsError: On every rank, if the disk of one of them is full.
    """
    aside, final = folder / f"{files.TEMPORARY}step-{step}", folder / f"step-{step}"

    def begin() -> None:
        if engine.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"{files.TEMPORARY}*"):
                shutil.rmtree(old, ignore_errors=True)
            aside.mkdir()

    together(begin, doing="making the checkpoint folder")
    written = together(_writer(engine, aside), doing="writing its part of the checkpoint")

    def commit() -> None:
        if engine.rank == 0:
            parameters = {name: entry for part in written for name, entry in part["parameters"].items()}
            order = [name for name, _ in engine.parameters()]
            state = {
                "format": FORMAT,
                "step": step,
                **facts,
                "parameters": {name: parameters[name] for name in order},
            }
            try:
                files.write_json(aside / "state.json", state)
                digests = {name: entry for part in written for name, entry in part["files"].items()}
                digests["state.json"] = _fingerprint(aside / "state.json")
                files.write_json(aside / "manifest.json", {"files": digests, "digest": files.digest(digests)})
                files.commit_folder(aside, final)
                files.write_text(folder / "latest", f"step-{step}\n")
            except OSError as error:
                raise files.named_write_error(error, final) from error
            _prune(folder, keep=keep, newest=step)

    together(commit, doing="committing the checkpoint")
    return final


def _writer(engine: Engine, aside: Path) -> Callable[[], dict[str, Any]]:
    """Return the work of one rank: take part in gathering every parameter, keep and write its own share.

    All parameters are gathered even after a failed write: the others wait in the same collectives.
    """

    def work() -> dict[str, Any]:
        held: dict[str, torch.Tensor] = {}
        parts: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
        failure: Exception | None = None

        def flush() -> None:
            nonlocal failure
            name = f"part-{engine.rank:05d}-{len(parts):03d}.safetensors"
            try:
                if failure is None and held:
                    _write_part(aside / name, held)
                    parts[name] = _fingerprint(aside / name)
                    for key, value in held.items():
                        kind, parameter = key.split("/", 1)
                        if kind == "weight":
                            parameters[parameter] = {"file": name, "shape": list(value.shape)}
            except Exception as error:  # safetensors has one of its own for a failed write
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
        return {"files": parts, "parameters": parameters}

    return work


def _write_part(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _prune(folder: Path, *, keep: int, newest: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    for step in [step for step in steps if step <= newest][:-keep]:
        shutil.rmtree(folder / f"step-{step}", ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """Return the folder of the newest committed checkpoint, or None where there is none.

    Raises:
        SettingsError: If `latest` cannot be read, or names no checkpoint that is there.
    """
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    advice = "write the name of a step-<n> folder beside it into it"
    try:
        with pointer.open("rb") as file:
            name = file.read(100).decode("ascii").strip()
    except OSError as error:
        raise SettingsError(f"{pointer}: cannot be read: {error.strerror}; {advice}, as a file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{pointer}: is damaged, it holds no text; {advice}") from None
    if re.fullmatch(r"step-\d+", name) is None:
        raise SettingsError(f"{pointer}: is damaged, it holds {name!r}, wanted step-<n>; {advice}")
    path = folder / name
    if not (path / "manifest.json").is_file():
        raise SettingsError(f"{pointer}: names {name}, which is not there; {advice}")
    return path


def read_state(checkpoint: Path, *, verify: range | None = None) -> dict[str, Any]:
    """Return state.json of a checkpoint whose files are as they were written.

    Args:
        checkpoint: A `step-<n>` folder.
        verify: Which of its files (by index in the manifest) are read in full; None means all. Sizes are always
            checked, so ranks can share the reading.

    Raises:
        SettingsError: Naming the missing, truncated or changed file.
    """
    advice = f"choose an older step-<n> by writing its name into {checkpoint.parent / 'latest'}"
    manifest = files.read_json(checkpoint / "manifest.json", wanted="a checkpoint's manifest")
    if not isinstance(manifest, dict) or files.digest(manifest.get("files")) != manifest.get("digest"):
        raise SettingsError(f"{checkpoint / 'manifest.json'}: is damaged; {advice}")
    for index, (name, entry) in enumerate(manifest["files"].items()):
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise SettingsError(f"{path}: is missing or truncated (wanted {entry['bytes']} bytes); {advice}")
        if (verify is None or index in verify) and files.sha256(path) != entry["sha256"]:
            raise SettingsError(f"{path}: is damaged, its sha256 is not the one written; {advice}")
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise SettingsError(f"{checkpoint}: has format {state['format']}, this version reads {FORMAT}")
    return state


def read_parameters(checkpoint: Path, state: dict[str, Any]) -> Iterator[ParameterState]:
    """Yield the state of each parameter in the order they were saved in, float32 on the CPU."""
    opened: dict[str, Any] = {}
    for name, entry in state["parameters"].items():
        if entry["file"] not in opened:
            opened[entry["file"]] = safe_open(checkpoint / entry["file"], framework="pt")
        part = opened[entry["file"]]
        yield ParameterState(name, *(part.get_tensor(f"{kind}/{name}") for kind in KINDS))


def load(engine: Engine, checkpoint: Path) -> dict[str, Any]:
    """Make a new engine continue from a checkpoint and return its state.json; every rank must call this.

    Raises:
        SettingsError: On every rank, if a file is damaged or the checkpoint belongs to another model.
    """
    count = len(list(checkpoint.iterdir()))

    def check() -> dict[str, Any]:
        state = read_state(checkpoint, verify=range(engine.rank, count, engine.num_workers))
        shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.parameters()}
        if shapes != {name: entry["shape"] for name, entry in state["parameters"].items()}:
            raise SettingsError(f"{checkpoint}: belongs to another model, its parameters have other names or shapes")
        return state

    state = together(check, doing="reading the checkpoint")[engine.rank]
    engine.load(read_parameters(checkpoint, state), optimizer_step=state["step"])
    return state
