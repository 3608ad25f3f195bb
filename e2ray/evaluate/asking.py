"""The work of a worker of the suites stage: load one model, run the tasks with it, write its samples to a file."""

import json
from pathlib import Path

from e2ray import files
from e2ray.config.suites import SuiteSettings
from e2ray.data.pace import show
from e2ray.data.shards import ShardSet
from e2ray.evaluate.shares import Reading
from e2ray.evaluate.suites import Found, checked, run
from e2ray.optional import library
from e2ray.records.scales import Scales


def ask_suites(
    reading: Reading,
    settings: SuiteSettings,
    longest: int,
    batch_tokens: int,
    scales: Scales | None,
    samples: Path,
) -> Found:
    """Return one model's scores and what is missing; its samples are in the file.

    Args:
        reading: The model.
        settings: The tasks.
        longest: The longest context length, in tokens, where the settings name none.
        batch_tokens: Tokens of one forward, at least one request.
        scales: Those of scales.json, or None to read at W / L.
        samples: The file that the samples are written to, a line of JSON each.
    """
    harness = library("e2ray.evaluate.harness")
    longest = settings.max_context_length or longest
    lengths = list(settings.written_lengths(longest)) or [4096]
    selection = checked(settings, {"tokenizer": str(reading.tokenizer_folder), "max_seq_lengths": lengths})
    asked = harness.ScaledLM(
        reading.load(ShardSet.open(reading.shards), scales=scales),
        max_context_length=longest,
        too_long=settings.too_long,
        batch_tokens=batch_tokens,
        seed=settings.seed,
    )
    out = Found()
    with files.atomic_path(samples) as aside, aside.open("w", encoding="utf-8") as file:
        for part in run(asked, settings, selection, progress=lambda line: show(f"{reading.name}: {line}")):
            out.scores += [score.changed(model=reading.name) for score in part.scores]
            out.missing += [each.changed(model=reading.name) for each in part.missing]
            for sample in part.samples:
                line = sample.changed(model=reading.name).plain()
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    return out
