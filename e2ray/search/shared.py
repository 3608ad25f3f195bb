"""What all trials of a study have in common, as it is sent to the processes that run them."""

from dataclasses import dataclass
from pathlib import Path

from e2ray.config.resolved import ResolvedConfig, ResolvedEvaluate
from e2ray.config.retrieval import RetrievalSettings
from e2ray.search.trial_plan import Plan
from e2ray.train.bench import tried
from e2ray.train.task import Task


@dataclass(frozen=True)
class Shared:
    """What all trials of a study have in common; it can be pickled."""

    study: str
    folder: Path  # of the study; trials of several workers write below it
    task: Task  # of the recipe: shards, tokenizer, window, base model
    evaluate: ResolvedEvaluate
    surface: bool  # whether a full trial that may be among the best is measured at every window and scale
    retrieval: RetrievalSettings | None

    def task_of(self, plan: Plan) -> Task:
        """Return the training of one trial."""
        return tried(
            self.task,
            plan.config,  # a trial has its rungs, whatever the recipe watches
            name=f"{self.study}-{plan.number}",
            folder=self.folder / "trials" / str(plan.number),
        )


def share(config: ResolvedConfig, task: Task, folder: Path) -> Shared:
    """Return what the trials of a resolved recipe share; `task` is the recipe's own training."""
    assert config.search is not None
    start = config.trial()
    assert start.evaluate is not None, "a search compares trials by it"
    return Shared(
        study=config.name,
        folder=folder,
        task=task,
        evaluate=start.evaluate,
        surface=config.search.surface,
        retrieval=config.search.retrieval if config.search.weights.asks else None,
    )
