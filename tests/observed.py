"""What each setting turns into, found by the functions that a run itself calls, without a cluster and within moments.

An observable takes a resolved run and the path of the section that is looked at, and returns plain data that follows
from the settings: never a copy of them. Ray is left out by calling in this process what it would call in a task; the
calls to Ray themselves are noted where a setting is Ray's.
"""

import hashlib
import json
import os
import pickle
import shutil
import types
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.core import attention as attentions
from e2ray.core import model as models
from e2ray.core.base import base_facts
from e2ray.core.methods.registry import method_of
from e2ray.core.positions import draw
from e2ray.core.rope import RotaryHook
from e2ray.data import build, corpus, stream
from e2ray.data.corpus import list_items
from e2ray.data.order import Reader
from e2ray.data.shards import MANIFEST, ShardSet, local_batches
from e2ray.data.unpack import Limits
from e2ray.records.checkpoint import Look
from e2ray.records.run import MetricsLine
from e2ray.stages import checks, cluster, pipeline, suites
from e2ray.stages import compare as comparing
from e2ray.stages import evaluate as evaluation
from e2ray.stages import train as training
from e2ray.train import launch, rank, record, trackers, worker, zero
from e2ray.train.lookout import pays_too_much
from e2ray.train.loop import Diverged, Skips, fit
from e2ray.train.parameters import precision_of
from e2ray.train.schedule import learning_rate

VOCABULARY = 300
FEW = 6  # steps, rows and trials that are looked at
MOST_PARAMETERS = 10**6  # of a model whose weights are made; of larger ones the shapes are


def digest(*tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return found.hexdigest()[:16]


# ---- without Ray ------------------------------------------------------------------------------------------------


def _tokenise(items, tokenizer_folder, *, prefix, first=0, **ends):
    table = pa.table({"work": [pickle.dumps(list(enumerate(items))[first:])]})
    yield from stream._tokenise_items(
        table, path=str(tokenizer_folder / "tokenizer.json"), prefix=tuple(prefix), **ends
    )


@contextmanager
def without_ray(library):
    """Call in this process what Ray would call on a worker; `library` is a folder to read as the standard library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
        patch.setattr(build, "tokenise", _tokenise)
        for module in (pipeline, evaluation, suites, comparing):
            patch.setattr(module, "wants_gpu", lambda settings: False)
        patch.setattr(evaluation, "remote_each", lambda name, function, calls, **options: [function(*c) for c in calls])
        yield


# ---- rows and draws ---------------------------------------------------------------------------------------------


def shards_of(run):
    """The folder of the shards; one that is named by its content is made once."""
    standing = run.config.data.shards is None and (run.made_shards / MANIFEST).exists()
    return run.made_shards if standing else training.prepare(run)


def shards_place(run, path):
    """Where the shards are."""
    return str(shards_of(run))


def shards(run, path):
    """The bytes of all shards and what is held out."""
    found = ShardSet.open(shards_of(run))
    manifest = found.manifest
    files = [entry.sha256 for entry in manifest.shards + manifest.validation]
    parts = [corpus.parts for corpus in manifest.corpora or ()]
    return [files, [name for name, _ in found.validation_documents()], parts]


def held_out(run, path):
    """The documents that are held out, in tokens."""
    return [tokens.tolist() for tokens in ShardSet.open(shards_of(run)).held_out()]


def items(run, path):
    """The work of reading the sources."""
    return [repr(item) for item in list_items([*run.config.data.corpus, *run.config.data.validation_corpus])]


def rows(run, path):
    """Which rows the first steps read."""
    found = ShardSet.open(shards_of(run))
    settings = run.config.pretrain if path == "pretrain" else run.config.train
    order = found.order(run.config.seed, run.config.data.shuffle_shards)
    return Reader(order, settings.batch_sequences, 0, 1).row_ids(range(2)).tolist()


def reading(run, path):
    """How much a rank's pipeline reads ahead, in bytes, and its tasks."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stream, "_pipeline", lambda work, function, **options: given.update(options, work=work) or iter(())
        )
        list(rank._open_rows(_Heart(), 0, 100, task=task(run), rank=0, num_workers=1))
    return [given["block_bytes"], given["prefetch_bytes"], given["work"]]


def task(run, path="train"):
    """The training as the workers are told it."""
    if path == "pretrain":
        native = PositionSettings.model_validate({"preset": "native"})
        return training.task_of(run, run.base, shards_of(run), run.config.model, run.config.pretrain, native)
    model = run.config.model
    return training.task_of(run, run.folder, shards_of(run), model, run.config.train, run.config.positions)


def draws(run, path):
    """Scales and relative positions of the first rows: rotary attention sees nothing else of a draw."""
    found = []
    for step in range(FEW):
        drawn = draw(
            run.config.positions,
            seed=run.config.seed,
            step=step,
            indices=range(min(run.config.train.batch_sequences, FEW)),
            window=run.config.data.window,
            base_context_length=run.base_context_length,
        )
        found.append([drawn.scale.tolist(), (drawn.offsets - drawn.offsets[:, :1]).tolist()])
    return found


# ---- models -----------------------------------------------------------------------------------------------------


def model(run, path):
    """The weights and frequencies that a training starts from; of a large model its shapes."""
    settings = run.config.model
    bare = models.meta_model(settings)
    shapes = [[name, list(each.shape)] for name, each in bare.named_parameters()]
    if sum(each.numel() for each in bare.parameters()) > MOST_PARAMETERS:
        return shapes
    built = models.build_model(settings, dtype=torch.float32, vocab_size=VOCABULARY, seed=run.config.seed)
    frequencies = [each for name, each in built.named_buffers() if name.endswith("inv_freq")]
    facts = base_facts(settings)
    return [shapes, digest(*built.parameters()), digest(*frequencies), facts.base_context_length]


def adapters(run, path):
    """The modules that are trained, their shapes, what their update is multiplied by, and their dropout."""
    settings = run.config.model
    made = models.made_ready(models.meta_model(settings), settings, seed=0)
    trained = [[name, list(each.shape)] for name, each in made.named_parameters() if each.requires_grad]
    scaling = [getattr(each, "scaling", None) for each in made.modules() if hasattr(each, "lora_A")]
    dropout = [each.p for each in made.modules() if isinstance(each, torch.nn.Dropout)]
    recomputing = [getattr(each, "gradient_checkpointing", False) for each in made.modules()]
    return [trained, [str(each) for each in scaling], dropout, recomputing]


def frequencies(run, path):
    """What a rotary module holds at some scales, and what it multiplies cosines and sines by."""
    told = task(run)
    built = worker.build_model(told.model, dtype=torch.float32, vocab_size=told.vocab_size, seed=told.seed)
    hook = RotaryHook(built, method_of(told.positions.method), base_context_length=told.base_context_length)
    found = []
    for scale in (1.0, 1.5, 4.0):
        with hook.in_place(scale):
            found += [[module.inv_freq.tolist(), module.attention_scaling] for module in hook.rotary_modules]
    return found


def attention(run, path):
    """The attention of a CPU and of a GPU on which flash attention is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attentions, "is_flash_attn_2_available", lambda: True)
        return [attentions.resolve_attention(run.config.model, device) for device in ("cuda", "cpu")]


# ---- training ---------------------------------------------------------------------------------------------------


def settings_of(run, path):
    return run.config.pretrain if path == "pretrain" else run.config.train


def rates(run, path):
    """The learning rate of the first steps, and how many there are."""
    settings = settings_of(run, path)
    return [settings.steps, [learning_rate(settings, step) for step in range(min(settings.steps, 2 * FEW))]]


def updates(run, path):
    """The weights after a few updates."""
    settings = settings_of(run, path).model_copy(update={"steps": 3, "log_every": 1, "checkpoint_every": 3})
    told = task(run, path)
    made = worker.begin(replace(told, train=settings), device=torch.device("cpu"))
    read = local_batches(
        told.shards,
        seed=told.seed,
        start_step=0,
        stop_step=3,
        rank=0,
        num_workers=1,
        batch_sequences=settings.batch_sequences,
        window=told.window,
        tokenizer_hash=told.tokenizer_hash,
    )
    batches = worker.drawn(read, told, rank=0, num_workers=1, start_step=0)
    with suppress(Diverged):  # a run says so in a line of its own
        fit(made, batches, settings, start_step=0, report=lambda metrics: None, save=lambda step: None)
    weights = digest(*(state.weight for state in made.states()))
    made.hook.remove()
    made.ds.destroy()
    return weights


def deepspeed(run, path):
    """What DeepSpeed is told, on CPUs and on GPUs."""
    settings, found = settings_of(run, path), []
    for device in ("cpu", "cuda"):
        dtype = precision_of(settings, torch.device(device))
        sizes = {"num_workers": 1, "num_parameters": 10**9, "largest": 10**8}
        found.append([str(dtype), zero.deepspeed_settings(settings, dtype=dtype, on_gpu=device == "cuda", **sizes)])
    return found


def compiled(run, path):
    """Whether an engine has compiled layers, and a head with the loss in it."""
    made = worker.begin(replace(task(run, path), train=settings_of(run, path)), device=torch.device("cpu"))
    running = [made._compiled is not None, made._reader.head is not None]
    made.hook.remove()
    made.ds.destroy()
    return running


def kernels(run, path):
    """What workers without a GPU refuse."""
    try:
        checks.refuse_undoable(run, use_gpu=False)
    except SettingsError as error:
        return str(error)
    return None


def pretraining(run, path):
    """What the pretraining is made with."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_train", lambda run, task: told.extend([task.model, task.train, task.positions]))
        shutil.rmtree(run.base, ignore_errors=True)
        training.pretrain(run, run.config.pretrain, shards_of(run))
    return [each.model_dump() for each in told]


def left_behind(run, path):
    """The files of a training of six steps: checkpoints, the ledger, the steps of metrics.jsonl."""
    told = task(run, path)
    told = replace(told, train=told.train.model_copy(update={"steps": 6}))
    shutil.rmtree(told.folder, ignore_errors=True)
    told.folder.mkdir(parents=True)

    def open_rows(start, stop):
        options = {"seed": told.seed, "rank": 0, "num_workers": 1, "window": told.window}
        batch = {"batch_sequences": told.train.batch_sequences, "tokenizer_hash": told.tokenizer_hash}
        return local_batches(told.shards, start_step=start, stop_step=stop, **options, **batch)

    worker.run(told, device=torch.device("cpu"), open_rows=open_rows)
    names = sorted(str(each.relative_to(told.folder)) for each in told.folder.glob("*/*") if "events" not in each.name)
    shutil.rmtree(told.folder / "checkpoints")
    return [names, [[line.step, line.watch_nll] for line in record.read_metrics(told.folder)]]


def logged(run, path):
    """What the libraries of the trackers are asked to open."""
    asked = []

    class Client:
        def __init__(self, tracking_uri):
            asked.append(tracking_uri)

        def get_experiment_by_name(self, name):
            asked.append(name)

        def create_experiment(self, name, place):
            return asked.append(place)

        def create_run(self, experiment, run_name):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="1"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient", Client)
        patch.setattr("wandb.init", lambda **options: asked.append(options) or types.SimpleNamespace(id="2"))
        trackers.Trackers(
            trackers.configured(task(run).trackers, run.folder, name="walk", continued=False),
            show=pytest.fail,
        )
    return asked


def ends(run, path):
    """Which prices at L end a training."""
    settings = settings_of(run, path.removesuffix(".stop"))
    seen = [Look(step=1, watch_nll={}, price_at_base=price) for price in (1e-10, 0.01, 50.0)]
    return [pays_too_much(settings, look, 32) for look in seen]


class Clock:
    """A clock that sleeping moves on."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds):
        self.now += max(seconds, 1.0)


def progress_lines(run, path):
    """How many progress lines a training of a hundred seconds shows."""
    clock, lines, settings = Clock(), [], settings_of(run, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "time", clock)
        run.folder.mkdir(parents=True, exist_ok=True)
        made = record.Recorder(run.folder, start_step=0, steps=1000, progress_s=settings.progress_s, show=lines.append)
        made.metrics = MetricsLine(step=1, tokens=1, loss=1.0, tokens_per_second=1.0, scale_mean=1.0)
        for step in range(1, 100):
            clock.now += 1.0
            made.progress(step)
        made.close()
    return len(lines)


def limits(run, path):
    """What files of text are unpacked with."""
    return vars(Limits.of(run.config.data))


def patience(run, path):
    """How many skipped steps in a row a training lives through."""
    most = settings_of(run, path).max_skipped_steps
    lived = 0
    with suppress(Diverged):
        for lived in range(200):
            Skips(in_a_row=lived).refuse_more_than(most, step=lived)
    return lived


def to_ray(run, path):
    """What Ray is asked for: the start, the workers, how long their resources and their start are waited for."""
    told, clock, settings = {}, Clock(), run.config.cluster
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
            patch.delenv(name, raising=False)
        patch.setattr(launch, "time", clock)
        import ray

        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(ray, "init", lambda **options: told.update(options))
        patch.setattr(ray, "shutdown", lambda: None)
        patch.setattr(ray, "nodes", list)
        patch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(gcs_address="127.0.0.1:1"))
        patch.setattr(cluster, "admit", lambda address, hosts, *, allow_open: told.update(allow_open=allow_open))
        real = launch.Vigil
        patch.setattr(launch, "Vigil", lambda **options: told.update(vigil=options) or real(**options))
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": 1e9, "GPU": 1e6})
        with cluster.cluster(settings):
            told["workers"] = launch.resources(settings).per_worker(), settings.num_workers
            with patch.context() as without:
                without.setattr(ray, "cluster_resources", lambda: {"CPU": 1e9})
                try:
                    told["without_gpu"] = launch.resources(settings).per_worker()
                except launch.SettingsError:
                    told["without_gpu"] = None
            fitted = {}
            patch.setattr(launch, "TorchTrainer", lambda work, **options: fitted.update(options) or _Fitted())
            steps = types.SimpleNamespace(steps=1)
            told_of = types.SimpleNamespace(name="walk", folder=run.folder, show_progress=False, train=steps)
            launch._fit(told_of, settings)
            told["failures"] = fitted["run_config"].failure_config.max_failures
            told["scaling"] = repr(fitted["scaling_config"])
            told["start_timeout"] = os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
        try:
            launch.resources(settings.model_copy(update={"num_workers": 7}))
        except launch.SettingsError:
            told["waited"] = min(clock.now, 1000.0)
    told.pop("_temp_dir", None)
    return json.loads(json.dumps(told, default=str))


class _Heart:
    def around(self, rows, **phases):
        return rows


class _Fitted:
    def fit(self):
        pass


# ---- places -----------------------------------------------------------------------------------------------------


def place(run, path):
    """Where everything is written."""
    return str(run.folder)
