"""Ray Tune around a study: trials side by side on a cluster. Beside `actor.py` the only module that knows Ray here.

Tune starts, watches and ends the trials. What to try, what is stopped and what has been found is the study's, which
the two adapters below ask: Tune's own state is never read again. Trials of one worker share actors that keep the base
model and the rows; trials of several workers run a Ray Train of their own each.
"""

import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.metrics import Gauge

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.search.actor import TrialActor, distributed, packed
from e2ray.search.shared import Shared
from e2ray.search.study import Study
from e2ray.search.trial_plan import Reached
from e2ray.train import launch
from e2ray.train.watch import watched

DRIVER_CPUS = 0.01  # of a trial whose workers ask for their own
DEAD_AT_START = 3  # workers that die before any trial was measured end the study
DEAD_IN_A_ROW = 10  # and so do this many in a row at any time
TOLD = {  # to Tune, by its environment
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study has its own exports
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # and its own lines
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one is not silent at verbosity 0
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a study that was interrupted as if it were done
}
QUIET = ("ray.tune.execution.tune_controller", "ray.tune.tune", "ray.tune.analysis.experiment_analysis")


@dataclass(frozen=True)
class Room:
    """What one trial asks of the cluster, and how many trials it holds at once."""

    request: launch.Resources
    trials: int


def room(settings: ClusterSettings, most: int | None) -> Room:
    """Return how many trials run at once on the connected cluster.

    A worker counts if one node has room for all of it. On a cluster that adds nodes by itself the present ones say
    little: there `most`, what the recipe allows, is taken as it is.

    Raises:
        SettingsError: If the cluster is too small for one trial.
    """
    if settings.num_workers > 1:
        request = launch.resources(settings)
        need = request.cpus_per_worker + launch.READER_CPUS + DRIVER_CPUS
    else:
        need = settings.cpus_per_worker or 1.0
        if settings.autoscaling:
            launch.resources(settings.model_copy(update={"cpus_per_worker": need}))
        use_gpu = ray.cluster_resources().get("GPU", 0) > 0 if settings.use_gpu == "auto" else settings.use_gpu
        request = launch.Resources(1, use_gpu, need)
    needs = {"CPU": need} | ({"GPU": 1.0} if request.use_gpu else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(min(math.floor(node.get(kind, 0.0) / n + 1e-9) for kind, n in needs.items()) for node in nodes)
    holds = workers // request.num_workers
    if settings.autoscaling and most:
        return Room(request, most)
    if holds < 1:
        short = " and ".join(
            f"{amount:g} {kind}s on one node (the largest has {max(node.get(kind, 0.0) for node in nodes):g})"
            for kind, amount in needs.items()
        )
        raise SettingsError(
            f"cluster: is too small for one trial: each of its {request.num_workers} workers needs {short}; lower "
            "cluster.num_workers or cluster.cpus_per_worker, or add nodes"
        )
    return Room(request, min(holds, most or holds))


class _Proposals(Searcher):
    """Asks the study what to try next."""

    def __init__(self, verdicts: "_Verdicts", given: dict[str, object]) -> None:
        super().__init__()
        self.verdicts, self.given = verdicts, given

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        plan = None
        with self.verdicts.kept_error():
            plan = self.verdicts.study.next() if self.verdicts.error is None else None
        return Searcher.FINISHED if plan is None else self.given | {"number": plan.number, "plan": packed(plan)}

    def on_trial_complete(self, trial_id: str, result: Reached | None = None, error: bool = False) -> None:
        """The scheduler has reported it to the study already."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("the journal is the memory of a study\n", encoding="utf-8")


class _Verdicts(FIFOScheduler):
    """Tells the study what trials found, and Tune which of them stop.

    A trial whose worker died is reported as failed when another one has been measured after it: if all die, it is not
    the trials' fault, and they can run again when the cause is fixed. An error of this process (a full disk) is kept,
    ends the study, and is raised after Tune, which would wrap it.
    """

    def __init__(self, study: Study, told: Callable[[int], None]) -> None:
        super().__init__()
        self.study, self.told = study, told
        self.dead: list[tuple[int, str]] = []
        self.measured = False
        self.error: BaseException | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state that Tune saves and nobody reads, without what belongs to this process alone."""
        return self.__dict__ | {"told": None}

    @contextmanager
    def kept_error(self) -> Iterator[None]:
        """Keep an error of the block until Tune has ended."""
        try:
            yield
        except Exception as error:
            self.error = error

    @property
    def broken(self) -> bool:
        """Whether workers die whatever the trial."""
        return len(self.dead) >= (DEAD_IN_A_ROW if self.measured else DEAD_AT_START)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Reached) -> str:
        return self.STOP if self._take(trial, result) else self.CONTINUE

    def _take(self, trial: Trial, result: Reached) -> bool:
        """Tell the study one result and return whether the trial is stopped."""
        number = trial.config["number"]
        news = {"cells", "failed"} & result.keys()
        if self.error or not news or not self.study.is_running(number):
            return False  # Tune repeats a function's last result when it ends
        stopped = True
        with self.kept_error():
            stopped = self._judge(number, result)
            self.told(number)
        return stopped

    def _judge(self, number: int, result: Reached) -> bool:
        if "failed" in result:
            step, tokens, seconds = result["step"], result["tokens"], result["trial_seconds"]
            self.study.fail(number, result["failed"], step=step, tokens=tokens, seconds=seconds)
            return False
        self.measured = True
        self.bury()
        try:
            if result["complete"]:
                self.study.complete(number, result)
                return False
            return self.study.rung(number, result)
        except ValueError as error:
            self.study.fail(number, str(error))
            return True

    def bury(self) -> None:
        """Tell the study the trials whose workers died."""
        while self.dead:
            number, reason = self.dead.pop(0)
            self.study.fail(number, reason)
            self.told(number)

    def end(self) -> None:
        """Report the trials that are still unreported to the study, or raise what ended the trials.

        Raises:
            RuntimeError: If workers died whatever the trial.
        """
        if self.error is not None:
            raise self.error
        if self.broken:
            raise RuntimeError(
                f"{len(self.dead)} trials died one after the other, the last one of {self.dead[-1][1]}; mend that "
                "and continue with --resume, which runs them again"
            )
        self.bury()

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self.dead.append((trial.config["number"], _reason(trial)))
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: Reached) -> None:
        number = trial.config["number"]
        self._take(trial, result)  # Tune passes the last result, the one with `done`, only here
        with self.kept_error():
            if self.error is None and self.study.is_running(number):
                self.study.fail(number, "it ended before its last step")
                self.told(number)
        super().on_trial_complete(tune_controller, trial, result)


def _reason(trial: Trial) -> str:
    """Return in one line why Tune gave up a trial: the worker's own error where it left one."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return "its worker died"
    error = ray.cloudpickle.loads(Path(path).read_bytes())  # written by this process a moment ago
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    text = lines[-1] if isinstance(cause, ray.exceptions.RayError) else " ".join(lines)  # Ray's end with what matters
    return f"{type(cause).__name__}: {text}"


class _Broken(tune.Stopper):
    """Ends the study where every worker dies, or this process cannot go on."""

    def __init__(self, verdicts: _Verdicts) -> None:
        self.verdicts = verdicts

    def __call__(self, trial_id: str, result: Reached) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.verdicts.broken or self.verdicts.error is not None


def run(
    study: Study,
    shared: Shared,
    settings: ClusterSettings,
    *,
    told: Callable[[int], None] = lambda number: None,
    room_of: Room | None = None,
    share_actors: bool = True,
) -> None:
    """Run the trials that a study still lacks on the connected cluster.

    `told` is called in this process with a trial's number when something about it was written down. Without
    `share_actors`, each trial of one worker has a Ray Train of its own, as trials of several have.

    Raises:
        SettingsError: If the cluster is too small for one trial.
        RuntimeError: If workers die whatever the trial.
    """
    capacity = room_of or room(settings, study.search.concurrency)
    os.environ |= TOLD | {"TUNE_MAX_PENDING_TRIALS_PG": str(capacity.trials)}  # actors start side by side
    beats = shared.folder / f".heartbeats-{uuid.uuid4().hex[:8]}"
    given: dict[str, object] = {
        "beats": str(beats),
        "study": study.name,
        "shared": packed(shared),
        "cluster": packed(settings),
        "threads": max(1, int(capacity.request.cpus_per_worker)),
    }
    verdicts = _Verdicts(study, told)
    alone = settings.num_workers == 1 and share_actors
    tuner = _tuner(_Proposals(verdicts, given), verdicts, capacity, shared.folder / "ray", alone=alone)
    try:
        with _quiet(), watched(launch.watchman_of(beats, settings)):
            tuner.fit()
    finally:
        shutil.rmtree(beats, ignore_errors=True)
    verdicts.end()


def _tuner(proposals: _Proposals, verdicts: _Verdicts, capacity: Room, folder: Path, *, alone: bool) -> tune.Tuner:
    """Return the tuner of a study's trials; `alone` are those of one worker, which share actors."""
    name = verdicts.study.name
    return tune.Tuner(
        tune.with_resources(
            TrialActor if alone else distributed, capacity.request.per_worker() if alone else {"CPU": DRIVER_CPUS}
        ),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=verdicts,
            num_samples=-1,
            max_concurrent_trials=capacity.trials,
            reuse_actors=alone,
            trial_name_creator=lambda trial: f"{name}-{trial.config['number']}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=_Broken(verdicts),
            verbose=0,
        ),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's loggers silent in the block: every failed trial has its line and its row."""
    levels = {name: logging.getLogger(name).level for name in QUIET}
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def gauges(study: str) -> Callable[[dict[str, int], float | None], None]:
    """Return a function that shows a study's trials by state and its best weighted number as Ray gauges."""
    trials = Gauge("e2ray_search_trials", "Trials of a study by state", tag_keys=("study", "state"))
    best = Gauge("e2ray_search_best", "Best weighted number of a study's complete trials", tag_keys=("study",))

    def show(states: dict[str, int], value: float | None) -> None:
        for state, count in states.items():
            trials.set(count, tags={"study": study, "state": state})
        if value is not None:
            best.set(value, tags={"study": study})

    return show


__all__ = ["Room", "gauges", "room", "run"]
