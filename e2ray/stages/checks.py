"""What would stop a run hours later, found before it trains: by `e2ray check`, and by the run itself.

Settings check themselves and each other when they are read (`config/`). These checks need more than settings: the
model's config, the sources, shards that exist, the storage, this machine.
"""

import resource
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from e2ray.config.base import SettingsError
from e2ray.config.compare import CompareSettings
from e2ray.config.data import DataSettings, PretrainedTokenizer
from e2ray.config.gpus import GPUS
from e2ray.config.load import load
from e2ray.config.model import PretrainedModel
from e2ray.config.resolved import ResolvedConfig
from e2ray.config.uris import is_uri
from e2ray.core.attention import resolve_attention
from e2ray.core.compiled import refuse_compile
from e2ray.core.flops import gpu_of
from e2ray.core.liger import refuse_liger
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.registry import method_of
from e2ray.core.model import check_adapters, check_weights, meta_model
from e2ray.core.rope import find_rotary_modules, frequency_buffers
from e2ray.data.bounds import most_documents, refuse_sources, to_be_made
from e2ray.data.corpus import list_items
from e2ray.data.folder import Folder
from e2ray.data.identity import refuse_short_rows
from e2ray.data.pace import show
from e2ray.data.shards import MANIFEST, ShardSet
from e2ray.data.tokenizer import load_shard_tokenizer, load_tokenizer, tokenizer_hash, vocabulary_size
from e2ray.data.unpack import Limits
from e2ray.evaluate.documents import reachable_windows, refuse_none_long_enough, skips_all, too_short
from e2ray.evaluate.suites import checked
from e2ray.serve.profiles import make_profile
from e2ray.serve.twin import EXPORTED, check_base
from e2ray.stages.plan import budget_of, gpu_for, too_large
from e2ray.stages.run import ResolvedRun, ray_address
from e2ray.train import steps
from e2ray.train.trackers import missing


def refuse_before_start(run: ResolvedRun) -> None:
    """Raise SettingsError for what cannot be trained, or not by a Ray of this machine where one is to be started."""
    refuse_unfit(run)
    if not ray_address():
        for line in unfit_here(run):
            raise SettingsError(line)


def refuse_unfit(run: ResolvedRun) -> None:
    """Raise SettingsError for what no machine could do: a storage that is no folder, adapters on nothing, no text.

    Where LoRA departs from what is asked for, a warning is shown.
    """
    refuse_storage(run)
    for line in check_adapters(run.config.model):
        show(f"warning: {line}")
    if to_be_made(run.config.data):
        refuse_sources(run.config.data)
    if run.config.compare:
        refuse_lanes(run, run.config.compare)


def refuse_lost_checkpoints(run: ResolvedRun) -> None:
    """Raise SettingsError if a training is to continue whose checkpoints have lost their pointer `latest`."""
    if not run.is_trained:
        steps.latest(run.files.checkpoints)


def check_model(run: ResolvedRun) -> None:
    """Prove without weights that what a recipe trains can be served, and show what the base's layers do not see.

    Raises:
        SettingsError: If it cannot, the base's class cannot do what the recipe asks for, or the names and shapes of a
            folder's weights are not those of its config, or embed fewer tokens than the tokenizer has.
    """
    config = run.config
    refuse_method(run)
    if not isinstance(config.model, PretrainedModel):  # a built Llama is plain
        return
    lengths: dict[str, Sequence[int]] = {"positions": [run.longest]}
    if config.evaluate:
        lengths["evaluate.windows"] = config.evaluate.windows
    if config.export:
        lengths[EXPORTED] = config.export.context_lengths
    method = method_of(config.positions.method)
    for line in check_base(config.model, lengths, base_context_length=run.base_context_length, method=method):
        show(line)
    if config.model.is_folder:
        source, size = config.data.tokenizer, None
        if isinstance(source, PretrainedTokenizer) and source.is_folder:
            size = vocabulary_size(load_tokenizer(source.path))
        check_weights(config.model, vocab_size=size)


def refuse_method(run: ResolvedRun) -> None:
    """Raise SettingsError if the model's heads do not fit the method, or no profile can express a served length."""
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
    if isinstance(config.model, PretrainedModel) or not config.export:  # a checkpoint is checked by its twin
        return
    for length in config.export.context_lengths:
        try:
            make_profile(model.config, run.base_context_length, length, base_scaling=None, method=method)
        except SettingsError as error:
            raise SettingsError(f"positions.method: {error}; or set export: null") from None


def refuse_storage(run: ResolvedRun) -> None:
    """Raise SettingsError if the run's folder, or that of its shards, cannot be made or written to."""
    _refuse_folder(run.folder, key="storage", named=run.storage)
    shards = run.config.data.shards
    if shards is not None and to_be_made(run.config.data):
        folder = Path(shards).expanduser()
        _refuse_folder(folder, key="data.shards", named=folder)


def _refuse_folder(folder: Path, *, key: str, named: Path) -> None:
    """Raise SettingsError if a folder cannot be made or written to, by the first of its parents that is there."""
    try:
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not parent.is_dir():
            kind = "a file" if parent.is_file() else "no folder"
            raise SettingsError(f"{key}: {parent} is {kind}, wanted a folder or a place for one; choose another {key}")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:  # a name too long, a server that does not answer, a read-only disk
        raise SettingsError(
            f"{key}: {str(named)[:200]} cannot be used ({error.strerror}); choose another {key}"
        ) from None


def checked_tokenizer(run: ResolvedRun) -> str | None:
    """Return the hash of the tokenizer that the recipe names; None where prepare trains one.

    Raises:
        SettingsError: If shards cannot be made with it.
    """
    data = run.config.data
    if not isinstance(data.tokenizer, PretrainedTokenizer):
        return None
    tokenizer = load_shard_tokenizer(data.tokenizer.path, data.tokenizer.revision)
    refuse_short_rows(data.window, tokenizer)
    return tokenizer_hash(tokenizer)


def check_suites(run: ResolvedRun) -> None:
    """Show for each task of the run's suites that cannot be asked why not.

    Raises:
        SettingsError: If none can be asked, a folder is not there, or the library that asks them is not installed.
    """
    if run.config.evaluate and run.config.evaluate.suites:
        for each in checked(run.config.evaluate.suites).missing:
            show(f"evaluate.suites.tasks: {each.task!r} {each.reason}; it will have no score")


def refuse_lanes(run: ResolvedRun, compare: CompareSettings) -> None:
    """Raise SettingsError for a lane of a comparison that cannot be trained."""
    if "pi_long" in compare.lanes:
        long_rows(run)
    if "best" in compare.lanes:
        best_of(run.config, compare)


def long_rows(run: ResolvedRun) -> tuple[int, int]:
    """Return (tokens of a row, rows of a step) of the lane pi_long: G * L real tokens, as many tokens as other lanes.

    Raises:
        SettingsError: If a step holds no whole number of such rows.
    """
    window = run.longest
    tokens = run.config.train.batch_sequences * run.config.data.window
    if tokens % window:
        raise SettingsError(
            f"compare.lanes: pi_long has rows of {window} tokens, a step of {tokens} tokens holds no whole number of "
            "them; raise train.batch_sequences or leave the lane out"
        )
    return window, tokens // window


def best_of(config: ResolvedConfig, compare: CompareSettings) -> ResolvedConfig:
    """Return the recipe of the lane best: with draws, objective and learning rate of one that a study has found.

    Raises:
        SettingsError: If there is none, or its draws do not fit the window.
    """
    assert compare.best is not None, "CompareSettings has checked it"
    try:
        recipe = load(compare.best)
    except (SettingsError, FileNotFoundError) as error:
        raise SettingsError(f"compare.best: {error}") from None
    try:
        recipe.positions.check_window(config.data.window)
        config.refuse_packed(recipe.train.objective, "train.objective")
    except ValueError as error:
        raise SettingsError(
            f"compare.best: {compare.best}: {error}; leave the lane out or take another recipe"
        ) from None
    train = config.train.model_copy(update={"lr": recipe.train.lr, "objective": recipe.train.objective})
    return config.model_copy(update={"positions": recipe.positions, "train": train})


def refuse_undoable(run: ResolvedRun, *, use_gpu: bool) -> None:
    """Raise SettingsError if workers without a GPU cannot run attention or kernels, or compile, as asked for."""
    if use_gpu:  # known where the GPU is
        return
    resolve_attention(run.config.model, "cpu")
    if run.config.model.liger:
        refuse_liger("cpu")
    if any(settings.compile for settings in (run.config.pretrain, run.config.train) if settings):
        refuse_compile("cpu")


def refuse_too_large(run: ResolvedRun) -> None:
    """Raise SettingsError if a GPU of this machine cannot hold what a worker needs, naming the nearest settings."""
    if not torch.cuda.is_available() or run.config.cluster.use_gpu is False:
        return
    if gpu_of(torch.cuda.get_device_name(), GPUS) is None:
        return  # a kind of which nothing is known
    _, gpu = gpu_for(run.config, None, GPUS)
    budget = budget_of(run.config, gpu)
    need = budget.need(run.config.cluster.num_workers)
    if not need.fits:
        raise SettingsError(too_large(budget, need))


def unfit_here(run: ResolvedRun) -> list[str]:
    """Return what a Ray of this machine alone could not do; on another machine or cluster it may be sound."""
    lines = list(missing(run.config.trackers))
    cluster = run.config.cluster
    if cluster.use_gpu == "auto" and not torch.cuda.is_available():
        try:
            refuse_undoable(run, use_gpu=False)
        except SettingsError as error:
            lines.append(str(error))
    memory = psutil.virtual_memory().total // 2**20
    if cluster.object_store_mib > memory:
        lines.append(
            f"cluster.object_store_mib: {cluster.object_store_mib} MiB do not fit into the {memory} MiB of memory; "
            "lower it"
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < cluster.object_store_mib * 2**20:
        lines.append(
            f"cluster.object_store_mib: {cluster.object_store_mib} MiB are one file, and files may not grow beyond "
            f"{limit / 2**20:.3g} MiB here; raise the limit (`ulimit -f`)"
        )
    return lines


def standing_shards(run: ResolvedRun) -> ShardSet | None:
    """Return the run's shards where they are made already, else None.

    Raises:
        SettingsError: If they are of another window or tokenizer, or damaged.
    """
    data, folder = run.config.data, run.made_shards
    if data.shards is None:
        return ShardSet.open(folder) if (folder / MANIFEST).exists() else None
    if to_be_made(data):
        return None
    source = data.shards if is_uri(data.shards) else folder
    return ShardSet.open(source, window=data.window, tokenizer_hash=checked_tokenizer(run))


def refuse_unscorable(
    config: ResolvedConfig,
    base_context_length: int,
    lengths: Sequence[int] | None,
    *,
    progress: Callable[[str], None] = show,
) -> None:
    """Raise SettingsError if evaluation would find no held-out document to score; show windows that none fills.

    `lengths` are tokens of each held-out document of the shards; None before there are any.
    """
    settings = config.evaluate
    if settings is None:
        return
    if lengths is None:
        smallest, cut = min(settings.windows), settings.document_tokens
        if cut is not None and cut < smallest:
            raise SettingsError(too_short([range(smallest)], smallest, cut))
        _refuse_skipping_all(config.data, settings.skip_documents, smallest)
        return
    documents = [range(length) for length in lengths]  # only their lengths are used
    cut, skip = settings.document_tokens, settings.skip_documents
    if config.search:
        trial = config.trial().evaluate
        assert trial is not None, "a search has one"
        longest = max(base_context_length, *trial.windows)
        refuse_none_long_enough(documents, longest, cut=trial.document_tokens, skip=trial.skip_documents)
    else:
        reachable_windows(documents, settings.windows, cut=cut, skip=skip, progress=progress)


def _refuse_skipping_all(data: DataSettings, skip: int, window: int) -> None:
    """Raise SettingsError if there cannot be more held-out documents than are skipped."""
    if data.shards is not None or not skip:
        return
    counts = [most_documents(source) for source in data.validation_corpus or data.corpus]
    known = [count for count in counts if count is not None]
    if len(known) == len(counts) and skip >= sum(known):
        raise SettingsError(skips_all(skip, f"at most {sum(known)}", window))


def source_of(run: ResolvedRun) -> str:
    """Return in words where a run's rows come from: named shards with their rows, or the work items of making some."""
    data, digest = run.config.data, checked_tokenizer(run)
    if data.shards is not None and not to_be_made(data):
        opened = ShardSet.open(data.shards, window=data.window, tokenizer_hash=digest)
        return f"{opened.rows:,} rows in {Folder(data.shards).shown}"
    return f"{len(list_items([*data.corpus, *data.validation_corpus], limits=Limits.of(data)))} work items"
