"""The model card of an export: what it was made of, how to serve it, the evidence and the settings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from transformers import PreTrainedConfig

from e2ray.config.methods import LinearMethod, Method
from e2ray.config.uris import public
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.registry import method_of
from e2ray.evaluate.verdict import table
from e2ray.records.evaluation import Evaluation
from e2ray.records.folders import ExportFolder
from e2ray.serve.profiles import Profile, commands
from e2ray.serve.verify import Check

LINEAR = LinearMethod()
PICTURE = ExportFolder.picture.name


@dataclass(frozen=True)
class RunFacts:
    """What the model card says about a run.

    Attributes:
        name: Of the run; the title of the card and the name served.
        base_model: Hub id of the base model, or a description of it; None for a model built from its sizes.
        settings: Resolved settings of the run, plain data.
        method: What a scale meant in training.
        facts: Further lines, e.g. {"steps": 1200, "tokens trained on": 4915200}.
    """

    name: str
    base_model: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    method: Method = LINEAR
    facts: Mapping[str, object] = field(default_factory=dict)


def model_card(
    config: PreTrainedConfig,
    profiles: Sequence[Profile],
    checks: Sequence[Check],
    base_context_length: int,
    evaluation: Evaluation | None,
    run: RunFacts,
    has_picture: bool,
    of_base: Mapping[str, object],
) -> str:
    """Return the model card: YAML front matter, how to serve, the evidence and the settings.

    `of_base` holds the fields of the base model's own card: its licence, languages, data sets and so on stay.
    """
    is_hub_id = bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", run.base_model or ""))
    tags = of_base.get("tags")
    own = ["long-context", "e2-llm", "e2ray", config.model_type]
    front = {
        **of_base,
        "library_name": "transformers",
        "pipeline_tag": of_base.get("pipeline_tag", "text-generation"),
        **({"base_model": run.base_model, "base_model_relation": "finetune"} if is_hub_id else {}),
        "tags": list(dict.fromkeys([*tags, *own] if isinstance(tags, list) else own)),
    }
    method = method_of(run.method)
    read_by = "" if isinstance(method, Linear) else f" that act on the frequencies as in {method.source}"
    facts = {
        "base model": run.base_model or "built from its sizes",
        "base context length": f"{base_context_length} tokens",
        **run.facts,
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {run.name}",
        "One checkpoint for every context length: it was trained on short windows with sampled position scales "
        f"(E2-LLM, arXiv:2401.06951){read_by}, and its weights know no scale. Pick the profile of the context length "
        "you need.",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
        "## Serving\n\n" + _serving_table(checks) + "\n\n" + _serving_example(profiles[-1], run.name),
        "## Evidence\n\n" + _evidence(evaluation, has_picture),
        f"## Settings\n\n```yaml\n{yaml.safe_dump(public(_plain(run.settings)), sort_keys=False)}```",
    ]
    return "\n\n".join(sections) + "\n"


def command_blocks(lines: Mapping[str, str]) -> str:
    """Return the lines that start each server, as Markdown."""
    llama_cpp = lines["llama.cpp"]
    block = f" {llama_cpp}" if llama_cpp.startswith("cannot") else f"\n\n```sh\n{llama_cpp}\n```"
    return (
        f"transformers 5 or newer:\n\n```python\n{lines['transformers']}```\n\n"
        f"vLLM:\n\n```sh\n{lines['vllm']}\n```\n\nSGLang:\n\n```sh\n{lines['sglang']}\n```\n\n"
        f"llama.cpp, with a GGUF file that its converter made of this folder:{block}\n"
    )


def serving_notes(profile: Profile, base_context_length: int) -> str:
    """Return what to heed when a profile is served, as Markdown."""
    length = profile.server_override.get("max_position_embeddings", base_context_length)
    rope = profile.override["rope_parameters"]
    if rope.get("rope_type") in ("linear", "proportional"):
        room = (
            f"`max_position_embeddings` is {length}: servers multiply it by the factor, so do not raise it, or the "
            "factor would count twice."
        )
    elif rope.get("rope_type") == "yarn":
        room = f"`max_position_embeddings` is {length}: for `yarn` vLLM multiplies the original length and SGLang none."
    else:
        known = {"longrope": "`longrope`", "default": "a plain RoPE of another base frequency"}
        kind = known.get(rope.get("rope_type", ""), "a model with rope parameters per layer type")
        room = f"`max_position_embeddings` is {length} here, since servers do not multiply it for {kind}."
    return (
        f"- {room}\n"
        "- The servers must run on transformers 5 or newer, which reads `rope_parameters`; an older one would ignore "
        "them.\n"
        "- One scale per server process: keys in a cache are already rotated, so a request keeps its scale.\n"
        "- Changing `rope_parameters` of a model that is loaded has no effect; pass them before.\n"
    )


def _serving_table(checks: Sequence[Check]) -> str:
    rows = [
        f"| {check.context_length} | {check.scale:g} | `serving/{check.context_length}/` | "
        f"{check.logit_difference:.1e} | {check.logit_noise:.1e} |"
        for check in checks
    ]
    return (
        "| context length | scale | profile | logits differ by | one ulp makes |\n"
        "| ---: | ---: | :--- | ---: | ---: |\n"
        + "\n".join(rows)
        + "\n\nEach profile was loaded back with plain transformers in fp32. Its frequencies are those of the training "
        "up to float32's rounding, and with the very same angles its layers and logits equal the trained model's. With "
        "its own angles the logits of a token differ by what stands in the last but one column (the largest "
        "difference, the median over tokens); one unit in the last place of the angles makes of them what stands in "
        "the last."
    )


def _serving_example(profile: Profile, name: str) -> str:
    lines = commands(profile, model=".", name=f"{name}-{profile.context_length}")
    return (
        f"For {profile.context_length} tokens, from this folder (a hub id works in place of `.`):\n\n"
        + command_blocks(lines)
        + "\nEach profile's own README.md and commands.json hold its lines."
    )


def _evidence(evaluation: Evaluation | None, has_picture: bool) -> str:
    if evaluation is None:
        return "Not evaluated."
    text = table(evaluation.rows, evaluation.verdict).rstrip()
    return f"{text}\n\n![NLL by window and scale]({PICTURE})" if has_picture else text


def _plain(value: object) -> object:
    """Return settings as YAML can write them: mappings and lists only."""
    return json.loads(json.dumps(value, default=dict))
