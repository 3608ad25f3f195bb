"""A resolved recipe, the places it writes to, and the upkeep of its status.json."""

import itertools
import os
import platform
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.data import PretrainedTokenizer
from e2ray.config.effect import without_effect
from e2ray.config.load import read_resolved
from e2ray.config.model import Model, PretrainedModel
from e2ray.config.resolved import ResolvedConfig, ResolvedData, ResolvedEvaluate, ResolvedExport, filled
from e2ray.config.run import FREE_ON_RESUME, MENDABLE, RunConfig, difference, differences
from e2ray.config.train import ClusterSettings
from e2ray.core.base import base_facts
from e2ray.core.model_folder import seal
from e2ray.core.scales import default_scales, default_windows
from e2ray.data.folder import Folder
from e2ray.data.identity import shards_digest
from e2ray.data.pace import show
from e2ray.data.shards import read_manifest
from e2ray.data.tokenizer import save_whole, whole_digest
from e2ray.evaluate.perplexity import default_stride
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ComparisonFolder, RunFolder, ShardFolder, StorageFolder, StudyFolder
from e2ray.train.record import end_status, now, read_status, settle, write_status
from e2ray.train.steps import begun as checkpoints_begun

LONGEST_DIFFERENCE = 160  # characters shown of a difference


class Preempted(KeyboardInterrupt):
    """The run was asked to stop from outside."""


@dataclass(frozen=True)
class ResolvedRun:
    """A resolved recipe and the places it writes to.

    Attributes:
        config: Every default that depends on the model filled in.
        base_context_length: L, tokens.
        ignored: One line for each setting of the recipe that is without effect beside the others.
    """

    config: ResolvedConfig
    base_context_length: int
    ignored: tuple[str, ...] = ()

    @property
    def storage(self) -> Path:
        """Folder of all runs."""
        return Path(self.config.storage).expanduser()

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.storage / self.config.name

    @property
    def files(self) -> RunFolder:
        """The entries of that folder, by name."""
        return RunFolder(self.folder)

    @property
    def is_trained(self) -> bool:
        """Whether the tuned model is there."""
        return self.files.model.is_dir()

    @property
    def evaluation(self) -> ResolvedEvaluate:
        """What is measured.

        Raises:
            SettingsError: If the recipe leaves the stage out.
        """
        if self.config.evaluate is None:
            raise SettingsError("evaluate: is null, which leaves the stage out; give it a section or remove the line")
        return self.config.evaluate

    @property
    def exported(self) -> ResolvedExport:
        """What is exported.

        Raises:
            SettingsError: If the recipe leaves the stage out.
        """
        if self.config.export is None:
            raise SettingsError("export: is null, which leaves the stage out; give it a section or remove the line")
        return self.config.export

    @property
    def base_batch_tokens(self) -> int:
        """Tokens of one forward, at least, where the base is read before anything is trained."""
        return self.config.evaluate.batch_tokens if self.config.evaluate else 1

    def refuse_untrained(self, command: str = "train") -> None:
        """Raise SettingsError if there is no tuned model, naming the command that makes one."""
        if not self.is_trained:
            raise SettingsError(f"{self.files.model}: no tuned model yet; run {command} first")

    @property
    def made_shards(self) -> Path:
        """Folder of the shards that are made of the run's sources: `data.shards`, or one named by content."""
        data = self.config.data
        if data.shards is not None:
            return Path(data.shards).expanduser()
        return StorageFolder(self.storage).shards / shards_digest(data, tokenizer_source=data.tokenizer)[:16]

    @property
    def longest(self) -> int:
        """Longest context length the draws train for, in tokens."""
        return int(self.config.positions.max_scale * self.base_context_length)

    @property
    def base(self) -> Path:
        """Folder of the pretraining, shared by all runs with the same base.

        Adapters are no part of its name, nor are settings that may change when a run is continued.
        """
        config = self.config
        free = {path.partition(".")[2] for path in FREE_ON_RESUME if path.startswith("pretrain.")}
        free |= {"objective"}  # always the next token's NLL
        identity = {
            "model": config.model.model_dump(mode="json", exclude={"lora", "checkpoint_share", "attention", "liger"}),
            "data": config.data.identity(without={"shards", "ledger", "prefetch_mib"}),
            "pretrain": config.pretrain.model_dump(mode="json", exclude=free) if config.pretrain else None,
            "seed": config.seed,
            "python": platform.python_version(),
        }
        return StorageFolder(self.storage).bases / files.digest(identity)[:16]


def tell_ignored(run: ResolvedRun, *sections: str) -> None:
    """Show one line for each setting without effect, of some sections or of all."""
    for line in run.ignored:
        if not sections or line.startswith(tuple(f"{section}." for section in sections)):
            show(f"warning: {line}")


def ray_address() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names; None where a Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def run_tokenizer(run: ResolvedRun, shards: str | Path) -> Path:
    """Return the folder of the run's own tokenizer on the file system that all nodes share, copied there now or before.

    Shards are named by tokens alone, so the tokenizer beside them may have the chat template of another run.
    One that the recipe names is taken from its source; one that prepare has trained is beside the shards.

    Raises:
        SettingsError: If it cannot be read, or the storage cannot be written.
    """
    source, folder = run.config.data.tokenizer, Folder(shards)
    named = source if isinstance(source, PretrainedTokenizer) else None
    if named is None and folder.local is not None:
        return ShardFolder(folder.local).tokenizer
    content = whole_digest(named.path, named.revision) if named else None
    name = files.digest([read_manifest(folder).tokenizer_hash, content])[:16]
    target = StorageFolder(run.storage).tokenizers / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        if named is None:
            folder.fetch(ShardFolder.tokenizer.name, target)
        else:
            with files.atomic_folder(target) as aside:
                save_whole(named.path, aside, named.revision)
                seal(aside, None)
    return target


def resolve(config: RunConfig) -> ResolvedRun:
    """Return the run of a recipe with all defaults that depend on the model filled in.

    Raises:
        SettingsError: If the model cannot be read, is no RoPE model, or a choice about its scaling is missing.
    """
    facts = base_facts(config.model)
    length = facts.base_context_length
    whole = filled(
        ResolvedConfig,
        config,
        model=_model(config, length),
        data=_data(config),
        evaluate=_evaluate(config, length),
        export=_export(config, length),
    )
    ignored = [*facts.ignored, *without_effect(config, length)]
    store = ClusterSettings.model_fields["object_store_mib"].default
    if ray_address() and config.cluster.object_store_mib != store:
        ignored.append(
            f"cluster.object_store_mib: {config.cluster.object_store_mib} is without effect, since RAY_ADDRESS names a "
            "cluster that has its object stores already"
        )
    return ResolvedRun(whole, length, tuple(ignored))


def _model(config: RunConfig, base_context_length: int) -> Model:
    if not isinstance(config.model, PretrainedModel):
        return config.model
    return config.model.model_copy(update={"base_context_length": base_context_length})


def _data(config: RunConfig) -> ResolvedData:
    if config.data.tokenizer is None and isinstance(config.model, PretrainedModel):
        tokenizer = PretrainedTokenizer(path=config.model.path, revision=config.model.revision)
        return filled(ResolvedData, config.data, tokenizer=tokenizer)
    return filled(ResolvedData, config.data)


def _evaluate(config: RunConfig, base_context_length: int) -> ResolvedEvaluate | None:
    settings, largest = config.evaluate, config.positions.max_scale
    if settings is None:
        return None
    return filled(
        ResolvedEvaluate,
        settings,
        windows=settings.windows or default_windows(base_context_length, largest),
        scales=settings.scales or default_scales(largest),
        stride=settings.stride or default_stride(base_context_length),
    )


def _export(config: RunConfig, base_context_length: int) -> ResolvedExport | None:
    if config.export is None:
        return None
    windows = default_windows(base_context_length, config.positions.max_scale)
    return filled(ResolvedExport, config.export, context_lengths=config.export.context_lengths or windows)


def refuse_other_kind(run: ResolvedRun, kind: str) -> None:
    """Raise SettingsError if the run's folder holds a training run, a study or a comparison other than this kind."""
    there = {
        "training run": run.is_trained or run.files.checkpoints.is_dir(),
        "study": StudyFolder(run.folder).journal.exists(),
        "comparison": ComparisonFolder(run.folder).lanes.is_dir(),
    }
    for other, is_there in there.items():
        if is_there and other != kind:
            raise SettingsError(f"{run.folder}: holds a {other} of that name; choose another name for the {kind}")


def refuse_other_settings(run: ResolvedRun, *, besides: Sequence[str] = (), begun: bool | None = None) -> None:
    """Raise SettingsError naming the difference if the run's folder holds a run with other settings.

    Sections, or settings of one (`section.name`), that are named `besides` may differ. `begun` says whether the folder
    holds anything that was made with its settings; None: a checkpoint or a model.
    """
    path = run.files.config
    if begun is None:
        begun = run.is_trained or checkpoints_begun(run.files.checkpoints)
    if not begun or not path.exists():  # a run that failed before it trained may be corrected under its name
        return  # and without config.yaml, checkpoints and model are checked by their own records
    before = read_resolved(path).model_dump(mode="json")
    after = run.config.model_dump(mode="json")
    for settings, entry in itertools.product((before, after), besides):
        section, _, name = entry.partition(".")
        if name:
            (settings[section] or {}).pop(name, None)
        else:
            settings.pop(section)
    if mismatch := difference(before, after):
        raise SettingsError(
            f"{path}: the run {run.config.name!r} was begun with other settings: {mismatch}; "
            "choose another name, or the old value"
        )


def tell_unmeasured(run: ResolvedRun) -> None:
    """Show one line if a finished run was measured or exported with other settings than the recipe's."""
    path = run.files.config
    before = read_resolved(path).model_dump(mode="json", include=set(MENDABLE))
    after = run.config.model_dump(mode="json", include=set(MENDABLE))
    for settings in (before, after):
        settings["suites"] = (settings["evaluate"] or {}).pop("suites", None)
    diffs = {name: differences({name: before[name]}, {name: after[name]}) for name in ("evaluate", "suites", "export")}
    stages = [name for name, lines in diffs.items() if lines and after[name] is not None]  # null asks for nothing
    if stages:
        first, more = diffs[stages[0]][0], sum(len(diffs[stage]) for stage in stages) - 1
        first = f"evaluate.{first}" if stages[0] == "suites" else first
        if len(first) > LONGEST_DIFFERENCE:  # a whole section
            first = f"{first.partition(':')[0]}: is another one in the run"
        commands = " and ".join(f"`e2ray {stage}`" for stage in stages)
        show(f"{first}{f' (and {more} more)' if more else ''}; {commands} with this recipe: nothing is trained again")


@contextmanager
def reporting(run: ResolvedRun) -> Iterator[None]:
    """Write into status.json that the run is running, and how it ended, whatever ends it.

    That is an error, an interrupt or SIGTERM. The last, from `ray job stop`, is written by the handler itself: the job
    is killed seconds later. A run that was killed before, and could not say so, is reported. The caller holds the
    run's lock, and writes `succeeded`.
    """
    killed = settle(run.folder)
    if killed:
        show(f"{killed}; it goes on from what it left")

    def stop(number: int, frame: FrameType | None) -> None:
        end_status(run.folder, "preempted", f"stopped by {signal.Signals(number).name}")
        raise Preempted

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        write_status(run.folder, state="running", error=None, started_at=now(), ended_at=None)
        yield
    except (KeyboardInterrupt, SystemExit) as error:  # while it trains, Ray turns Ctrl-C into SystemExit
        if not _was_stopped(run.folder):
            end_status(run.folder, "preempted", "interrupted")
        raise KeyboardInterrupt from error
    except BaseException as error:
        end_status(run.folder, "failed", str(error) or type(error).__name__)
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _was_stopped(folder: Path) -> bool:
    """Return whether status.json still has the handler's entry; a worker that wrote its step may have replaced it."""
    try:
        status = read_status(folder)
    except SettingsError:
        return False
    return status is not None and status.state == "preempted"


def result_line(run: ResolvedRun) -> str:
    """Return one line that says what a finished run found and where its model is."""
    evaluation = Evaluation.find(run.files.evaluation)
    parts = evaluation.verdict.sentences[:1] if evaluation else ()
    model = run.files.export if run.files.export.is_dir() else run.files.model
    return " ".join([*parts, f"Model: {model}"])
