"""The making of one folder of shards: the tokenizer, documents that are taken or left out, rows, the manifest."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from e2ray.config.base import SettingsError
from e2ray.config.data import DataSettings, PasskeySource, PretrainedTokenizer, Source
from e2ray.core.model_folder import seal
from e2ray.data import tokenizer as tokenizers
from e2ray.data.corpus import Document, Item, read_item
from e2ray.data.duplicates import NearDuplicates
from e2ray.data.identity import TokenizerSource, is_held_out, refuse_short_rows
from e2ray.data.order import shares
from e2ray.data.pace import Pace
from e2ray.data.packing import Packer
from e2ray.data.parts import Keeper, Parts
from e2ray.data.rows import PackedRows, TrainRows, ValidationRows
from e2ray.data.shards import Tokens
from e2ray.data.stream import tokenise
from e2ray.records.folders import ShardFolder
from e2ray.records.manifest import CorpusRows, DocumentLengths, Manifest

LISTED_SKIPS = 1000
PROGRESS_S = 2.0
TRAINING_PLACES = 256  # of the corpus from which text for a byte-level BPE is taken


class Build:
    """The state of one `prepare`: its counts and its writers."""

    def __init__(
        self,
        settings: DataSettings,
        folder: Path,
        source: TokenizerSource,
        pace: Pace,
        parts: Parts,
    ) -> None:
        self.parts, self.sources = parts, 0
        self.duplicates = NearDuplicates(settings.near_duplicates) if settings.near_duplicates else None
        self.num_repeated = 0
        self.settings, self.folder, self.source = settings, folder, source
        self.pace, self.progress = pace, pace.tell
        self.validation = ValidationRows(folder, shard_rows=settings.shard_rows)
        self.lengths: dict[str, list[int]] = {"train": [], "validation": []}
        self.skipped: list[str] = []
        self.num_skipped = 0
        self.num_short = 0
        self.num_long = 0
        self.num_documents = 0
        self.num_tokens = 0
        self.dropped = 0
        self.corpora: list[CorpusRows] = []
        self.started = 0.0
        self.tokenizer: PreTrainedTokenizerBase
        self.train: TrainRows | PackedRows

    def make_tokenizer(self, items: list[Item]) -> None:
        """Load or train the tokenizer and save it among the shards, where every node reads it."""
        if isinstance(self.source, PretrainedTokenizer):
            made = tokenizers.load_shard_tokenizer(self.source.path, self.source.revision)
        else:
            self.progress(f"prepare: training a byte-level BPE of {self.source.vocab_size} tokens")
            made = tokenizers.train_byte_level_bpe(self._training_texts(items, self.source.training_bytes), self.source)
            if len(made) < self.source.vocab_size:
                self.progress(
                    f"prepare: the text makes {len(made)} tokens, fewer than data.tokenizer.vocab_size "
                    f"({self.source.vocab_size})"
                )
        folder = ShardFolder(self.folder).tokenizer
        tokenizers.save(made, folder)
        seal(folder, None)
        self.tokenizer = tokenizers.load_shard_tokenizer(folder)
        if tokenizers.tokenizer_hash(self.tokenizer) != tokenizers.tokenizer_hash(made):
            raise SettingsError(
                f"tokenizer {getattr(self.source, 'path', '')}: is another one once saved and loaded; "
                f"save it as tokenizer.json with this version of transformers"
            )
        refuse_short_rows(self.settings.window, self.tokenizer)
        self.train = self._train_rows()

    def _train_rows(self) -> TrainRows | PackedRows:
        settings = self.settings
        if settings.pack == "concat":
            return TrainRows(self.folder, settings.window, shard_rows=settings.shard_rows)
        packer = Packer(settings.window, pack=settings.pack, waiting=settings.pack_waiting)
        padding = self.tokenizer.eos_token_id
        return PackedRows(self.folder, settings.window, shard_rows=settings.shard_rows, packer=packer, padding=padding)

    def _training_texts(self, items: list[Item], budget: int) -> Iterator[str]:
        """Yield at most `budget` bytes of training documents, taken from places spread evenly over the corpus."""
        chosen = [items[part * len(items) // TRAINING_PLACES] for part in range(TRAINING_PLACES)] if items else []
        chosen = list(dict.fromkeys(chosen))
        for number, item in enumerate(chosen):
            quota = budget // (len(chosen) - number)
            for document in read_item(item):
                if quota <= 0:
                    break
                if isinstance(document, Document) and not self._held_out(document.name):
                    text = document.text.encode()[:quota].decode(errors="ignore")
                    quota -= len(text.encode()) or quota
                    budget -= len(text.encode())
                    yield text

    def _held_out(self, name: str) -> bool:
        return is_held_out(name, seed=self.settings.seed, share=self.settings.validation_share)

    def add(self, items: list[Item], source: Source, *, held_out: bool) -> None:
        """Tokenise a source's `items` and write their documents; all of them to validation if `held_out`."""
        before, num_rows, reported = self.num_documents, 0, time.monotonic()
        behind = self.pace.done
        left_out = self._left_out()
        chosen = not isinstance(source, PasskeySource)
        self.started = self.started or reported
        for table in self._tokenised(items):
            num_rows += table.num_rows
            for name, row, reason in _documents(table):
                if reason is not None:
                    self._skip(reason)
                else:
                    self._add_document(name, row, source, held_out=held_out or (chosen and self._held_out(name)))
            if table.num_rows:
                self.pace.done = behind + table.column("item")[-1].as_py()
            now = time.monotonic()
            if now - reported >= PROGRESS_S:
                reported = now
                self._report()
        self.pace.done = behind + len(items)
        if self.num_documents > before:
            self._report()
        elif source.weight is None:
            self._tell_unread({reason: count - left_out[reason] for reason, count in self._left_out().items()})
        if not num_rows:
            places = getattr(source, "paths", None) or [getattr(source, "path", source.kind)]
            self.progress(f"prepare: warning: data source {', '.join(places)}: holds no document")
        if source.weight is not None:
            self._end_corpus(source)

    def _left_out(self) -> dict[str, int]:
        """Return how many documents were left out so far, by reason."""
        return {
            "skipped": self.num_skipped,
            "shorter than min_tokens": self.num_short,
            "longer than max_tokens": self.num_long,
            "near duplicates": self.num_repeated,
        }

    def _tell_unread(self, left_out: dict[str, int]) -> None:
        """Report that the source just read gives nothing, and why; if none does, `finish` refuses it."""
        if not any(left_out.values()):
            return
        num_corpus, number = len(self.settings.corpus), self.sources - 1
        key = f"corpus.{number}" if number < num_corpus else f"validation_corpus.{number - num_corpus}"
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        self.progress(f"prepare: data.{key} gives nothing, of its documents are left out: {reasons}")

    def _tokenised(self, items: list[Item]) -> Iterator[pa.Table]:
        """Yield the documents of the next source: those that an earlier `prepare` kept, then what is left."""
        number, done = self.sources, 0
        self.sources += 1
        for stop, table in self.parts.read(number):
            done = stop
            yield table
        if done:
            self.progress(f"prepare: goes on behind the {self.num_documents:,} documents of the one before")
        keeper = Keeper(self.parts, number, done)
        prefix, end = tokenizers.prefix_tokens(self.tokenizer), self.tokenizer.eos_token_id
        for table in tokenise(items, ShardFolder(self.folder).tokenizer, prefix=prefix, end=end, first=done):
            keeper.add(table)
            yield table
        if self.sources < len(self.settings.corpus) + len(self.settings.validation_corpus):
            keeper.finish(len(items))  # after the last source come the shards themselves

    def _end_corpus(self, source: Source) -> None:
        """Close the rows of a source that is a corpus of its own."""
        assert source.weight is not None, "others join on"
        writer, first = self.train.writer, sum(corpus.rows for corpus in self.corpora)
        dropped = self.train.finish()
        self.dropped += dropped
        padded = self.train.padded - sum(corpus.padded_tokens for corpus in self.corpora)
        rows = writer.rows - first
        if not rows:
            raise SettingsError(
                f"data.corpus.{len(self.corpora)}: gives {dropped} training tokens, less than one row of "
                f"{self.settings.window}; leave it out or widen its min_tokens and max_tokens"
            )
        tokens = rows * self.settings.window - padded
        self.corpora.append(
            CorpusRows(
                weight=source.weight,
                first_row=first,
                rows=rows,
                shard_rows=self.settings.shard_rows,
                tokens=tokens,
                padded_tokens=padded,
                parts=0,  # set once all corpora are known
            )
        )

    def _report(self) -> None:
        tokens_per_second = self.num_tokens / max(time.monotonic() - self.started, 1e-3)
        self.progress(
            f"prepare: {self.num_documents:,} documents, {self.num_tokens:,} tokens, {tokens_per_second:,.0f} tokens/s"
            + "".join(f", {count} {reason}" for reason, count in self._left_out().items() if count)
            + f"; {self.pace.state}"
        )

    def _skip(self, reason: str) -> None:
        if self.settings.on_bad == "error":
            raise SettingsError(f"{reason}; mend it or set data.on_bad: skip")
        self.num_skipped += 1
        if len(self.skipped) < LISTED_SKIPS:
            self.skipped.append(reason)

    def _add_document(self, name: str, tokens: Tokens, source: Source, *, held_out: bool) -> None:
        if len(tokens) < max(self.settings.min_tokens, source.min_tokens):
            self.num_short += 1
            return
        if source.max_tokens is not None and len(tokens) > source.max_tokens:
            self.num_long += 1
            return
        if self.duplicates and self.duplicates.repeats(tokens):
            self.num_repeated += 1
            return
        if held_out:
            self.validation.add(self.num_documents, name, tokens)
        else:
            self.train.add(self.num_documents, tokens)
        self.num_documents += 1
        self.num_tokens += len(tokens)
        self.lengths["validation" if held_out else "train"].append(len(tokens))

    def finish(self, corpus_digest: str) -> Manifest:
        """Close the files, check that there is something in them and return the manifest."""
        dropped = self.dropped + self.train.finish()
        self.validation.finish()
        self._check(dropped)
        settings = self.settings
        return Manifest(
            corpus_digest=corpus_digest,
            tokenizer_hash=tokenizers.tokenizer_hash(self.tokenizer),
            vocab_size=tokenizers.vocabulary_size(self.tokenizer),
            begin_token=tokenizers.begin_name(self.tokenizer),
            end_token=self.tokenizer.eos_token_id,
            window=settings.window,
            rows=self.train.writer.rows,
            rows_per_batch=self.train.rows_per_batch,
            pack=settings.pack,
            tokens=self.train.writer.rows * settings.window - self.train.padded,
            padded_tokens=self.train.padded,
            dropped_tokens=dropped,
            documents={kind: _lengths(lengths) for kind, lengths in self.lengths.items()},
            validation_lengths=tuple(self.lengths["validation"]),
            num_short=self.num_short,
            num_long=self.num_long,
            num_repeated=self.num_repeated,
            num_skipped=self.num_skipped,
            skipped=tuple(self.skipped),
            sources=tuple(source.model_dump(mode="json") for source in settings.corpus),
            validation_sources=tuple(source.model_dump(mode="json") for source in settings.validation_corpus),
            validation_share=settings.validation_share,
            seed=settings.seed,
            settings=settings.made_with(),
            shards=tuple(self.train.writer.entries),
            validation=tuple(self.validation.writer.entries),
            corpora=self._shared_out() if self.corpora else None,
        )

    def _shared_out(self) -> tuple[CorpusRows, ...]:
        """Return the manifest's entry of each corpus, which includes the share of its rows in a run."""
        per_row = [corpus.tokens / corpus.rows for corpus in self.corpora]
        try:
            parts = shares([corpus.weight for corpus in self.corpora], per_row)
        except ValueError as error:
            raise SettingsError(f"data.corpus: {error}") from None
        return tuple(corpus.changed(parts=count) for corpus, count in zip(self.corpora, parts, strict=True))

    def _check(self, dropped: int) -> None:
        documents = {kind: len(lengths) for kind, lengths in self.lengths.items()}
        if not sum(documents.values()) and self.num_short + self.num_long:
            raise SettingsError(
                f"data.min_tokens: {self.num_short} documents are shorter than it (or their source's min_tokens), "
                f"{self.num_long} longer than max_tokens, and none is left; widen them"
            )
        if not sum(documents.values()):
            raise SettingsError(
                f"data.corpus: is empty, {self.num_skipped} documents were skipped and none is left; name other sources"
            )
        if not self.train.writer.rows:
            raise SettingsError(
                f"data.corpus: {documents['train']} training documents give {dropped} tokens, less than one row of "
                f"{self.settings.window}; add sources or set a smaller data.window"
            )
        if not documents["validation"] and (self.settings.validation_share or self.settings.validation_corpus):
            raise SettingsError(
                f"data.validation_share: {self.settings.validation_share} of {documents['train']} documents holds out "
                f"none; raise it, set another data.seed or name data.validation_corpus"
            )


def _documents(table: pa.Table) -> Iterator[tuple[str, Tokens, str | None]]:
    """Yield (name, tokens, reason) of each row of a table of `stream.tokenise`."""
    for batch in table.to_batches():
        column = batch.column("tokens")
        offsets = column.offsets.to_numpy()
        flat = column.values.to_numpy()
        names, reasons = batch.column("name").to_pylist(), batch.column("reason").to_pylist()
        for row, (name, reason) in enumerate(zip(names, reasons, strict=True)):
            yield name, flat[offsets[row] : offsets[row + 1]].copy(), reason


def _lengths(lengths: list[int]) -> DocumentLengths:
    """Return the manifest's summary of document lengths in tokens, without a number per document."""
    if not lengths:
        return DocumentLengths(count=0, tokens=0)
    values = np.array(lengths)
    bins, counts = np.unique(np.ceil(np.log2(values)).astype(int), return_counts=True)
    return DocumentLengths(
        count=len(values),
        tokens=int(values.sum()),
        min=int(values.min()),
        median=int(np.sort(values)[len(values) // 2]),
        max=int(values.max()),
        histogram=tuple((2 ** int(exponent), int(count)) for exponent, count in zip(bins, counts, strict=True)),
    )
