"""A study under Optuna: what to try next, what came of it, and a journal from which all of it is rebuilt.

The journal is the only memory. Whatever a killed driver had not yet written is done again under the same trial
number: a trial that was running keeps its parameters and runs anew, so no trial is lost or counted twice, and the
rungs that others reached are still there to be compared with. A trial's proposal is a function of the study's seed,
its number and the trials finished before it.

Optuna hears of a trial stopped at a rung as PRUNED at that step, of one that died or returned NaN as FAIL, with the
reason. The published methods are proposed first and run to their end.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from e2ray import files
from e2ray.config.base import Plain, SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.config.run import RunConfig
from e2ray.config.search import PAPER, Choice, IntRange, SearchSettings, Value
from e2ray.config.space import active, assign, express, in_order
from e2ray.core.scales import paper_scale
from e2ray.evaluate.removing import removed_scaling
from e2ray.search.importances import importances, spread
from e2ray.search.journal import JOURNAL, Journal
from e2ray.search.objectives import ASKED, cell_nll, long_of, long_windows, minimised
from e2ray.search.record import Cell, CurveCell, Note, State, StudyFacts, TrialRecord, TrialSettings, searched
from e2ray.search.results import front
from e2ray.search.rungs import verdict
from e2ray.search.trial_plan import Plan, Reached

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

_COPY = "put it back from a copy, or choose another name"


class _Backend(Journal, BaseJournalBackend):
    """Our journal as a backend of Optuna's."""


class Study:
    """The trials of one study; one process at a time may hold it."""

    def __init__(self, folder: Path, config: RunConfig, base_context_length: int) -> None:
        """Open the study of a resolved recipe in a folder, or begin it there; the caller holds the folder's lock.

        Raises:
            SettingsError: If the journal is damaged, or holds another study.
        """
        assert config.search is not None
        self.base_context_length = base_context_length
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = config.name
        self.search: SearchSettings = config.search
        self.start = config.trial()
        self.removed_scaling = removed_scaling(config.model)
        self.recipe = self.start.model_dump(mode="json", exclude={"search"})
        self.space = config.space()
        self.order = in_order(self.space)
        self.rungs = self.search.rungs(self.start.train.steps, self.start.train.log_every)
        self.path = folder / JOURNAL
        self._optuna = self._open()
        self._enqueue_baselines()
        running = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._again = [trial.number for trial in running]
        self._live: dict[int, Trial] = {}

    def _open(self) -> optuna.Study:
        journal = _Backend(self.path)
        try:
            storage = JournalStorage(journal)
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise SettingsError(f"{self.path}: is damaged, Optuna cannot read it ({what}); {_COPY}") from None
        names = [study.study_name for study in storage.get_all_studies()]
        if journal.read_logs(0) and names != [self.name]:  # Optuna would begin an empty one beside it
            held = ", ".join(names) or "none"
            raise SettingsError(f"{self.path}: wanted the study {self.name}, it holds {held}; {_COPY}")
        num_objectives = len(self.objectives) if self.search.mode == "pareto" else 1
        return optuna.create_study(
            study_name=self.name,
            storage=storage,
            directions=[optuna.study.StudyDirection.MINIMIZE] * num_objectives,
            pruner=optuna.pruners.NopPruner(),  # verdicts are `rungs.py`'s
            sampler=optuna.samplers.RandomSampler(seed=0),  # proposals are `_propose`'s, every value is enqueued
            load_if_exists=True,
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives that have a weight."""
        return tuple(name for name, weight in self.search.weights.model_dump().items() if weight)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler seeded for one trial: one seed for all would repeat the first trials after a resume."""
        seed = int(np.random.SeedSequence([self.start.seed, number]).generate_state(1)[0])
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=self.search.startup_trials + self.search.fixed_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _enqueue_baselines(self) -> None:
        """Enqueue the published methods and the paper's repeats first, also those that a killed driver left out."""
        known = {
            (trial.user_attrs.get("baseline"), trial.user_attrs.get("repeat"))
            for trial in self._optuna.get_trials(deepcopy=False)
        }
        baselines: list[tuple[str, int | None]] = [(PAPER, repeat) for repeat in range(self.search.repeats)]
        baselines += [(name, None) for name in self.search.baselines if name != PAPER]
        for name, repeat in baselines:
            if (name, repeat) not in known:
                params = {} if repeat else self._express(name)
                attributes = {"baseline": name, "repeat": repeat, "in_space": bool(params)}
                self._optuna.enqueue_trial(params, user_attrs=attributes)

    def _positions(self, preset: str) -> Plain:
        largest = self.start.positions.max_scale
        return PositionSettings.model_validate({"preset": preset, "max_scale": largest}).model_dump(mode="json")

    def _express(self, preset: str) -> dict[str, Value]:
        target = self.recipe | {"positions": self._positions(preset)}
        return express(self.space, self.recipe, RunConfig, target)

    def next(self) -> Plan | None:
        """Return the next trial to run, or None when all that were asked for exist.

        A proposal that makes no recipe is a failed trial, and the next one is returned.
        """
        while True:
            if self._again:
                trial = Trial(self._optuna, self._frozen(self._again.pop(0))._trial_id)
            else:
                trials = self._optuna.get_trials(deepcopy=False)
                if all(trial.state != TrialState.WAITING for trial in trials):
                    if len(trials) >= self.search.trials:
                        return None
                    self._propose(trials)
                trial = self._optuna.ask()
            self._live[trial.number] = trial
            try:
                return self._plan(trial)
            except ValueError as error:  # of pydantic's
                self.fail(trial.number, f"makes no recipe: {error}")

    def _propose(self, trials: Sequence[FrozenTrial]) -> None:
        """Let Optuna choose all values of a new trial, and put them into the journal in one line.

        They are chosen on a copy of the study: if the study were asked for each, a kill would leave only some of them.
        """
        copy = optuna.create_study(directions=self._optuna.directions, sampler=self._sampler(len(trials)))
        copy.add_trials(trials)
        params = self._suggested(copy.ask())
        self._optuna.enqueue_trial(params, user_attrs={"baseline": None, "repeat": None, "in_space": True})

    def _plan(self, trial: Trial) -> Plan:
        """Return what to run for a trial whose values are chosen here, or were before a kill."""
        baseline, repeat = trial.user_attrs.get("baseline"), trial.user_attrs.get("repeat")
        params = self._suggested(trial) if trial.user_attrs.get("in_space", True) else {}
        recipe = assign(self.recipe, params, RunConfig)
        if baseline is not None:
            recipe["positions"] = self._positions(baseline)
        if repeat:
            recipe["seed"] = (self.start.seed + repeat) % 2**32
        config = RunConfig.model_validate(recipe)
        settings = {"positions": config.positions.model_dump(mode="json"), "train.lr": config.train.lr}
        settings |= {"seed": config.seed, "steps": config.train.steps}
        if trial.user_attrs.get("settings") != settings:
            trial.set_user_attr("settings", settings)
        rungs = self.search.rungs(config.train.steps, config.train.log_every)
        known = () if trial.number == 0 else self._front()  # the paper's preset is what the best is shown against
        return Plan(trial.number, config, rungs, baseline, repeat, params, known)

    def _front(self) -> tuple[tuple[float, float], ...]:
        """Return (long, NLL at L) of the full trials that no other one beats on both; empty where more is weighed."""
        if self.search.weights.asks or not self.base:
            return ()
        base, records = cell_nll(self.base, self.base_context_length, 1.0), self.records()
        best = [records[number] for number in front(records)]
        return tuple((r.long, r.short + base) for r in best if r.long is not None and r.short is not None)

    def _suggested(self, trial: Trial) -> dict[str, Value]:
        """Return the values that Optuna has for a trial, each after those that it depends on."""
        params: dict[str, Value] = {}
        for path in self.order:
            if active(self.space, path, params):
                params[path] = self._suggest(trial, path)
        return params

    def _suggest(self, trial: Trial, path: str) -> Value:
        parameter = self.space[path]
        if isinstance(parameter, Choice):
            return trial.suggest_categorical(path, parameter.options)
        if isinstance(parameter, IntRange):
            return trial.suggest_int(path, parameter.low, parameter.high, log=parameter.log)
        return trial.suggest_float(path, parameter.low, parameter.high, log=parameter.log)

    def set_base(
        self,
        cells: Sequence[Cell],
        asked: Mapping[str, float | None] | None = None,
        yarn: Mapping[str, object] | None = None,
    ) -> None:
        """Keep the untouched base model's cells, which the short objective is measured against, and what it answers.

        Cells are at every window and scale. `yarn` has both for the base read by YaRN; None where it carries a scaling.

        Raises:
            ValueError: If a window of the objectives is not among them.
        """
        for window in (self.base_context_length, *self.windows):
            cell_nll(cells, window, paper_scale(window, self.base_context_length))
        for name in ASKED:
            self._optuna.set_user_attr(f"base_{name}", self._weighed(asked or {}, name))
        if yarn is not None:
            known = {name: self._weighed(yarn, name) for name in ASKED}
            self._optuna.set_user_attr("base_yarn", files.finite({"cells": yarn["cells"], **known}))
        self._optuna.set_user_attr("base", files.finite(list(cells)))

    @property
    def base(self) -> list[Cell] | None:
        """The untouched base model's cells, or None before they were measured."""
        return self._optuna.user_attrs.get("base")

    def objective(self, reached: Reached) -> dict[str, float | None]:
        """Return the objectives of what a trial's worker found and the weighted `value`; None is what has no weight.

        Raises:
            ValueError: If one is no finite number, or a window was not measured.
        """
        length = self.base_context_length
        long = long_of(reached["cells"], self.windows, length)
        short = cell_nll(reached["cells"], length, 1.0) - cell_nll(self.base or [], length, 1.0)
        weights = self.search.weights
        value = weights.long * long + weights.short * short
        asked = {name: self._weighed(reached, name) for name in ASKED}
        for name, number in asked.items():
            if number is not None:
                value += getattr(weights, name) * minimised(name, number)
        if not math.isfinite(value):
            raise ValueError(f"the objective is {value} (long {long}, short {short})")
        return {"long": long, "short": short, **asked, "value": value}

    def _weighed(self, asked: Mapping[str, object], name: str) -> float | None:
        """Return the measured number of an objective that has a weight, None of one that has none."""
        value = asked.get(name)
        return value if isinstance(value, int | float) and getattr(self.search.weights, name) else None

    @property
    def windows(self) -> tuple[int, ...]:
        """W in tokens: the windows of the long objective, those beyond L; all that are measured where none is longer.

        L itself is the short objective's: if it counted in both, a gain at L would pass for one at long windows.
        """
        assert self.start.evaluate is not None and self.start.evaluate.windows is not None
        return long_windows(self.start.evaluate.windows, self.base_context_length)

    def rung(self, number: int, reached: Reached) -> bool:
        """Write down what a trial reached at a rung, and return whether it is stopped there.

        A value that was written down before a kill keeps its verdict.
        """
        trial = self._live[number]
        known = trial.user_attrs.get(_key(reached["step"]))
        if known is None:
            objectives = self.objective(reached)
            value = objectives["value"]
            assert value is not None
            stop = self._stops(number, reached["step"], value)
            self._note(trial, reached, objectives, stop=stop)
        else:
            value, stop = known["value"], known["stop"]
        if self.search.mode == "pareto":
            return False
        self._report(trial, value, reached["step"])
        if stop:
            self._tell(number, state=TrialState.PRUNED)
        return stop

    def _stops(self, number: int, step: int, value: float) -> bool:
        """Return whether a trial is stopped at a rung; a published method never is."""
        stopping, frozen = self.search.early_stopping, self._frozen(number)
        if stopping is None or frozen.user_attrs.get("baseline") is not None:
            return False
        others = {
            other.number: other.user_attrs[_key(step)]["value"]
            for other in self._optuna.get_trials(deepcopy=False)
            if other.number != number and _key(step) in other.user_attrs and not other.user_attrs.get("repeat")
        }
        return verdict(stopping, self.rungs, step, number=number, value=value, others=others)

    def complete(self, number: int, reached: Reached) -> None:
        """Write down what a trial reached at its last step."""
        trial = self._live[number]
        objectives = self.objective(reached)
        self._note(trial, reached, objectives, stop=False)
        if self.search.mode == "weighted":
            assert objectives["value"] is not None
            self._report(trial, objectives["value"], reached["step"])
            self._tell(number, values=[objectives["value"]])
            return
        self._tell(number, values=[minimised(name, objectives[name]) for name in self.objectives])

    def is_running(self, number: int) -> bool:
        """Return whether a trial was handed out by `next` and has not ended yet."""
        return number in self._live

    def fail(self, number: int, reason: str, *, step: int = 0, tokens: int = 0, seconds: float = 0.0) -> None:
        """Write down that a trial died or returned no number; it counts as one of the trials asked for.

        Step (updates made), tokens and seconds (wall time) are those where it ended, as far as they are known.
        """
        if number in self._live:
            end = {"reason": _one_line(reason), "step": step, "tokens": tokens, "seconds": round(seconds, 3)}
            self._live[number].set_user_attr("failed", end)
            self._tell(number, state=TrialState.FAIL)

    def _note(self, trial: Trial, reached: Reached, objectives: Mapping[str, float | None], *, stop: bool) -> None:
        """Write one line into the journal that holds all that is known at a step, its verdict too."""
        known = {
            "cells": reached["cells"],
            "tokens": reached["tokens"],
            "seconds": round(reached["trial_seconds"], 3),
            "loss": reached["loss"],
            "stop": stop,
        }
        trial.set_user_attr(_key(reached["step"]), files.finite({**known, **objectives}))

    def _report(self, trial: Trial, value: float, step: int) -> None:
        if step not in self._frozen(trial.number).intermediate_values:  # reported before a kill
            trial.report(value, step)

    def _tell(self, number: int, *, state: TrialState | None = None, values: list[float] | None = None) -> None:
        self._optuna.tell(self._live.pop(number), values=values, state=state)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._optuna.get_trials(deepcopy=False)[number]

    def records(self) -> list[TrialRecord]:
        """Return every trial that the journal knows, by number."""
        return [self._record(trial) for trial in self._optuna.get_trials(deepcopy=False)]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        notes: dict[int, Note] = {
            int(key.split()[1]): value for key, value in trial.user_attrs.items() if key.startswith("step ")
        }
        step = max(notes, default=0)
        last = notes.get(step, Note())
        # a kill may have come between this line and the verdict; the trial then ran again
        failed = trial.user_attrs.get("failed", {}) if trial.state == TrialState.FAIL else {}
        settings = trial.user_attrs.get("settings", {})
        own = TrialSettings()
        if settings:
            own = {"positions": settings["positions"], "train.lr": settings["train.lr"]}
        rows = [CurveCell(step=at, **cell) for at in sorted(notes) for cell in notes[at]["cells"]]
        return TrialRecord(
            number=trial.number,
            state=STATES[trial.state],
            baseline=trial.user_attrs.get("baseline"),
            repeat=trial.user_attrs.get("repeat"),
            seed=settings.get("seed", self.start.seed),
            params=dict(sorted(trial.params.items(), key=lambda item: self.order.index(item[0]))),
            settings=own,
            steps=settings.get("steps", self.start.train.steps),
            step=step,
            long=last.get("long"),
            short=last.get("short"),
            retrieval=last.get("retrieval"),
            answer_nll=last.get("answer_nll"),
            value=last.get("value"),
            tokens=max(last.get("tokens", 0), failed.get("tokens", 0)),
            seconds=max(last.get("seconds", 0.0), failed.get("seconds", 0.0)),
            reason=failed.get("reason"),
            curves=rows,
            values={at: notes[at]["value"] for at in sorted(notes)},
        )

    def facts(self) -> StudyFacts:
        """Return what all trials share."""
        evaluate = self.start.evaluate
        assert evaluate is not None
        return StudyFacts(
            name=self.name,
            trials=self.search.trials,
            base_context_length=self.base_context_length,
            window=self.start.data.window,
            windows=self.windows,
            max_scale=self.start.positions.max_scale,
            steps=self.start.train.steps,
            batch_sequences=self.start.train.batch_sequences,
            rungs=self.rungs,
            weights=self.search.weights.model_dump(),
            mode=self.search.mode,
            space={path: searched(parameter) for path, parameter in self.space.items()},
            base=self.base or [],
            documents=self.base[0]["documents"] if self.base else evaluate.documents,
            seed=self.start.seed,
            removed_scaling=self.removed_scaling,
            base_retrieval=self._optuna.user_attrs.get("base_retrieval"),
            base_answer_nll=self._optuna.user_attrs.get("base_answer_nll"),
            base_yarn=self._optuna.user_attrs.get("base_yarn"),
        )

    def importances(self) -> dict[str, float]:
        """Return each parameter's importance for a good weighted number, see `importances.importances`."""
        return importances(self.records(), self.space)

    def importance_spread(self) -> dict[str, tuple[float, float]]:
        """Return how far the importances move when any one trial is left out."""
        return spread(self.records(), self.space)


def _key(step: int) -> str:
    """Return the name of what is written down about a trial at a step."""
    return f"step {step}"


def _one_line(text: str) -> str:
    """Return a text as one line of at most 500 characters, its end kept: that is where an error says what it is."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:150]} ... {line[-340:]}"
