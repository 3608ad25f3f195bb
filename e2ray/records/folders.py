"""The folders that e2ray leaves: the name of every file in them, what it is for, and the class of its content.

`RunFolder(path).evaluation` is the path of a run's evaluation.json; a name with placeholders is a function of them:
`ComparisonFolder(path).lane(lane="pose", seed=0)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, overload

from e2ray.records.base_length import BaseLength
from e2ray.records.checkpoint import CheckpointManifest, CheckpointState
from e2ray.records.comparison import Comparison, Lane
from e2ray.records.effective import Effective
from e2ray.records.evaluation import Cell, Evaluation, RemovedScaling
from e2ray.records.lengths import DocumentRow, LengthCell
from e2ray.records.manifest import Manifest
from e2ray.records.model import ModelRecord
from e2ray.records.record import Part
from e2ray.records.retrieval import Retrieval
from e2ray.records.run import Environment, MetricsLine, SkippedStep, Status, TrackerNumbers
from e2ray.records.scales import Scales
from e2ray.records.serving import Commands
from e2ray.records.study import CurveRow, Pareto, Ranges, TrialRow
from e2ray.records.suites import Sample, Suites


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder: its name, what it is for, and what it holds."""

    name: str
    use: str
    record: type[Part] | None = None


@dataclass(frozen=True)
class File(Entry):
    """An entry with one name; as an attribute of a folder it is its path."""

    @overload
    def __get__(self, folder: None, owner: type) -> Self: ...
    @overload
    def __get__(self, folder: "Folder", owner: type) -> Path: ...
    def __get__(self, folder: "Folder | None", owner: type) -> Self | Path:
        """Return the path in a folder; as an attribute of the class, the entry itself."""
        return self if folder is None else folder.path / self.name


@dataclass(frozen=True)
class Files(Entry):
    """Entries whose names differ in parts, as `lanes/{lane}-{seed}.json`; of a folder it is a function of these."""

    @overload
    def __get__(self, folder: None, owner: type) -> Self: ...
    @overload
    def __get__(self, folder: "Folder", owner: type) -> Callable[..., Path]: ...
    def __get__(self, folder: "Folder | None", owner: type) -> Self | Callable[..., Path]:
        """Return the function that makes a path in a folder; as an attribute of the class, the entry itself."""
        return self if folder is None else partial(self._path, folder.path)

    def _path(self, folder: Path, **parts: object) -> Path:
        return folder / self.name.format(**parts)


class Folder:
    """A folder by its path; a subclass names what is in it."""

    where: str

    def __init__(self, path: str | Path) -> None:
        """Take the path; nothing is read."""
        self.path = Path(path)

    @classmethod
    def entries(cls) -> Iterator[Entry]:
        """Yield the entries of such a folder, in order."""
        for kind in reversed(cls.__mro__):
            yield from (entry for entry in vars(kind).values() if isinstance(entry, Entry))


class CheckpointFolder(Folder):
    """One checkpoint: everything a training goes on from."""

    where = "<storage>/<run>/checkpoints/step-<n>/"

    state = File("state.json", "Where the training stands and what it is.", CheckpointState)
    part = Files("part-{rank:05d}-{number:03d}.safetensors", "Weights and moments, float32.")
    probe = File("probe.safetensors", "What the model answers to fixed tokens.")
    manifest = File("manifest.json", "Vouches for the other files.", CheckpointManifest)


class CheckpointsFolder(Folder):
    """The checkpoints of a run; damaged ones are passed over for the newest whole one."""

    where = "<storage>/<run>/checkpoints/"

    latest = File("latest", "Name of the checkpoint that the run goes on from, as text.")
    step = Files("step-{step}", "One checkpoint.")


class ModelFolder(Folder):
    """A model in the form that transformers loads, with what vouches for it in a subfolder of its own."""

    where = "<storage>/<run>/model/"

    config = File("config.json", "The model's config, its rope as the base's.")
    about = File("e2ray", "What vouches for the folder; servers do not look there.")
    record = File("e2ray/manifest.json", "Vouches for every file, and tells the training.", ModelRecord)
    probe = File("e2ray/probe.safetensors", "What the model answers to fixed tokens.")


class TrainedFolder(Folder):
    """What every folder has in which something is trained or searched."""

    where = "<storage>/<name>/"

    config = File("config.yaml", "The whole recipe, resolved; its last line vouches for it.")
    status = File("status.json", "How far it came.", Status)
    environment = File("environment.json", "What it ran on.", Environment)
    lock = File(".lock", "Held while a process works on the folder.")


class StorageFolder(Folder):
    """The folder of all runs, and what they share, each part named by its content."""

    where = "<storage>/"

    shards = File("shards", "Shards, a folder each.")
    bases = File("bases", "Bases that were pretrained, a folder each like a run's.")
    tokenizers = File("tokenizers", "Tokenizers of runs whose shards lie elsewhere.")
    prompts = File("prompts", "Retrieval prompts that were made before.")


class RunFolder(TrainedFolder):
    """A run."""

    where = "<storage>/<run>/"

    metrics = File("metrics.jsonl", "A line for each logged step.", MetricsLine)
    skipped = File("skipped.jsonl", "A line for each step that changed nothing.", SkippedStep)
    trackers = File("trackers.json", "The run's number in each tracker.", TrackerNumbers)
    tensorboard = File("tensorboard", "Curves for TensorBoard.")
    ledger = File(
        "ledger", "Which row every rank read in every step, with which draw, where `data.ledger` asks for it."
    )
    checkpoints = File("checkpoints", "What the training goes on from.")
    base_length = File("base-length.json", "How far the base reads by itself.", BaseLength)
    removed = File("removed_scaling.json", "What removing the base's scaling did.", RemovedScaling)
    model = File("model", "The tuned model.")
    evaluation = File("evaluation.json", "NLL over window x scale, and what it says.", Evaluation)
    table = File("evaluation.parquet", "The same rows as a table.", Cell)
    picture = File("evaluation.png", "The same as a picture.")
    documents = File("evaluation-documents.parquet", "Each cell document by document.", DocumentRow)
    lengths = File("evaluation-lengths.parquet", "NLL by context length, one pass a scale.", LengthCell)
    lengths_picture = File("evaluation-lengths.png", "The same as a picture.")
    scales = File("scales.json", "Which scale reads each context length best.", Scales)
    effective = File("effective.json", "Up to which length the model reads.", Effective)
    retrieval = File("retrieval.json", "What is found in long texts, where it was asked.", Retrieval)
    retrieval_picture = File("retrieval.png", "The same as a picture.")
    suites = File("suites.json", "Scores of published suites, where they were asked.", Suites)
    samples = File("suites-samples.jsonl", "Every prompt of the suites and its answer, a line each.", Sample)
    samples_of = Files("suites-samples-{model}.jsonl", "The same of one model, while they are asked.")
    page = File("report.html", "The page of the run.")
    page_text = File("report.md", "The same as Markdown.")
    page_pictures = File("report-pictures", "Its pictures.")
    export = File("export", "What servers load.")


class ExportFolder(ModelFolder):
    """An export: a model that servers load, with a profile for each context length."""

    where = "<storage>/<run>/export/"

    card = File("README.md", "The model card, with the evidence.")
    scales = File("scales.json", "As the run's, where the recipe serves by what was measured.", Scales)
    picture = File("evaluation.png", "As the run's.")
    serving = File("serving", "One folder per context length.")
    profile = Files("serving/{context_length}", "A serving profile.")
    override = Files("serving/{context_length}/config_override.json", "Rope parameters for that context length.")
    commands = Files("serving/{context_length}/commands.json", "How it is served.", Commands)
    profile_card = Files("serving/{context_length}/README.md", "The same for people.")


class StudyFolder(TrainedFolder):
    """A study; its journal is what it knows, and everything in `export/` is made of it."""

    where = "<storage>/<study>/"

    journal = File("study.journal", "Every trial: an Optuna journal, each line with a seal.")
    journal_end = File("study.journal.end", "How many lines it has, and the last seal.")
    export = File("export", "What follows from the journal.")


class StudyExport(Folder):
    """What follows from the journal of a study."""

    where = "<storage>/<study>/export/"

    trials = File("trials.parquet", "One row per trial.", TrialRow)
    trials_text = File("trials.csv", "The same as text.")
    curves = File("curves.parquet", "Every evaluation of every trial.", CurveRow)
    pareto = File("pareto.json", "The Pareto front and the base.", Pareto)
    ranges = File("ranges.json", "What good trials have in common, by setting.", Ranges)
    best = File("best.yaml", "The recipe to train with: that of the balanced trial.")
    role = Files("best-{role}.yaml", "A recipe for another wish.")
    front = Files("front/{number}.yaml", "A recipe for each trial on the front.")
    page = File("report.html", "The page of the study.")
    pictures = File("pictures", "Its pictures.")


class ComparisonFolder(TrainedFolder):
    """A comparison."""

    where = "<storage>/<comparison>/"

    lanes = File("lanes", "What the jobs have left.")
    lane = Files("lanes/{lane}-{seed}.json", "What one lane under one seed has left.", Lane)
    own_lane = Files("lanes/own-{lane}-{seed}.json", "The same of a lane that the recipe defines.", Lane)
    prompts = File("lanes/prompts", "Retrieval prompts, the same for all lanes.")
    comparison = File("comparison.json", "All figures by lane.", Comparison)
    tables = File("comparison.md", "The same as tables.")
    picture = File("comparison.png", "The same as a picture.")
    page = File("report.html", "The page of the comparison.")


class ShardFolder(Folder):
    """Shards: rows of tokens that any number of runs read."""

    where = "<storage>/shards/<digest>/"

    manifest = File("manifest.json", "What is in the folder, and what every byte must be.", Manifest)
    train = Files("train-{number:05d}.arrow", "Training rows.")
    validation = Files("validation-{number:05d}.arrow", "Held-out documents, each whole.")
    tokenizer = File("tokenizer", "The tokenizer that made the tokens.")


FOLDERS = (
    *(RunFolder, CheckpointsFolder, CheckpointFolder, ModelFolder, ExportFolder),
    *(StudyFolder, StudyExport, ComparisonFolder, ShardFolder),
)
