"""Do two commits behave the same: every figure of trainings, evaluations, a study, a comparison and exports?

    python jobs/bench_same.py c3f36a9 6c30be9 --explained jobs/explained.yaml

Each commit is checked out aside and runs the same small recipes with the same libraries and one seed, at the same
place, one after the other: two trainings (full weights with distillation; LoRA on packed rows), another evaluation and
export, an answer to a prompt, a study and a comparison. Then every file that one of them left is compared key by key,
tensor by tensor; what tells of time, memory, commit and form of a file is left out (`NOT_COMPARED`), and of pages and
pictures it counts that they are there. A difference counts unless the file of explanations has a reason for it; both
kinds are listed.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import yaml
from benchmarking import finish, goal, parser
from safetensors import safe_open

NOT_COMPARED = re.compile(
    r"^(\[\d+\]\.)?digest$|(^|[._])(schema_version|commit|seal|sealed|versions|hardware|host(name)?|pid|worker_id|seconds|tokens_per_second|time|wall"
    r"|datetime_\w+|\w+_at|\w+_s|\w+_seconds|\w*_?(mib|gib|memory\w*))$"
)
PRESENT_ONLY = (".png", ".html", "report.md", "comparison.md", ".lock", ".end")  # made of what is compared
LEFT_OUT = ("ray", "tensorboard")  # Ray's own notes; events of the same lines as metrics.jsonl
HEX = re.compile(r"[0-9a-f]{8,64}")
TEXTS = (
    "email",
    "json",
    "asyncio",
    "unittest",
    "logging",
    "concurrent/futures",
    "html",
    "http",
    "importlib",
    "xml/dom",
)
SHOWN = 160  # characters of a value
PROMPT = "def read(self, path):\n    with open(path) as file:\n        return"
LOG_TAIL = 4000


def recipes(work: Path) -> dict[str, dict[str, Any]]:
    """Return the recipes that both commits run, by name."""
    library = sysconfig.get_paths()["stdlib"]
    training = {"batch_sequences": 8, "micro_batch_sequences": 2, "log_every": 1, "checkpoint_every": 20}
    model = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    lengths = [64, 128, 256, 512]
    base = {
        "storage": str(work / "storage"),
        "seed": 7,
        "model": {"kind": "llama", "base_context_length": 64, **model},
        "data": {
            "corpus": [
                {"kind": "text", "paths": [f"{library}/{name}/*.py" for name in TEXTS], "weight": 3},
                {"kind": "passkey", "documents": 400, "max_characters": 60, "weight": 1},
            ],
            "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 512},
            "window": 64,
            "validation_share": 0.1,
            "on_bad": "skip",
        },
        "pretrain": training | {"steps": 60, "lr": 5e-3, "warmup_steps": 6},
        "train": training | {"steps": 40, "lr": 1e-3, "warmup_steps": 4},
        "positions": {"preset": "recommended", "max_scale": 8},
        "cluster": {"num_workers": 2},
        "evaluate": {"windows": lengths, "documents": 4, "document_tokens": 600},
    }
    asked = {"tasks": ["passkey", "multi_key"], "depths": [0.2, 0.8], "trials": 2, "greedy": 1}
    distilled = {"objective": {"distill": 0.5}, "watch_every": 10, "watch_documents": 2}
    space = {
        "train.lr": {"kind": "float", "low": 3e-4, "high": 3e-3, "log": True},
        "positions.method.kind": {"kind": "choice", "options": ["linear", "yarn"]},
        "train.objective.distill": {"kind": "float", "low": 0.0, "high": 1.0},
    }
    return {
        "full": base
        | {"name": "full", "train": base["train"] | distilled, "evaluate": base["evaluate"] | {"retrieval": asked}},
        "lora": base
        | {
            "name": "lora",
            "model": base["model"] | {"lora": {"rank": 4}},
            "data": base["data"] | {"pack": "best_fit"},
            "positions": {"preset": "e2llm", "max_scale": 8},
        },
        "study": base
        | {
            "name": "study",
            "positions": {"preset": "e2llm", "max_scale": 8},
            "search": {
                "trials": 9,
                "baselines": ["e2llm", "pose", "native"],
                "repeats": 2,
                "startup_trials": 3,
                "concurrency": 1,
                "space": space,
                "trial": {"train.steps": 12, "train.warmup_steps": 2, "cluster.num_workers": 1},
                "early_stopping": {"kind": "asha", "min_steps": 4},
            },
        },
        "lanes": base
        | {
            "name": "lanes",
            "train": base["train"] | {"steps": 12},
            "compare": {
                "lanes": ["e2llm", "pi_long"],
                "untrained": ["yarn"],
                "own": {
                    "ours": {"positions": {"preset": "recommended", "max_scale": 8}, "objective": {"distill": 0.5}}
                },
                "seeds": [1],
                "retrieval": {"context_lengths": [64, 256], "depths": [0.5], "trials": 2},
            },
        },
    }


def commands(work: Path) -> list[tuple[str, list[str]]]:
    """Return (name, arguments of Python) of what is run, in order, from the root of a commit's tree."""

    def job(script: str, recipe: str, *more: str) -> list[str]:
        return [f"jobs/{script}.py", "--config", str(work / f"{recipe}.yaml"), *more]

    generate = ["-m", "e2ray.cli", "generate", str(work / "storage" / "full"), "--prompt", PROMPT]
    return [
        ("train full", job("train", "full")),
        ("train lora", job("train", "lora")),
        ("evaluate", job("evaluate", "lora", "--set", "evaluate.windows=[64,256]", "--set", "evaluate.stride=32")),
        ("export", job("export", "full", "--set", "export.context_lengths=[64,512]", "--set", "export.scale=paper")),
        ("tune", job("tune", "study")),
        ("compare", job("compare", "lanes")),
        ("generate", [*generate, "--max-new-tokens", "24"]),
        (
            "generate sampled",
            [*generate, "--max-new-tokens", "24", "--temperature", "1", "--top-p", "0.9", "--seed", "3"],
        ),
    ]


def run_side(tree: Path, work: Path, *, commit: str) -> None:
    """Run everything in one commit's tree; what it leaves is below `work/storage`, its answers to prompts among it."""
    storage = work / "storage"
    for name, recipe in recipes(work).items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "E2RAY_"))}
    quiet = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment = kept | quiet | {"PYTHONPATH": str(tree)}
    where = subprocess.run(
        [sys.executable, "-c", "import e2ray.files; print(e2ray.files.__file__)"],
        **{"cwd": tree, "env": environment, "capture_output": True, "text": True, "check": True},
    ).stdout
    if not where.startswith(str(tree)):
        raise SystemExit(f"{commit}: its code is not what is imported, but {where.strip()}")
    for name, arguments in commands(work):
        print(f"{commit}: {name}", flush=True)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"{commit}: {name} ended with {done.returncode}\n{(done.stdout + done.stderr)[-LOG_TAIL:]}"
            )
        if arguments[0] == "-m":
            (storage / f"{name}.answer.json").write_text(json.dumps({"answer": done.stdout}), encoding="utf-8")
    made = json.loads((storage / "full" / "environment.json").read_text(encoding="utf-8"))["commit"]
    if not (made or "").startswith(commit[:7]):
        raise SystemExit(f"{commit}: the run says that its code was {made}")


def side(commit: str, *, folder: Path, work: Path) -> Path:
    """Return the folder of what a commit left; one that stands in `folder` is not made again."""
    full = subprocess.run(
        ["git", "rev-parse", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    asked = json.dumps([recipes(work), commands(work)], sort_keys=True)
    left = folder / f"{full[:12]}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    if left.is_dir():
        return left
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tree = work / "tree"
    subprocess.run(["git", "worktree", "add", "--quiet", "--force", "--detach", str(tree), full], cwd=ROOT, check=True)
    try:
        run_side(tree, work, commit=full)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "storage", left)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=False)
        shutil.rmtree(work, ignore_errors=True)
    return left


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every file below a folder by its name, digests in names left out, each as a flat table of its values."""
    named: dict[str, list[Path]] = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part in LEFT_OUT for part in inside.parts):
            named.setdefault(HEX.sub("#", inside.as_posix()), []).append(path)
    found = {}
    for name, paths in sorted(named.items()):
        in_turn = sorted(paths, key=lambda path: path.stat().st_mtime_ns)  # both sides do the same things in turn
        for number, path in enumerate(in_turn):
            leave_out = None if path.suffix in (".yaml", ".md") else NOT_COMPARED  # settings are all compared
            found[f"{name} ({number + 1})" if number else name] = dict(flat(values(path), leave_out=leave_out))
    return found


def values(path: Path) -> Any:
    """Return what a file holds, as plain data: parsed where it is known how, a digest of its bytes elsewhere."""
    if path.name.endswith(PRESENT_ONLY):
        return "present"
    match path.suffix:
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".md":
            return dict(Counter(path.read_text(encoding="utf-8").splitlines()))  # a new line moves no other
        case ".jsonl" | ".journal":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case ".yaml":
            return yaml.safe_load(path.read_text(encoding="utf-8"))
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case ".parquet":
            return pq.read_table(path).to_pylist()
        case ".arrow":
            with ipc.open_file(path) as file:
                return {"schema": str(file.schema.remove_metadata()), "rows": sha256(str(file.read_all().to_pydict()))}
        case ".safetensors":
            with safe_open(path, framework="np") as file:
                return {key: _tensor(file, key) for key in file.keys()}  # it is no mapping
        case _:
            return sha256(path.read_bytes())


def _tensor(file: Any, key: str) -> dict[str, Any]:
    part = file.get_slice(key)
    return {"dtype": part.get_dtype(), "shape": part.get_shape(), "sha256": sha256(file.get_tensor(key).tobytes())}


def sha256(content: bytes | str) -> str:
    """Return a digest, marked as one of contents: unlike those in files, it is compared."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def flat(value: Any, path: str = "", *, leave_out: re.Pattern[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield (key path, value) of all leaves that are compared; a text that is JSON, as in tables, is gone into."""
    if isinstance(value, str) and value[:1] in "{[" and value[-1:] in "]}":
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if not (leave_out and leave_out.search(inner)):
                yield from flat(part, inner, leave_out=leave_out)
        if not value:
            yield path, "{}"
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from flat(part, f"{path}[{index}]", leave_out=leave_out)
        if not value:
            yield path, "[]"
    else:
        yield path, value


@dataclass(frozen=True)
class Difference:
    """One value that differs; `old` or `new` is None where the key is not there."""

    file: str
    key: str
    old: str | None
    new: str | None


def differences(old: Path, new: Path) -> tuple[list[Difference], int]:
    """Return what differs between the folders of two commits, and the number of values compared."""
    sides = contents(old), contents(new)
    found, compared = [], 0
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if name not in sides[0] or name not in sides[1]:
            told = ["present" if name in side else None for side in sides]
            found.append(Difference(name, "", *told))
            continue
        before, after = sides[0][name], sides[1][name]
        for key in dict.fromkeys([*before, *after]):
            compared += 1
            if not (key in before and key in after and same(before[key], after[key])):
                shown = [str(side[key])[:SHOWN] if key in side else None for side in (before, after)]
                found.append(Difference(name, key, *shown))
    return found, compared


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same to the last bit, NaN and NaN included."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


@dataclass(frozen=True)
class Explanation:
    """Why values differ: a reason, and whole names of files and keys that it covers, as regular expressions."""

    file: str
    key: str
    reason: str

    def covers(self, difference: Difference) -> bool:
        """Whether the reason is one for this difference."""
        return bool(re.fullmatch(self.file, difference.file) and re.fullmatch(self.key, difference.key))


def sorted_out(
    found: list[Difference], explanations: list[Explanation]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the differences without a reason, and each explanation with what it covers; rows of tables as one."""
    groups: dict[Explanation | None, dict[tuple[str, str], list[Difference]]] = {}
    for each in found:
        reason = next((explanation for explanation in explanations if explanation.covers(each)), None)
        group = (re.sub(r"\d+", "*", each.file), re.sub(r"\d+", "*", each.key))
        groups.setdefault(reason, {}).setdefault(group, []).append(each)

    def listed(reason: Explanation | None) -> list[dict[str, Any]]:
        return [
            {"file": file, "key": key, "values": len(each), "first": asdict(each[0])}
            for (file, key), each in groups.get(reason, {}).items()
        ]

    explained = [asdict(each) | {"differences": listed(each)} for each in explanations if each in groups]
    return listed(None), explained


def _without_library(told: dict[str, Any]) -> dict[str, Any]:
    """Return recipes that say nothing of where the interpreter lies."""
    without: dict[str, Any] = json.loads(json.dumps(told).replace(sysconfig.get_paths()["stdlib"], "<stdlib>"))
    return without


def options() -> argparse.Namespace:
    """Return what the command line says."""
    made = parser(__doc__)
    made.add_argument("old", help="commit that sets the behaviour")
    made.add_argument("new", help="commit that shall behave the same")
    made.add_argument("--explained", type=Path, help="YAML: a list of {file, key, reason}")
    made.add_argument("--keep", type=Path, help="folder in which what commits leave is kept and found again")
    return made.parse_args()


def main() -> int:
    """Run both, compare, and write the result."""
    parsed = options()
    told = yaml.safe_load(parsed.explained.read_text(encoding="utf-8")) if parsed.explained else []
    explanations = [Explanation(**each) for each in told]
    with tempfile.TemporaryDirectory(prefix="same-") as temporary:
        folder = (parsed.keep or Path(temporary)).resolve()
        work = folder / "work"
        old, new = (side(commit, folder=folder, work=work) for commit in (parsed.old, parsed.new))
        found, compared = differences(old, new)
        losses = {
            name: [json.loads(line)["loss"] for line in (new / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("full", "lora")
        }
    unexplained, explained = sorted_out(found, explanations)
    for each in unexplained:
        first = each["first"]
        print(f"{each['file']}: {each['key']} ({each['values']} values): {first['old']} -> {first['new']}")
    for each in explained:
        print(f"explained, {sum(group['values'] for group in each['differences'])} values: {each['reason']}")
    goals = [
        goal("differences without an explanation", sum(each["values"] for each in unexplained), at_most=0),
        goal("steps of training whose losses are equal", min(map(len, losses.values())), at_least=40),
        goal("values compared", compared, at_least=10_000),
    ]
    runs = {
        "old": old.name[:12],
        "new": new.name[:12],
        "unexplained": unexplained,
        "explained": explained,
        "losses": losses,
    }
    config = {
        "recipes": _without_library(recipes(Path("work"))),
        "commands": commands(Path("work")),
        "not_compared": NOT_COMPARED.pattern,
    }
    return finish("house-same", config=config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
