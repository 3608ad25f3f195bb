"""From a trained model folder to a folder people serve: weights, one profile per context length, the evidence.

A profile is nothing but rope parameters, since the weights know no scale (`profiles.py`). Nothing is believed: every
one is read back from the disk with plain transformers and compared with the rotary hook, which the model was trained
with, before the folder appears under its name.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from e2ray.config.base import SettingsError
from e2ray.config.methods import LinearMethod, Method
from e2ray.config.places import public
from e2ray.core.file_names import files_below, kind_left_behind
from e2ray.core.methods.linear import Linear
from e2ray.core.methods.registry import method_of
from e2ray.core.model_folder import RECORD, probe_of, recorded, refuse_damaged, seal, training_of
from e2ray.core.scales import reaching_scale, row_scale
from e2ray.data.pace import Progress
from e2ray.data.tokenizer import save_whole, serve_up_to
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.verdict import table
from e2ray.files import atomic_folder, read_json, write_json, write_sealed, write_text
from e2ray.serve.profiles import Profile, commands, make_profile
from e2ray.serve.verify import Check, profile_folder, verify
from e2ray.train.beside import card_fields

LINEAR = LinearMethod()
PICTURE = "evaluation.png"
END_OF_PNG = bytes.fromhex("0000000049454e44ae426082")
NAMES_A_PLACE = re.compile(r"(name_or_path|file|path|dir|folder)s?$")
LOCAL_PLACE = re.compile(r"[/~$]|\.{1,2}/|[A-Za-z]:\\|file:")


@dataclass(frozen=True)
class RunFacts:
    """What the model card tells about a run.

    Attributes:
        name: Of the run; the title of the card and the name served.
        base_model: Hub id of the base model, or a description of it; None for a model built from its sizes.
        settings: Resolved settings of the run, plain data.
        method: What a scale meant in training.
        facts: Further lines, e.g. {"steps": 1200, "tokens trained on": 4915200}.
    """

    name: str
    base_model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: Method = LINEAR
    facts: Mapping[str, Any] = field(default_factory=dict)


def export(
    model_folder: str | Path,
    out_folder: str | Path,
    *,
    base_context_length: int,
    context_lengths: Sequence[int],
    base_scaling: Literal["keep", "replace"] | None,
    evaluation: Mapping[str, Any] | None,
    run: RunFacts,
    picture: str | Path | None = None,
    scales: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a Hugging Face folder with one verified serving profile per context length and a model card.

    Args:
        model_folder: Safetensors, config and tokenizer as the trainer saved them; weights are linked, not rewritten.
        out_folder: Appears whole or not at all; an older one is replaced.
        base_context_length: L in tokens.
        context_lengths: W in tokens.
        base_scaling: The run's choice where its base model carried a scaling.
        evaluation: The value of evaluation.json (`rows`, `verdict`), or None without one.
        run: What the card says about the run.
        picture: evaluation.png, copied in.
        scales: The value of scales.json, copied in; a context length it names is served at its `served` scale, every
            other one at W / L.
        progress: Takes one line per profile, and one per file that is left out.

    Returns:
        `folder`, `profiles` (W -> folder) and `checks` (what loading back has shown, one per W).

    Raises:
        FileNotFoundError: If the model folder lacks a part.
        SettingsError: If a profile cannot be expressed, or differs from the hook when loaded back.
    """
    model_folder, out_folder = Path(model_folder).resolve(), Path(out_folder).resolve()
    if out_folder == model_folder or out_folder in model_folder.parents:
        raise SettingsError(f"export {out_folder}: would replace the model folder {model_folder}; name another folder")
    refuse_damaged(model_folder)
    config = _read_config(model_folder)
    measured = {row["context_length"]: row_scale(row) for row in scales["lengths"]} if scales else {}
    chosen = {length: measured[length] for length in context_lengths if length in measured}
    trained = method_of(run.method)
    with atomic_folder(out_folder) as aside:
        for line in _take_files(model_folder, aside):
            if progress is not None:
                progress(line)
        save_whole(model_folder, aside)
        serve_up_to(aside, max(base_context_length, *context_lengths))
        _mend_configs(aside, base_context_length, max(base_context_length, *context_lengths))
        profiles = [
            make_profile(
                config,
                base_context_length,
                length,
                base_scaling=base_scaling,
                scale=chosen.get(length),
                method=trained,
            )
            for length in context_lengths
        ]
        for profile in profiles:
            _write_profile(aside, profile, run.name, base_context_length)
        checks = verify(
            aside,
            base_context_length=base_context_length,
            context_lengths=context_lengths,
            scales={profile.context_length: profile.scale for profile in profiles},
            method=trained,
            progress=progress,
        )
        if scales:
            write_sealed(aside / "scales.json", scales)
        if picture is not None:
            (aside / PICTURE).write_bytes(picture_of(Path(picture)))
        of_base, unread = card_fields(model_folder)
        if unread and progress is not None:
            progress(unread)
        card = model_card(config, profiles, checks, base_context_length, evaluation, run, bool(picture), of_base)
        write_text(aside / "README.md", card)
        seal(aside, probe_of(model_folder), training=training_of(model_folder))
    return {
        "folder": str(out_folder),
        "profiles": {length: str(profile_folder(out_folder, length)) for length in context_lengths},
        "checks": [vars(check) for check in checks],
    }


def picture_of(path: Path) -> bytes:
    """Return a PNG file whose checksums hold.

    Raises:
        SettingsError: If it is damaged.
    """
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.verify()
            whole = opened.format == "PNG" and content.endswith(END_OF_PNG)
    except (OSError, SyntaxError, ValueError) as error:
        raise SettingsError(f"{path}: is damaged ({error}); run `e2ray evaluate` again") from None
    if not whole:
        raise SettingsError(f"{path}: is damaged, wanted a PNG file; run `e2ray evaluate` again")
    return content


def _read_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'}: not found; wanted the model folder of a finished run")
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _take_files(model_folder: Path, out_folder: Path) -> list[str]:
    """Link the weights, copy what else a model folder was written with, and return one line per file left behind."""
    if not any(model_folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{model_folder}: holds no *.safetensors; wanted the model folder of a finished run")
    written, told = recorded(model_folder), []
    for name in files_below(model_folder):
        if name.startswith(f"{RECORD}/"):
            continue
        weights = "/" not in name and name.endswith(".safetensors")
        kind = None if weights else kind_left_behind(name)
        if kind is not None or (written is not None and name not in written):
            told.append(f"{model_folder / name}: {kind or 'put there by somebody else'}, is left out of the export")
            continue
        (out_folder / name).parent.mkdir(parents=True, exist_ok=True)
        if weights:
            try:
                os.link((model_folder / name).resolve(), out_folder / name)
                continue
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(model_folder / name, out_folder / name)
    return told


def _mend_configs(folder: Path, base_context_length: int, longest: int) -> None:
    """Take out of a base's small configs where it lay on its owner's disk, and let text be as long as is served."""
    for name in ("tokenizer_config.json", GENERATION_CONFIG_NAME):
        path = folder / name
        known = read_json(path, wanted="settings of a base model") if path.is_file() else None
        if not isinstance(known, dict):
            continue
        told = _without_places(known)
        if name == GENERATION_CONFIG_NAME and told.get("max_length") == base_context_length:
            told["max_length"] = longest
        if told != known:
            write_json(path, told)


def _without_places(value: Any) -> Any:
    """Return settings without those that name a file or folder of somebody's disk, at any depth."""
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_places(each)
        for key, each in value.items()
        if not (NAMES_A_PLACE.search(str(key)) and isinstance(each, str) and LOCAL_PLACE.match(each))
    }


def _write_profile(aside: Path, profile: Profile, name: str, base_context_length: int) -> None:
    folder = profile_folder(aside, profile.context_length)
    lines = commands(profile, model=".", name=f"{name}-{profile.context_length}")
    write_json(folder / "config_override.json", profile.override)
    write_json(
        folder / "commands.json",
        {"context_length": profile.context_length, "scale": profile.scale, **lines},
    )
    paper = reaching_scale(profile.context_length, base_context_length)
    why = f"= {profile.context_length} / {base_context_length}"
    if profile.scale != paper:
        why = f"was measured better at this length than W / L = {paper:g}, on the documents that chose it"
    write_text(
        folder / "README.md",
        f"# Serving {profile.context_length} tokens\n\nScale {profile.scale:g} {why}. The commands below run in "
        "the export's folder; a hub id, or the folder's path, works in place of `.`.\n\n"
        f"{_command_blocks(lines)}\n{_serving_notes(profile, base_context_length)}",
    )


def _command_blocks(lines: Mapping[str, str]) -> str:
    llama_cpp = lines["llama.cpp"]
    told = f" {llama_cpp}" if llama_cpp.startswith("cannot") else f"\n\n```sh\n{llama_cpp}\n```"
    return (
        f"transformers 5 or newer:\n\n```python\n{lines['transformers']}```\n\n"
        f"vLLM:\n\n```sh\n{lines['vllm']}\n```\n\nSGLang:\n\n```sh\n{lines['sglang']}\n```\n\n"
        f"llama.cpp, with a GGUF file that its converter made of this folder:{told}\n"
    )


def _serving_notes(profile: Profile, base_context_length: int) -> str:
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


def model_card(
    config: PreTrainedConfig,
    profiles: Sequence[Profile],
    checks: Sequence[Check],
    base_context_length: int,
    evaluation: Mapping[str, Any] | None,
    run: RunFacts,
    has_picture: bool,
    of_base: Mapping[str, Any],
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
        + _command_blocks(lines)
        + "\nEach profile's own README.md and commands.json hold its lines."
    )


def _evidence(evaluation: Mapping[str, Any] | None, has_picture: bool) -> str:
    if evaluation is None:
        return "Not evaluated."
    text = table([Cell(**row) for row in evaluation["rows"]], evaluation["verdict"]).rstrip()
    return f"{text}\n\n![NLL by window and scale]({PICTURE})" if has_picture else text


def _plain(value: Any) -> Any:
    """Return settings as YAML can write them: mappings and lists only."""
    return json.loads(json.dumps(value, default=dict))
