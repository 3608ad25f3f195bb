"""Small recipes in which every section of the schema stands, with values between the extremes, and what they name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.data import ByteLevelBpe
from e2ray.config.suites import SuiteSettings
from e2ray.data.tokenizer import train_byte_level_bpe


def write_world(folder):
    """Write sources of every kind, checkpoints, a tokenizer and tasks: what the recipes name."""
    words = "def return path size open with dict list number text 3141 value else import from class".split()
    texts = [" ".join(words[(7 * n + k * (n % 5 + 1)) % len(words)] for k in range(15 + 25 * n)) for n in range(12)]
    for n, text in enumerate(texts):
        (folder / f"{n:02d}.txt").write_text(text)
    (folder / "bad.md").write_text("")
    for n, text in enumerate(texts[4:8]):
        (folder / f"more-{n}.rst").write_text(text[::-1])
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t, "other": t.upper()}) + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts, "other": [text.upper() for text in texts]}), folder / "rows.parquet")
    from datasets import Dataset, DatasetDict

    held = DatasetDict({"train": Dataset.from_dict({"text": texts[:8], "other": texts[4:]})})
    held["other"] = Dataset.from_dict({"text": texts[8:], "other": texts[:4]})
    held.save_to_disk(str(folder / "dataset"))
    tokenizer = train_byte_level_bpe(texts, ByteLevelBpe(vocab_size=300))
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, rope in (("plain", None), ("scaled", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})):
        made = LlamaConfig(
            vocab_size=300, max_position_embeddings=32, num_key_value_heads=2, rope_parameters=rope, **sizes
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(made).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "best.yaml").write_text(
        yaml.safe_dump(recipe(folder) | {"name": "best", "train": {"steps": 1, "lr": 0.1}})
    )
    write_tasks(folder / "tasks")


def write_tasks(folder):
    """Write two tasks of one's own, one of which says that it runs what the model writes."""
    folder.mkdir()
    rows = [{"text": f"def path {n} " * (n + 1), "answer": n % 2} for n in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in (("own", {}), ("unsafe", {"unsafe_code": True})):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
            "test_split": "test",
            "fewshot_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": [" return", " open"],
            "doc_to_target": "{{answer}}",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | more))


def recipe(folder):
    """A recipe in miniature whose values lie between the extremes."""
    return {
        "name": "walk",
        "storage": str(folder / "runs"),
        "seed": 5,
        "model": {
            "kind": "llama",
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "base_context_length": 32,
            "base_frequency": 500.0,
            "initializer_range": 0.3,
        },
        "data": {
            "corpus": [{"kind": "text", "paths": [str(folder / "*.txt"), str(folder / "bad.md")]}],
            "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 290, "training_bytes": 2000},
            "window": 32,
            "validation_share": 0.6,
            "min_tokens": 50,
            "near_duplicates": 0.9,
            "on_bad": "skip",
            "seed": 2,
            "shard_rows": 8,
            "shuffle_shards": 2,
            "ledger": False,
        },
        "positions": {"preset": "e2llm", "max_scale": 4},
        "train": {
            "steps": 8,
            "batch_sequences": 4,
            "micro_batch_sequences": 2,
            "lr": 1e-3,
            "eps": 1e-6,
            "weight_decay": 0.1,
            "warmup_steps": 2,
            "schedule": "linear",
            "final_lr_share": 0.2,
            "clip_norm": 0.05,
            "checkpoint_every": 2,
            "log_every": 1,
            "progress_s": 10.0,
            "watch_every": 2,
            "watch_documents": 2,
            "stop": {"price_at_base": 5.0},
        },
        "evaluate": {
            "windows": [32, 48],
            "scales": [1, 2],
            "documents": 2,
            "skip_documents": 1,
            "document_tokens": 120,
            "stride": 12,
            "batch_tokens": 128,
        },
        "export": {"context_lengths": [32, 64]},
    }


TRAINING = {"steps": 8, "batch_sequences": 4, "micro_batch_sequences": 2, "eps": 1e-6, "weight_decay": 0.1, "lr": 1e-3}
TRAINING |= {"warmup_steps": 2, "schedule": "linear", "final_lr_share": 0.2, "clip_norm": 0.05, "progress_s": 10.0}
TRAINING |= {"checkpoint_every": 2, "log_every": 1}
SEARCH = {
    "trials": 6,
    "baselines": ["e2llm"],
    "repeats": 2,
    "startup_trials": 1,
    "early_stopping": None,
    "concurrency": 3,
    "trial": {"train.steps": 6, "train.warmup_steps": 1},
}
RETRIEVAL = {"context_lengths": [160], "depths": [0.2, 0.8], "trials": 2, "digits": 3, "greedy": 1, "seed": 3}
LORA = {"targets": ["q_proj"], "rank": 4, "alpha": 8.0, "dropout": 0.1}
COMPARE = {"lanes": ["e2llm", "pi_long"], "untrained": ["linear"], "seeds": [1, 2, 3], "retrieval": RETRIEVAL}
ASHA = {"min_steps": 2, "reduction_factor": 3}
SCALES = {
    "FixedScale": {"kind": "fixed"},
    "UniformIntScale": {"kind": "uniform_int"},
    "UniformScale": {"kind": "uniform"},
    "LogUniformScale": {"kind": "log_uniform"},
    "PowerScale": {"kind": "power", "exponent": -1.5},
    "BetaScale": {"kind": "beta", "a": 2.0, "b": 3.0},
}
CHOICES = [{"scale": 2.0, "weight": 1.0}, {"scale": 4.0, "weight": 2.0}]
JUMPS = {
    "UniformJump": {"kind": "uniform"},
    "BetaJump": {"kind": "beta", "a": 2.0, "b": 3.0},
    "EndsJump": {"kind": "ends", "p": 0.5},
}
PLACEMENTS = {
    "NonePlacement": {"kind": "none"},
    "PrefixPlacement": {"kind": "prefix", "prefix": 4},
    "RandomBreaksPlacement": {"kind": "random_breaks", "num_breaks": 2},
    "SortedRandomPlacement": {"kind": "sorted_random"},
    "HeadMiddleTailPlacement": {"kind": "head_middle_tail", "tokens": 4, "sigma": 0.3},
    "TerminalPlacement": {"kind": "terminal", "tokens": 4, "jump": {"kind": "uniform"}},
    "ChunksPlacement": {"kind": "chunks", "num_chunks": 4},
}
METHODS = {
    "LinearMethod": {"kind": "linear"},
    "NtkMethod": {"kind": "ntk"},
    "YarnMethod": {"kind": "yarn", "fast": 4.0, "slow": 0.5, "temperature": {"kind": "log", "coefficient": 0.2}},
    "RampPowerMethod": {"kind": "ramp_power", "fast": 2.0, "slow": 0.25, "temperature": {"kind": "none"}},
    "FactorsMethod": {"kind": "factors", "factors": [1.0, 2.0, 3.0, 4.0], "max_scale": 8.0},
    "TruncatedMethod": {"kind": "truncated"},
}
TEMPERATURES = {"NoTemperature": {"kind": "none"}, "LogTemperature": {"kind": "log", "coefficient": 0.2}}
OBJECTIVE = {"next_token": 0.5, "distill": 0.25, "distance_weights": True}
SPACE = {
    "FloatRange": ("train.lr", {"kind": "float", "low": 1e-4, "high": 1e-2}),
    "IntRange": ("train.warmup_steps", {"kind": "int", "low": 1, "high": 5}),
    "Choice": ("train.schedule", {"kind": "choice", "options": ["linear", "cosine"]}),
}


def recipes(folder):
    """Return, for each place, the recipes in which it is walked.

    Each is (its section or None for the one that is there, other changes by path, the settings walked or all).
    """
    searched = {"pretrain": TRAINING, "search": SEARCH}
    many = {"search.trials": 12}
    drawn = {"positions": {"scale": {"kind": "uniform", "max_scale": 4.0}, "placement": {"kind": "prefix"}}}
    passkeys = {"kind": "passkey", "text": {"kind": "text", "paths": [str(folder / "*.txt")]}, "documents": 40}
    packed = {"data.pack": "best_fit", "data.pack_waiting": 3, "data.corpus": [passkeys], "data.min_tokens": 1}
    packed |= {"data.window": 64, "data.validation_share": 0, "data.seed": 0, "data.near_duplicates": None}
    packed |= {"data.validation_corpus": [{"kind": "text", "paths": [str(folder / "more-*.rst")]}]}
    constant = {"train.schedule": "constant", "train.final_lr_share": 0.0}
    plain = {"kind": "pretrained", "path": str(folder / "plain"), "base_context_length": 48}
    scaled = plain | {"path": str(folder / "scaled"), "base_scaling": "keep"}
    own = {"tasks": ["own"], "include_path": str(folder / "tasks"), "limit": 7, "num_fewshot": 2}
    own |= {"max_context_length": 60, "context_lengths": [64], "seed": 3}
    found = {
        "": [(None, {}), (None, searched), (None, {"compare": COMPARE})],
        "model:LlamaModel": [(None, {})],
        "model:PretrainedModel": [(plain, {}), (scaled, {})],
        "model.lora:LoraSettings": [(LORA, {"model": plain}), (LORA, {})],
        "data:DataSettings": [(None, {}), (None, packed, {"pack", "pack_waiting", "window"})],
        "data.tokenizer:ByteLevelBpe": [(None, {})],
        "data.tokenizer:PretrainedTokenizer": [({"kind": "pretrained", "path": str(folder / "tokenizer")}, {})],
        "positions:PositionSettings": [(None, {}), (None, {"positions": {"preset": "pi", "max_scale": 4}})],
        "positions.scale:ChoiceScale": [({"kind": "choice", "choices": CHOICES, "native_share": 0.2}, drawn)],
        "positions.scale.choices[]:ScaleWeight": [
            (None, drawn | {"positions.scale": {"kind": "choice", "choices": CHOICES}})
        ],
        "train:TrainSettings": [(None, {}), (None, constant, {"schedule", "final_lr_share"})],
        "pretrain:TrainSettings": [(TRAINING, {})],
        "cluster:ClusterSettings": [({"num_workers": 2, "wait_s": 100.0, "autoscaling": True}, {})],
        "evaluate:EvaluateSettings": [(None, {})],
        "evaluate.retrieval:RetrievalSettings": [(RETRIEVAL | {"tasks": ["passkey", "key_value"]}, {})],
        "evaluate.suites:SuiteSettings": [
            (own, {}, {*SuiteSettings.model_fields} - {"unsafe_code"}),
            (own | {"tasks": ["unsafe"]}, {}, {"unsafe_code"}),
        ],
        "export:ExportSettings": [(None, {})],
        "compare:CompareSettings": [
            (COMPARE, {}),
            (COMPARE | {"lanes": ["best"], "best": str(folder / "best.yaml")}, {}),
        ],
        "compare.retrieval:RetrievalSettings": [(RETRIEVAL, {"compare": COMPARE})],
        "search:SearchSettings": [(SEARCH, searched)],
        "search.weights:Weights": [({"long": 2.0, "short": 3.0, "retrieval": 0.5, "answer_nll": 0.25}, searched)],
        "search.retrieval:RetrievalSettings": [
            (RETRIEVAL, searched | {"search.weights": {"retrieval": 0.5}}),
            (None, searched | {"search.retrieval": {}}),
        ],
        "search.early_stopping:AshaStopping": [({"kind": "asha"} | ASHA, searched | many)],
        "search.early_stopping:HyperbandStopping": [({"kind": "hyperband"} | ASHA, searched | many)],
    }
    for name, section in SCALES.items():
        found[f"positions.scale:{name}"] = [(section | {"max_scale": 4.0, "native_share": 0.2}, drawn)]
    for name, section in PLACEMENTS.items():
        found[f"positions.placement:{name}"] = [(section, {})]
    for name, section in JUMPS.items():
        found[f"positions.placement.jump:{name}"] = [(section, {"positions.placement": {"kind": "random_breaks"}})]
    for name, section in METHODS.items():
        found[f"positions.method:{name}"] = [(section, {})]
    for name, section in TEMPERATURES.items():
        found[f"positions.method.temperature:{name}"] = [(section, {"positions.method": METHODS["YarnMethod"]})]
    for name, (path, section) in SPACE.items():
        found[f"search.space{{}}:{name}"] = [(None, searched | {"search.space": {path: section}})]
    found["trackers[]:MlflowTracker"] = [(None, {"trackers": [{"kind": "mlflow"}]})]
    found["trackers[]:WandbTracker"] = [(None, {"trackers": [{"kind": "wandb"}]})]
    found["train.objective:ObjectiveSettings"] = [(OBJECTIVE, {})]
    found["pretrain.objective:ObjectiveSettings"] = [(None, {"pretrain": TRAINING})]  # which has to stay as it is
    found["train.stop:StopSettings"] = [({"price_at_base": 5.0}, {})]
    found["pretrain.stop:StopSettings"] = []  # refused whatever it says
    return found | source_recipes(folder) | own_lanes(found)


def own_lanes(found):
    """Return the recipes in which the draws of a comparison's own lane are walked, and its objective."""
    lane = {"positions": {"preset": "e2llm", "max_scale": 4}, "objective": OBJECTIVE, "seeds": 2}
    compared = {"compare": COMPARE | {"own": {"mine": lane}}}
    made = {
        "compare.own{}:OwnLane": [(None, compared)],
        "compare.own{}.objective:ObjectiveSettings": [(None, compared)],
    }
    for name, cases in found.items():
        if name.startswith("positions"):
            made[f"compare.own{{}}.{name}"] = [
                (case[0], compared | {f"compare.own{{}}.{path}": value for path, value in case[1].items()})
                for case in cases
            ]
    return made


def source_recipes(folder):
    """Return the recipes in which each kind of source is walked, in the corpus and among what is held out."""
    found, more = {}, {"kind": "text", "paths": [str(folder / "more-*.rst")]}
    texts = {"kind": "text", "paths": [str(folder / "*.txt")]}
    made = {
        "TextSource": texts,
        "JsonlSource": {"kind": "jsonl", "paths": [str(folder / "rows.jsonl")]},
        "ParquetSource": {"kind": "parquet", "paths": [str(folder / "rows.parquet")]},
        "HuggingFaceSource": {"kind": "hugging_face", "path": str(folder / "dataset")},
        "PythonStdlibSource": {"kind": "python_stdlib"},
        "PasskeySource": {"kind": "passkey", "text": texts, "documents": 30, "digits": 4, "seed": 1}
        | {"min_characters": 20, "max_characters": 600},
    }
    rest = {"data.min_tokens": 20, "data.near_duplicates": None, "data.on_bad": "error"}
    for key in ("corpus", "validation_corpus"):
        for name, section in made.items():
            bounds = (
                {"min_tokens": 150, "max_tokens": 300}
                if name == "PasskeySource"
                else {"min_tokens": 100, "max_tokens": 600}
            )
            if key == "corpus":
                changes = rest | {"data.corpus": [more, more | {"weight": 1.0}]}
                found[f"data.corpus[]:{name}"] = [(section | bounds | {"weight": 2.0}, changes)]
            else:
                changes = rest | {"data.validation_share": 0, "data.seed": 0, "data.corpus": [more]}
                changes |= {"data.validation_corpus": [more]}
                found[f"data.validation_corpus[]:{name}"] = [(section | bounds, changes)]
        for name in ("TextSource", "PythonStdlibSource"):
            changes = changes | {f"data.{key}.0": made["PasskeySource"] | ({"weight": 2.0} if key == "corpus" else {})}
            found[f"data.{key}[].text:{name}"] = [(made[name], changes)]
    return found
