"""suites.json and suites-samples.jsonl: what published suites score, and every prompt that was asked."""

from pydantic import Field, JsonValue

from e2ray.records.record import Count, Length, Many, Number, Part, Plain, Record, Scale, Tokens, left_out, renamed


class Score(Part):
    """One score of a task or a group, and how its requests were read."""

    model: str | None = left_out("`tuned` or `base`.")
    task: str = Field(description="Name of the task or group.")
    tasks: Many[str] | None = Field(None, description="Tasks of a group; null for a task.")
    version: JsonValue = Field(None, description="Of the task, as the harness tells it.")
    num_fewshot: JsonValue = Field(None, description="Examples before each question.")
    seed: int | None = Field(None, description="Of the examples' choice.")
    limit: Number | None = Field(None, description="Documents asked at most; null for all.")
    documents: Count | None = Field(None, description="Documents asked.")
    requests: Count | None = Field(None, description="Requests made.")
    truncated: Count | None = Field(None, description="Requests of which something was cut.")
    tokens_min: Tokens | None = Field(None, description="Of the shortest request.")
    tokens_mean: float | None = Field(
        None, description="Mean length of a request.", json_schema_extra={"unit": "tokens"}
    )
    tokens_max: Tokens | None = Field(None, description="Of the longest request.")
    scale_min: Scale | None = Field(None, description="Least scale a request was read at.")
    scale_max: Scale | None = Field(None, description="Largest scale.")
    metric: str = Field(description="Name of the score.")
    filter: str | None = Field(None, description="What the harness made of an answer first.")
    higher_is_better: bool | None = Field(None, description="Null where the task does not say.")
    value: float = Field(description="The score.")
    stderr: float | None = Field(None, description="Its standard error; null if unknown.")


class MissingScore(Part):
    """A task or group without a score."""

    model: str | None = left_out("`tuned` or `base`.")
    task: str = Field(description="Its name.")
    reason: str = Field(description="Why, in one line.")


class Suites(Record):
    """suites.json."""

    what = "the scores of suites"
    anew = "run `e2ray suites` again"

    settings: Plain = Field(default_factory=dict, description="`evaluate.suites` of the recipe.")
    max_context_length: Length | None = Field(None, description="Longest request.")
    versions: dict[str, str | None] = Field(default_factory=dict, description="Of the libraries, by name.")
    commit: str | None = Field(None, description="Of e2ray's checkout; null outside of one.")
    started_at: str | None = Field(None, description="ISO 8601, UTC.")
    ended_at: str | None = Field(None, description="ISO 8601, UTC.")
    scores: Many[Score] = Field(description="One per model, task, score and filter.")
    missing: Many[MissingScore] = Field((), description="What has no score.")

    @classmethod
    def of_older(cls, fields: Plain) -> Plain:
        """Return the fields by today's names: earlier versions called documents samples."""
        scores = fields.get("scores")
        if not isinstance(scores, list):
            return fields
        return fields | {"scores": [renamed(score, {"samples": "documents"}) for score in scores]}


class Request(Part):
    """One request of a sample."""

    prompt: Count = Field(description="Which of the sample's prompts.")
    asked: JsonValue = Field(description="What was asked for behind it.")
    tokens: Tokens = Field(description="Of the request.")
    room: Tokens = Field(description="Kept for what is generated.")
    scale: Scale = Field(description="g it was read at.")
    cut_tokens: Tokens = Field(description="Tokens that were cut.")
    windows: Count = Field(description="Windows it was read in.")
    answers: JsonValue = Field(description="What the model said.")


class Sample(Part):
    """A line of suites-samples.jsonl: one document of a task as it was asked, for people who look."""

    model: str | None = left_out("`tuned` or `base`.")
    task: str = Field(description="Of the document.")
    document: JsonValue = Field(description="Its number in the task.")
    target: JsonValue = Field(description="What is right.")
    scores: Plain = Field(description="Of this document, by filter and name.")
    truncated: Count = Field(description="Requests of which something was cut.")
    prompts: Many[str] = Field(description="As they were written.")
    requests: Many[Request] = Field(description="How each was read, and what was said.")
