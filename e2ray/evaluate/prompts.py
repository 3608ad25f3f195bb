"""The prompts of the retrieval grid, made from a seed or read from where they are kept.

Texts, words, numbers and lengths of a prompt follow from (task, tokenizer, context length, seed), the held-out text and
the grid, so they are made once and kept in a file that is named by all of these; models, lanes and runs of the same
grid then get the very same prompts. A kept file that is damaged is made again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from e2ray import files
from e2ray.config.retrieval import RetrievalSettings
from e2ray.data.tokenizer import encoder_of, tokenizer_hash
from e2ray.evaluate.haystack import Haystack
from e2ray.evaluate.tasks import TASKS, Prompt, Source

TEXT_STREAM, KEY_STREAM = 1, 2  # first words of the seeds, so that a text and a key never share random numbers
VERSION = 1  # of the tasks' prompts; where it differs, kept prompts are made anew
SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int64())),
        ("num_answer_tokens", pa.int64()),
        ("depth", pa.float64()),
        ("references", pa.list_(pa.string())),
        ("needle", pa.int64()),
    ]
)


def prompts(
    documents: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    depths: Sequence[float],
    trials: int,
    digits: int,
    seed: int,
    task: str = "passkey",
) -> list[Prompt]:
    """Return `trials` prompts for each depth, those of one depth side by side; one cell for a task without depths.

    A trial has one text for all depths and tasks, and numbers for each. The text is a stretch of the held-out
    documents, beginning anywhere and running on into the next document where one ends; it begins as a document does
    and holds no end-of-text token, so a prompt reads as one document.

    Args:
        documents: Held-out documents, integer tokens of shape [length], as the shards hold them.
        tokenizer: The fast tokenizer of the shards.
        context_length: W, tokens of every prompt, answer included.
        depths: Fractions of the text before what is asked for, each 0 to 1.
        trials: Prompts per depth.
        digits: Digits of a number, at least 1; the first is not 0.
        seed: 0 to 2^32 - 1. The same one gives the same prompt whatever else is asked for.
        task: One of `tasks.TASKS`.

    Raises:
        ContextLengthError: If the text cannot fill W tokens, or W tokens cannot hold what is hidden and the question.
        SettingsError: If the tokenizer cannot write digits, or the text holds nearly all numbers of `digits` digits.
        ValueError: If a depth is out of range.
    """
    return written(
        Haystack(documents, encoder_of(tokenizer)),
        context_length=context_length,
        depths=depths,
        trials=trials,
        digits=digits,
        seed=seed,
        task=task,
    )


def asked_for(haystack: Haystack, task: str, context_length: int, settings: RetrievalSettings) -> list[Prompt]:
    """Return the prompts of a task and context length that settings ask for; raises as `prompts` does."""
    return written(
        haystack,
        context_length=context_length,
        depths=settings.depths,
        trials=settings.trials,
        digits=settings.digits,
        seed=settings.seed,
        task=task,
    )


def written(
    haystack: Haystack, *, context_length: int, depths: Sequence[float], trials: int, digits: int, seed: int, task: str
) -> list[Prompt]:
    """Return the same as `prompts`, from an existing haystack."""
    if not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must lie in [0, 1], got {list(depths)}")
    make, has_depth = TASKS[task]
    stream = [*TASKS].index(task)
    sources = [
        Source.drawn(
            haystack, np.random.default_rng([TEXT_STREAM, seed, context_length, trial]), context_length, digits
        )
        for trial in range(trials)
    ]
    made = []
    for depth in depths if has_depth else (None,):
        for trial, source in enumerate(sources):
            depth_key = 0 if depth is None else round(depth * 1e6)
            key = [KEY_STREAM, seed, context_length, trial, depth_key] + ([stream] if stream else [])
            made.append(make(source, np.random.default_rng(key), depth))
    return made


@dataclass(frozen=True)
class PromptFolder:
    """Where prompts are kept, on a file system that all nodes share.

    Attributes:
        folder: The folder; it need not exist yet.
        text: Name of the held-out documents, e.g. the digest of the shards.
    """

    folder: Path
    text: str

    def prompts(
        self,
        haystack: Haystack,
        tokenizer: PreTrainedTokenizerBase,
        task: str,
        context_length: int,
        settings: RetrievalSettings,
    ) -> list[Prompt]:
        """Return the prompts of a task and context length, kept ones where they are intact.

        Raises:
            ContextLengthError: If no prompt of that length can be made.
            SettingsError: If the tokenizer cannot write numbers, or the folder cannot be written.
        """
        named = {
            "task": task,
            "tokenizer": tokenizer_hash(tokenizer),
            "length": context_length,
            "seed": settings.seed,
            "depths": list(settings.depths),
            "trials": settings.trials,
            "digits": settings.digits,
            "text": self.text,
            "version": VERSION,
        }
        key = files.digest(named)[:16]
        start = f"{task}-{context_length}-{key}-"
        for path in self.folder.glob(f"{start}*.arrow"):
            kept = _kept(path, task, path.stem.removeprefix(start))
            if kept is not None:
                return kept
        made = asked_for(haystack, task, context_length, settings)
        content = _packed(made)
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(self.folder / f"{start}{_digest(content)}.arrow") as aside:
            aside.write_bytes(content)
        return made


def _packed(prompts: Sequence[Prompt]) -> bytes:
    """Return prompts as an Arrow file."""
    columns = [
        [prompt.tokens.tolist() for prompt in prompts],
        [prompt.num_answer_tokens for prompt in prompts],
        [prompt.depth for prompt in prompts],
        [list(prompt.references) for prompt in prompts],
        [prompt.needle for prompt in prompts],
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
    return bytes(sink.getvalue())


def _kept(path: Path, task: str, digest: str) -> list[Prompt] | None:
    """Return the prompts of a kept file, or None if it is damaged, and then remove it."""
    content = path.read_bytes()
    if _digest(content) != digest:
        path.unlink(missing_ok=True)
        return None
    rows = pa.ipc.open_file(pa.BufferReader(content)).read_all().to_pylist()
    return [
        Prompt(
            task,
            np.array(row["tokens"], dtype=np.int64),
            row["num_answer_tokens"],
            row["depth"],
            tuple(row["references"]),
            row["needle"],
        )
        for row in rows
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
