"""The tasks of published suites that a trained model is given."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config.base import Settings, Text, each_once, increasing


class SuiteSettings(Settings):
    """Tasks of lm-evaluation-harness by name and tasks from local files, asked of base and tuned model."""

    tasks: tuple[Text, ...] = Field(
        strict=False,
        min_length=1,
        description="Tasks, groups or tags of lm-evaluation-harness (hellaswag, mmlu, ruler, longbench, ...); "
        "leval:<file> and longproc:<task>, or leval:all and longproc:all, from the folders named below.",
    )
    limit: int | None = Field(None, ge=1, description="Documents of a task at most, from its start; null: all of them.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples before a question; null, or where a task insists on none: the task's own."
    )
    seed: int = Field(1234, ge=0, lt=2**32, description="Chooses examples, made-up documents and sampled answers.")
    include_path: Text | None = Field(
        None, description="Folder with task files (YAML) of your own, in its folders too."
    )
    max_context_length: int | None = Field(
        None, ge=2, description="Tokens of a prompt with its answer at most; null: max_scale * L."
    )
    too_long: Literal["refuse", "truncate"] = Field(
        "refuse",
        description="refuse: a task with a longer prompt has no score; truncate: it loses tokens at its start, and "
        "every score says how many prompts did.",
    )
    context_lengths: tuple[int, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        description="Tokens that tasks such as ruler write their prompts to; null: 4096, 8192, ... up to the longest.",
    )
    chat_template: bool = Field(False, description="Whether questions are put into the tokenizer's chat template.")
    unsafe_code: bool = Field(False, description="Whether tasks may run code that the model has written.")
    leval: Text | None = Field(None, description="Folder of L-Eval's closed-ended tasks: coursera.jsonl and so on.")
    longproc: Text | None = Field(None, description="A copy of LongProc's data set, PrincetonPli/LongProc.")

    _each_once = field_validator("tasks", "context_lengths")(each_once)

    _positive = field_validator("context_lengths")(increasing(2))

    @model_validator(mode="after")
    def _folders(self) -> "SuiteSettings":
        for suite, folder in (("leval", self.leval), ("longproc", self.longproc)):
            asked = [name for name in self.tasks if name.startswith(f"{suite}:")]
            if asked and folder is None:
                raise ValueError(f"{suite}: is null, {asked[0]} reads its files; name their folder")
        return self

    def written_lengths(self, longest: int) -> tuple[int, ...]:
        """Return the lengths of the prompts that tasks write, in tokens; none where `longest` is below 4096."""
        if self.context_lengths is not None:
            return self.context_lengths
        return tuple(4096 * 2**power for power in range(20) if 4096 * 2**power <= min(longest, 131_072))
