"""What `e2ray check` does: it finds out whether a recipe is sound, without a cluster."""

import torch

from e2ray.config.base import SettingsError
from e2ray.config.model import PretrainedModel
from e2ray.config.run import MENDABLE, RunConfig
from e2ray.config.search import SearchSettings
from e2ray.data.made import made_otherwise
from e2ray.data.pace import show
from e2ray.evaluate.base_length import told
from e2ray.evaluate.shares import Reading, read_base
from e2ray.records.base_length import BaseLength
from e2ray.records.folders import ShardFolder, StudyFolder
from e2ray.search.journal import verified
from e2ray.stages import checks
from e2ray.stages.run import ResolvedRun, ray_address, refuse_other_settings, resolve, tell_ignored


def check(config: RunConfig, *, measure: bool = False) -> None:
    """Check what can be checked without a cluster: model, sources, shards that are made already, tokenizer, storage.

    Settings without effect are reported, as at the start of the run. `measure` also loads the base on this machine and
    finds out how far it reads.

    Raises:
        SettingsError: For the first thing that would stop a run.
    """
    run = resolve(config)
    checks.refuse_unfit(run)
    checks.check_model(run)
    source = checks.source_of(run)
    refuse_other_settings(run, besides=(*MENDABLE, "search", "compare"))
    checks.refuse_lost_checkpoints(run)
    checks.check_suites(run)
    shards = checks.standing_shards(run)
    lengths = shards.manifest.validation_lengths if shards else None
    checks.refuse_unscorable(run.config, run.base_context_length, lengths)
    tell_ignored(run)
    for line in made_otherwise(run.config.data, shards.manifest) if shards else ():
        show(f"warning: {line}")
    if not ray_address():
        checks.refuse_too_large(run)
    for line in [] if ray_address() else checks.unfit_here(run):
        show(f"warning: on this machine: {line}")
    if measure:
        show(told(_measured_here(run)))
    tokens = config.train.steps * config.train.batch_sequences * config.data.window
    show(
        f"{config.name}: sound. L {run.base_context_length}, window {config.data.window}, scales up to "
        f"{config.positions.max_scale:g}, contexts up to {run.longest:,} tokens; "
        f"{config.train.steps:,} steps of {config.train.batch_sequences} rows, {tokens:,} tokens; "
        f"{source}; run folder {run.folder}"
    )
    if config.search:
        _tell_search(run, config, config.search)


def _tell_search(run: ResolvedRun, config: RunConfig, search: SearchSettings) -> None:
    """Show what a study of the recipe does.

    Raises:
        SettingsError: If a study was begun and its journal is damaged.
    """
    verified(StudyFolder(run.folder).journal)
    trial = config.trial().train
    rungs = search.rungs(trial.steps, trial.log_every)
    show(
        f"search: sound. {search.trials} trials of {trial.steps:,} steps over {len(config.space())} "
        f"settings, {search.fixed_trials} of them published methods and repeats; "
        + (f"stopped early at {', '.join(map(str, rungs))} steps" if rungs else "none is stopped early")
    )


def _measured_here(run: ResolvedRun) -> BaseLength:
    """Return how far the base reads, measured in this process on shards that are made already.

    Raises:
        SettingsError: If there are none yet, or the base is still to be pretrained.
    """
    data, model = run.config.data, run.config.model
    if not isinstance(model, PretrainedModel):
        raise SettingsError("--measure: the base is pretrained by the run at L, so that there is nothing to find out")
    shards = data.shards or run.made_shards
    if checks.standing_shards(run) is None:
        raise SettingsError(f"--measure: reads held-out text, and {shards} is not made yet; run `e2ray prepare` first")
    reading = Reading(
        "base",
        model,
        run.config.positions.method,
        run.base_context_length,
        run.config.seed,
        shards,
        ShardFolder(shards).tokenizer,
        torch.cuda.is_available(),
    )
    return read_base(reading, run.base_batch_tokens)
