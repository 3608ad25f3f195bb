"""Does a flipped bit in any file that a run leaves go unnoticed?

A small run is made from real text: prepared, pretrained, trained with a ledger, evaluated, asked and exported. Then, in
a copy, one bit at a time is flipped in every kind of file it left, 300 places of each kind from a fixed seed, and
whoever reads that kind reads it. A flip is noticed if the reader raises in one line, harmless if all it gives equals
what it gives of the undamaged file in every bit, and missed otherwise.

    python jobs/bench_trust.py --check
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from benchmarking import finish, goal, parser

FLIPS, SEED = 300, 0
TRAINING = {"steps": 8, "batch_sequences": 8, "log_every": 1, "checkpoint_every": 4}
RECIPE = {
    "name": "trust",
    "model": {
        "kind": "llama",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "base_context_length": 32,
    },
    "data": {
        "corpus": [{"kind": "text", "paths": [str(ROOT / "e2ray/**/*.py")]}],
        "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 384},
        "window": 32,
        "validation_share": 0.2,
        "ledger": True,
        "on_bad": "skip",
    },
    "positions": {"preset": "e2llm", "max_scale": 4},
    "pretrain": TRAINING | {"lr": 1e-2},
    "train": TRAINING | {"lr": 1e-3},
    "evaluate": {"documents": 2, "document_tokens": 200, "retrieval": {"trials": 1, "depths": [0.5], "digits": 2}},
}
Reader = Callable[[Path], object]


def made_run(storage: Path) -> Any:
    """Return a finished run in a storage folder."""
    from e2ray.config.load import validate
    from e2ray.stages import pipeline
    from e2ray.stages.run import resolve

    config = validate(RECIPE | {"storage": str(storage)}, source="bench_trust")
    pipeline.execute(config)
    return resolve(config)


def plain(value: Any) -> str:
    """Return a value as text that is equal only for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def model_of(folder: Path) -> str:
    """Return what a model folder is read as: a digest of weights, config and tokenizer."""
    import hashlib

    import torch

    from e2ray.config.model import PretrainedModel
    from e2ray.core.model import build_model
    from e2ray.data.tokenizer import load_tokenizer, tokenizer_hash

    tokenizer = load_tokenizer(folder)
    model = build_model(PretrainedModel(path=str(folder)), dtype=torch.float32, vocab_size=len(tokenizer))
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode() + weight.detach().numpy().tobytes())
    digest.update(plain(model.config.to_dict()).encode())
    return digest.hexdigest() + tokenizer_hash(tokenizer) + plain([tokenizer.chat_template, tokenizer.model_max_length])


def checkpoint_of(folder: Path) -> str:
    """Return what a checkpoint is read as."""
    import hashlib

    from e2ray.core.probe import Probe
    from e2ray.train import checkpoint

    state = checkpoint.read_state(folder)
    digest = hashlib.sha256()
    for each in checkpoint.read_parameters(folder, state):
        for tensor in (each.weight, each.exp_avg, each.exp_avg_sq):
            digest.update(each.name.encode() + tensor.numpy().tobytes())
    digest.update(Probe.read(folder / checkpoint.PROBE).logits.numpy().tobytes())
    return digest.hexdigest() + plain(state)


def shards_of(folder: Path) -> str:
    """Return what a folder of shards is read as: every row and held-out document, and the tokenizer."""
    import hashlib

    from e2ray.data.shards import ShardSet
    from e2ray.data.tokenizer import load_tokenizer, tokenizer_hash

    opened = ShardSet.open(folder)
    digest = hashlib.sha256(opened.tokens(range(opened.rows)).tobytes())
    for name, tokens in opened.validation_documents():
        digest.update(str(name).encode() + tokens.tobytes())
    tokenizer = load_tokenizer(folder / "tokenizer")
    return digest.hexdigest() + tokenizer_hash(tokenizer) + plain([opened.manifest, tokenizer.special_tokens_map])


def run_of(folder: Path) -> str:
    """Return what a run's folder is read as by reports: figures, settings, status, metrics, environment."""
    from e2ray.report.run_files import read_run
    from e2ray.report.run_folder import open_run

    record = read_run(open_run(folder))
    told = {name: value for name, value in vars(record).items() if name not in ("run", "sums")}
    sums = [[*vars(each).values()] for each in record.sums]
    return plain([told, [[str(part) for part in each] for each in sums], record.run.settings, record.run.status])


def served_of(folder: Path) -> str:
    """Return what an export is read as."""
    from e2ray.serve.generate import Generator

    return plain(Generator(folder).scales) + model_of(folder)


def made_journal(folder: Path) -> Path:
    """Return the journal of a small study of Optuna."""
    import optuna
    from optuna.storages import JournalStorage

    from e2ray.search.journal import JOURNAL, Journal

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir()
    path = folder / JOURNAL
    study = optuna.create_study(storage=JournalStorage(Journal(path)), sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("scale", 1, 16) ** 0.5, n_trials=12)
    return path


def made_skipped(folder: Path) -> Path:
    """Return a skipped.jsonl of three steps."""
    from e2ray.records.run import SkippedRow
    from e2ray.train.record import SKIPPED, note_skipped

    folder.mkdir()
    for step in (3, 4, 9):
        rows = [SkippedRow(row=17 * step, loss=3.25, scale=2.5, places=(4,), shifts=(90 + step,))]
        note_skipped(folder, step, rows)
    return folder / SKIPPED


def lines_of(path: Path) -> str:
    """Return what a file of sealed lines is read as."""
    from e2ray.records.sealed import read

    found = read(path, advice=lambda kept: "put it back from a copy", must_be_sealed=True)
    return plain([found.values, found.torn])


def other_kinds(run: Any, scratch: Path) -> dict[str, tuple[Path, Path, Reader]]:
    """Return what `kinds` does for a study's journal, skipped rows and the base's checkpoint, status and metrics."""
    from e2ray.search.journal import end_path, verified
    from e2ray.train import steps
    from e2ray.train.record import read_metrics, read_status

    journal, skipped = made_journal(scratch / "study"), made_skipped(scratch / "skips")
    checkpoint = steps.latest(run.base / "checkpoints")

    def study(at: Path) -> str:
        return plain(verified(at / journal.name).values)

    found: dict[str, tuple[Path, Path, Reader]] = {
        "study.journal": (journal, journal.parent, study),
        "study.journal.end": (end_path(journal), journal.parent, study),
        "skipped.jsonl": (skipped, skipped.parent, lambda at: lines_of(at / skipped.name)),
    }
    for path in sorted(checkpoint.iterdir()) if checkpoint else []:
        found[f"base checkpoint {path.name}"] = (path, checkpoint, checkpoint_of)
    for name, read in (("status.json", read_status), ("metrics.jsonl", read_metrics)):
        if (run.base / name).exists():
            found[f"base {name}"] = (run.base / name, run.base, lambda at, read=read: plain(read(at)))
    return found


def kinds(run: Any, shards: Path) -> dict[str, tuple[Path, Path, Reader]]:
    """Return for each kind of file: one of them, the folder that is copied, and who reads it."""
    import pyarrow.parquet as pq

    from e2ray.config.load import read_resolved
    from e2ray.records.table import read_table
    from e2ray.serve.export import picture_of
    from e2ray.train import steps
    from e2ray.train.ledger import read_ledger

    folder, base = run.folder, run.base
    newest = steps.latest(folder / "checkpoints")
    assert newest is not None
    schema = pq.read_schema(folder / "evaluation.parquet").remove_metadata()
    found: dict[str, tuple[Path, Path, Reader]] = {
        "config.yaml": (
            folder / "config.yaml",
            folder,
            lambda at: plain(read_resolved(at / "config.yaml").model_dump()),
        ),
        "evaluation.parquet": (
            folder / "evaluation.parquet",
            folder,
            lambda at: plain(read_table(at / "evaluation.parquet", schema).to_pylist()),
        ),
        "ledger": (min((folder / "ledger").iterdir()), folder, lambda at: plain(read_ledger(at).to_pylist())),
        "evaluation.png": (
            folder / "evaluation.png",
            folder,
            lambda at: picture_of(at / "evaluation.png").hex(),
        ),
        "checkpoints/latest": (
            folder / "checkpoints" / "latest",
            folder / "checkpoints",
            lambda at: str((steps.latest(at) or at).name),
        ),
    }
    reported = ("status.json", "environment.json", "metrics.jsonl", "evaluation.json", "scales.json", "effective.json")
    for name in (*reported, "retrieval.json", "evaluation-documents.parquet", "evaluation-lengths.parquet"):
        found[name] = (folder / name, folder, run_of)
    for name in ("state.json", "manifest.json", "probe.safetensors", "part-00000-000.safetensors"):
        found[f"checkpoint {name}"] = (newest / name, newest, checkpoint_of)
    for title, place in (("model", folder / "model"), ("base", base / "model")):
        for path in sorted(place.rglob("*")):
            if path.is_file():
                found[f"{title} {path.relative_to(place)}"] = (path, place, model_of)
    export = folder / "export"
    for path in sorted(export.rglob("*")):
        if path.is_file():
            found[f"export {path.relative_to(export)}"] = (
                path,
                export,
                served_of,
            )
    for path in sorted(shards.rglob("*")):
        if path.is_file():
            found[f"shards {path.relative_to(shards)}"] = (path, shards, shards_of)
    return found


def judged(path: Path, place: Path, read: Reader, scratch: Path, seed: str) -> dict[str, int]:
    """Return how many flips of a file were noticed, harmless and missed."""
    from e2ray.config.base import SettingsError

    copy = scratch / place.name
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("ray", "tensorboard"))
    target = copy / path.relative_to(place)
    content, wanted = target.read_bytes(), read(copy)
    counts = {"bytes": len(content), "noticed": 0, "harmless": 0, "missed": 0}
    generator = random.Random(f"{SEED} {seed}")
    for _ in range(FLIPS):
        place_of_bit = generator.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[place_of_bit // 8] ^= 1 << place_of_bit % 8
        target.write_bytes(damaged)
        try:
            outcome = "harmless" if read(copy) == wanted else "missed"
        except (SettingsError, FileNotFoundError) as error:
            outcome = "noticed" if "\n" not in str(error) else "missed"
        counts[outcome] += 1
        if outcome == "missed":
            print(f"missed: bit {place_of_bit} of {seed}", flush=True)
    shutil.rmtree(copy)
    return counts


def main() -> int:
    """Measure and write the result."""
    import torch

    from e2ray.core.file_names import is_for_people

    parsed = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary) / "scratch"
        scratch.mkdir()
        run = made_run(Path(temporary) / "runs")
        shards = next((Path(temporary) / "runs" / "shards").glob("[!.]*"))
        runs = {}
        made = Path(temporary) / "made"
        made.mkdir()
        for kind, (path, place, read) in (kinds(run, shards) | other_kinds(run, made)).items():
            runs[kind] = judged(path, place, read, scratch, kind) | {"for_people": is_for_people(path.name)}
            print(f"{kind}: {runs[kind]}", flush=True)
    read_by_programs = [each for each in runs.values() if not each["for_people"]]
    total = sum(each["noticed"] + each["harmless"] + each["missed"] for each in read_by_programs)
    missed = sum(each["missed"] for each in read_by_programs)
    goals = [goal("share of flipped bits that are noticed or change nothing", (total - missed) / total, at_least=1.0)]
    goals.append(goal("kinds of files that programs read", len(read_by_programs), at_least=30))
    config = {"recipe": RECIPE | {"data": RECIPE["data"] | {"corpus": "the package's own sources"}}, "flips": FLIPS}
    return finish("trust", config=config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
