"""What a run would stumble over hours later, told before it trains: by `e2ray check`, and by the run itself.

Settings check themselves and each other when they are read (`config/`). Here stands what needs more than settings:
the model's config, the sources, shards that exist, the storage, this machine.
"""

import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2ray.config.base import SettingsError
from e2ray.config.compare import CompareSettings
from e2ray.config.data import (
    DataSettings,
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    PasskeySource,
    PretrainedTokenizer,
    PythonStdlibSource,
    Source,
    TextSource,
)
from e2ray.config.load import load
from e2ray.config.model import PretrainedModel
from e2ray.config.places import is_uri
from e2ray.config.run import RunConfig
from e2ray.records.manifest import Manifest
from e2ray.stages.run import Run, ray_address, show

TOKENS_PER_BYTE = 12  # at most: a normaliser turns the 3 bytes of one character into 33, each a token of its own
TOKENS_AROUND = 64  # of a document at most: what begins and ends it


def refuse_before_start(run: Run) -> None:
    """Raise SettingsError for what cannot be trained, or not by a Ray of this machine where one is to be started."""
    refuse_unfit(run)
    if not ray_address():
        for line in unfit_here(run):
            raise SettingsError(line)


def refuse_unfit(run: Run) -> None:
    """Raise SettingsError for what no machine could do: a storage that is no folder, adapters on nothing, no text.

    What LoRA does otherwise than asked for is told.
    """
    from e2ray.core.model import check_adapters

    refuse_storage(run)
    for line in check_adapters(run.config.model):
        show(f"warning: {line}")
    if _to_be_made(run.config.data):
        refuse_sources(run.config.data)
    if run.config.compare:
        refuse_lanes(run, run.config.compare)


def refuse_lost_checkpoints(run: Run) -> None:
    """Raise SettingsError if a training is to go on whose checkpoints nobody points to."""
    from e2ray.train import steps

    if not (run.folder / "model").is_dir():
        steps.latest(run.folder / "checkpoints")


def check_model(run: Run) -> None:
    """Prove without weights that what a recipe trains can be served, and say what the base's layers do not see.

    Raises:
        SettingsError: If it cannot, the base's class cannot do what the recipe asks for, or the names and shapes of a
            folder's weights are not those of its config, or embed fewer tokens than the tokenizer has.
    """
    from e2ray.core.methods.registry import method_of
    from e2ray.core.model import check_weights
    from e2ray.data.tokenizer import load_tokenizer, vocabulary_size
    from e2ray.serve.twin import EXPORTED, check_base

    config = run.config
    refuse_method(run)
    if not isinstance(config.model, PretrainedModel):  # a built Llama is plain
        return
    lengths: dict[str, Sequence[int]] = {"positions": [run.longest]}
    if config.evaluate and config.evaluate.windows:
        lengths["evaluate.windows"] = config.evaluate.windows
    if config.export and config.export.context_lengths:
        lengths[EXPORTED] = config.export.context_lengths
    method = method_of(config.positions.method)
    for line in check_base(config.model, lengths, base_context_length=run.base_context_length, method=method):
        show(line)
    if config.model.is_folder:
        source, size = config.data.tokenizer, None
        if isinstance(source, PretrainedTokenizer) and source.is_folder:
            size = vocabulary_size(load_tokenizer(source.path))
        check_weights(config.model, vocab_size=size)


def refuse_method(run: Run) -> None:
    """Raise SettingsError if the model's heads do not fit the method, or a served length cannot be told to servers."""
    from e2ray.core.methods.linear import Linear
    from e2ray.core.methods.registry import method_of
    from e2ray.core.model import meta_model
    from e2ray.core.rope import find_rotary_modules, frequency_buffers
    from e2ray.serve.profiles import make_profile

    config, method = run.config, method_of(run.config.positions.method)
    lanes = config.compare.own if config.compare else {}
    own = {name: method_of(lane.positions.method) for name, lane in lanes.items()}
    if isinstance(method, Linear) and all(isinstance(each, Linear) for each in own.values()):
        return
    model = meta_model(config.model)
    pairs = [len(buffer) for module in find_rotary_modules(model) for buffer in frequency_buffers(module).values()]
    method.refuse_pairs(*pairs)
    for name, each in own.items():
        try:
            each.refuse_pairs(*pairs)
        except SettingsError as error:
            raise SettingsError(f"compare.own.{name}.{error}") from None
    if isinstance(method, Linear):
        return
    if isinstance(config.model, PretrainedModel) or not config.export:  # of a checkpoint its twin tells
        return
    for length in config.export.context_lengths or ():
        try:
            make_profile(model.config, run.base_context_length, length, base_scaling=None, method=method)
        except SettingsError as error:
            raise SettingsError(f"positions.method: {error}; or set export: null") from None


def refuse_storage(run: Run) -> None:
    """Raise SettingsError if the run's folder, or that of its shards, cannot be made or written to."""
    _refuse_place(run.folder, key="storage", named=run.storage)
    shards = run.config.data.shards
    if shards is not None and _to_be_made(run.config.data):
        folder = Path(shards).expanduser()
        _refuse_place(folder, key="data.shards", named=folder)


def _refuse_place(folder: Path, *, key: str, named: Path) -> None:
    """Raise SettingsError if a folder cannot be made or written to, by the first of its parents that is there."""
    try:
        parent = next(place for place in (folder, *folder.parents) if place.exists())
        if not parent.is_dir():
            kind = "a file" if parent.is_file() else "no folder"
            raise SettingsError(f"{key}: {parent} is {kind}, wanted a folder or a place for one; choose another {key}")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:  # a name that is too long, a server that does not answer, a disk that is read only
        raise SettingsError(
            f"{key}: {str(named)[:200]} cannot be used ({error.strerror}); choose another {key}"
        ) from None


def _to_be_made(data: DataSettings) -> bool:
    """Return whether the sources are read: shards that are named and stand are taken as they are."""
    from e2ray.data.folder import is_uri
    from e2ray.data.shards import MANIFEST

    if data.shards is None:
        return True
    return not is_uri(data.shards) and not (Path(data.shards).expanduser() / MANIFEST).exists()


def refuse_sources(data: DataSettings) -> None:
    """Raise SettingsError for a source that gives no row: its weight is too small, or `min_tokens` above any document.

    Tokens are bounded by the bytes of the largest file; that documents are shorter still is seen when they are read.
    """
    from e2ray.data.order import shares

    weights = [source.weight for source in data.corpus if source.weight is not None]
    if weights and data.pack == "concat":  # other rows are not full, which adds to a weight
        try:
            shares(weights, [1.0] * len(weights))
        except ValueError as error:
            raise SettingsError(f"data.corpus: {error}") from None
    for key, sources in (("corpus", data.corpus), ("validation_corpus", data.validation_corpus)):
        for number, source in enumerate(sources):
            wanted, most = max(data.min_tokens, source.min_tokens), most_tokens(source)
            if most is not None and wanted > most and not _unpacks(source):
                where = "data.min_tokens" if data.min_tokens >= source.min_tokens else f"data.{key}.{number}.min_tokens"
                raise SettingsError(
                    f"{where}: no document of data.{key}.{number} can have {wanted} tokens, {most} at most; lower it"
                )


def most_tokens(source: Source) -> int | None:
    """Return a bound for the tokens of a source's longest document if none is packed; None where files do not tell."""
    from e2ray.data.corpus import source_files

    match source:
        case PasskeySource():
            return 4 * TOKENS_PER_BYTE * (source.max_characters + 200) + TOKENS_AROUND  # 4 bytes a character
        case TextSource() | JsonlSource() | PythonStdlibSource():
            found = source_files(source)
            return TOKENS_PER_BYTE * max((file.bytes for file in found), default=0) + TOKENS_AROUND
        case ParquetSource() | HuggingFaceSource():
            return None


def _unpacks(source: Source) -> bool:
    """Return whether a source has a packed file, whose documents may be longer than the file is."""
    from e2ray.data.corpus import source_files
    from e2ray.data.unpack import is_packed

    return not isinstance(source, PasskeySource) and any(is_packed(file.path) for file in source_files(source))


def checked_tokenizer(run: Run) -> str | None:
    """Return the hash of the tokenizer that the recipe names; None where prepare trains one.

    Raises:
        SettingsError: If shards cannot be made with it.
    """
    from e2ray.data.prepare import refuse_short_rows
    from e2ray.data.tokenizer import load_shard_tokenizer, tokenizer_hash

    data = run.config.data
    if not isinstance(data.tokenizer, PretrainedTokenizer):
        return None
    tokenizer = load_shard_tokenizer(data.tokenizer.path, data.tokenizer.revision)
    refuse_short_rows(data.window, tokenizer)
    return tokenizer_hash(tokenizer)


def refuse_lanes(run: Run, compare: CompareSettings) -> None:
    """Raise SettingsError for a lane of a comparison that cannot be trained."""
    if "pi_long" in compare.lanes:
        long_rows(run)
    if "best" in compare.lanes:
        best_of(run.config, compare)


def long_rows(run: Run) -> tuple[int, int]:
    """Return (tokens of a row, rows of a step) of the lane pi_long: G * L real tokens, as many tokens as other lanes.

    Raises:
        SettingsError: If a step holds no whole number of such rows.
    """
    window = int(run.config.positions.max_scale * run.base_context_length)
    tokens = run.config.train.batch_sequences * run.config.data.window
    if tokens % window:
        raise SettingsError(
            f"compare.lanes: pi_long has rows of {window} tokens, a step of {tokens} tokens holds no whole number of "
            "them; raise train.batch_sequences or leave the lane out"
        )
    return window, tokens // window


def best_of(config: RunConfig, compare: CompareSettings) -> RunConfig:
    """Return the recipe that the lane best trains with: draws, objective and learning rate of one a study has found.

    Raises:
        SettingsError: If there is none, or its draws do not fit the window.
    """
    assert compare.best is not None, "CompareSettings has checked it"
    try:
        found = load(compare.best)
    except (SettingsError, FileNotFoundError) as error:
        raise SettingsError(f"compare.best: {error}") from None
    try:
        found.positions.check_window(config.data.window)
        config.refuse_packed(found.train.objective, "train.objective")
    except ValueError as error:
        raise SettingsError(
            f"compare.best: {compare.best}: {error}; leave the lane out or take another recipe"
        ) from None
    train = config.train.model_copy(update={"lr": found.train.lr, "objective": found.train.objective})
    return config.model_copy(update={"positions": found.positions, "train": train})


def refuse_attention(run: Run, *, use_gpu: bool) -> None:
    """Raise SettingsError if the workers of the connected cluster cannot run the attention that is asked for."""
    from e2ray.core.model import resolve_attention

    if not use_gpu:
        resolve_attention(run.config.model, "cpu")


def unfit_here(run: Run) -> list[str]:
    """Return what a Ray of this machine alone could not do; on another machine or cluster it may be sound."""
    import psutil
    import torch

    from e2ray.core.model import resolve_attention
    from e2ray.train.trackers import missing

    told = list(missing(run.config.trackers))
    cluster = run.config.cluster
    if cluster.use_gpu == "auto" and not torch.cuda.is_available():
        try:
            resolve_attention(run.config.model, "cpu")
        except SettingsError as error:
            told.append(str(error))
    memory = psutil.virtual_memory().total // 2**20
    if cluster.object_store_mib > memory:
        told.append(
            f"cluster.object_store_mib: {cluster.object_store_mib} MiB do not fit into the {memory} MiB of memory; "
            "lower it"
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < cluster.object_store_mib * 2**20:
        told.append(
            f"cluster.object_store_mib: {cluster.object_store_mib} MiB are one file, and files may not grow beyond "
            f"{limit / 2**20:.3g} MiB here; raise the limit (`ulimit -f`)"
        )
    return told


def standing_shards(run: Run) -> Manifest | None:
    """Return the manifest of the run's shards where they are made already, else None.

    Raises:
        SettingsError: If they are of another window or tokenizer, or damaged.
    """
    from e2ray.data.prepare import shards_digest
    from e2ray.data.shards import MANIFEST, ShardSet

    data = run.config.data
    assert data.tokenizer is not None, "resolve fills it in"
    if data.shards is None:
        folder = run.storage / "shards" / shards_digest(data, tokenizer_source=data.tokenizer)[:16]
        return ShardSet.open(folder).manifest if (folder / MANIFEST).exists() else None
    place: str | Path = data.shards if is_uri(data.shards) else Path(data.shards).expanduser()
    if isinstance(place, Path) and not (place / MANIFEST).exists():
        return None
    return ShardSet.open(place, window=data.window, tokenizer_hash=checked_tokenizer(run)).manifest


def made_otherwise(data: DataSettings, manifest: Manifest | Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that the shards named by `data.shards` were not made with.

    A default is not meant, so only what a recipe says is told of.
    """
    if data.shards is None:
        return []
    of_earlier_versions = {name: manifest[name] for name in ("pack", "validation_share", "seed") if name in manifest}
    found, wanted = of_earlier_versions | manifest.get("settings", {}), data.made_with()
    for name, key in (("corpus", "sources"), ("validation_corpus", "validation_sources")):
        if key in manifest:
            found[name], wanted[name] = manifest[key], data.model_dump(mode="json", include={name})[name]
    return [
        f"data.{name}: is without effect, since the shards of data.shards were made with another value; prepare "
        "them anew or choose another folder"
        for name in wanted
        if name in found and name in data.model_fields_set and not _same(found[name], wanted[name])
    ]


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two values are one; what settings say by now and an older manifest does not is left out."""
    if found is None or wanted is None:
        return found is wanted
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool({**wanted, **found} == wanted if isinstance(wanted, dict) else found == wanted)


def refuse_unscorable(
    config: RunConfig,
    base_context_length: int,
    lengths: Sequence[int] | None,
    *,
    progress: Callable[[str], None] = show,
) -> None:
    """Raise SettingsError if evaluation would find no held-out document to score, and tell windows that none fills.

    Args:
        config: Resolved; one without `evaluate` scores nothing.
        base_context_length: L, tokens.
        lengths: Tokens of each held-out document of the shards; None before there are any.
        progress: Takes the lines.
    """
    from e2ray.evaluate.documents import reachable_windows, refuse_none_long_enough, too_short

    settings = config.evaluate
    if settings is None or settings.windows is None:
        return
    if lengths is None:
        smallest, cut = min(settings.windows), settings.document_tokens
        if cut is not None and cut < smallest:
            raise SettingsError(too_short([range(smallest)], smallest, cut))
        _refuse_skipping_all(config.data, settings.skip_documents, smallest)
        return
    documents = [range(length) for length in lengths]  # nothing but their lengths is asked
    cut, skip = settings.document_tokens, settings.skip_documents
    if config.search:
        trial = config.trial().evaluate
        assert trial is not None and trial.windows
        longest = max(base_context_length, *trial.windows)
        refuse_none_long_enough(documents, longest, cut=trial.document_tokens, skip=trial.skip_documents)
    else:
        reachable_windows(documents, settings.windows, cut=cut, skip=skip, progress=progress)


def _refuse_skipping_all(data: DataSettings, skip: int, wanted: int) -> None:
    """Raise SettingsError if there cannot be more held-out documents than are skipped."""
    from e2ray.evaluate.documents import skips_all

    if data.shards is not None or not skip:
        return
    counts = [most_documents(source) for source in data.validation_corpus or data.corpus]
    known = [count for count in counts if count is not None]
    if len(known) == len(counts) and skip >= sum(known):
        raise SettingsError(skips_all(skip, f"at most {sum(known)}", wanted))


def most_documents(source: Source) -> int | None:
    """Return a bound for the documents of a source, None where counting them would mean to read it."""
    from e2ray.data.corpus import source_files

    match source:
        case PasskeySource():
            return source.documents
        case TextSource() | PythonStdlibSource():
            return len(source_files(source))
        case JsonlSource() if not _unpacks(source):
            return sum(file.bytes for file in source_files(source)) // len('{"t":0}')
        case _:
            return None


def source_of(run: Run) -> str:
    """Return in words where a run's rows come from: the rows of shards that are named, or the work of making some."""
    from e2ray.data.corpus import list_items
    from e2ray.data.folder import Folder
    from e2ray.data.shards import ShardSet
    from e2ray.data.unpack import Limits

    data, wanted = run.config.data, checked_tokenizer(run)
    if data.shards is not None and not _to_be_made(data):
        opened = ShardSet.open(data.shards, window=data.window, tokenizer_hash=wanted)
        return f"{opened.rows:,} rows in {Folder(data.shards).place}"
    return f"{len(list_items([*data.corpus, *data.validation_corpus], limits=Limits.of(data)))} work items"
