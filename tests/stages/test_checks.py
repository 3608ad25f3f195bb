"""`e2ray check` tells what a run would stumble over; nothing is trained here and no cluster is started."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from observed import without_ray
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.config.load import apply_override, validate
from e2ray.data.tokenizer import load_tokenizer, train_byte_level_bpe, vocabulary_size
from e2ray.evaluate import base_length
from e2ray.records.folders import RunFolder
from e2ray.stages import checks, pipeline
from e2ray.stages import compare as comparing
from e2ray.stages import evaluate as evaluation
from e2ray.stages import train as training
from e2ray.stages import tune as tuning
from e2ray.stages.check import check
from e2ray.stages.run import resolve

SMALL_TOKENIZER = {"kind": "byte_level_bpe", "vocab_size": 280, "training_bytes": 3000}


@pytest.fixture
def recipe(small, texts):
    """The recipe in miniature on twelve short texts."""
    small["data"] |= {"corpus": [{"kind": "text", "paths": [f"{texts}/*.txt"]}], "tokenizer": SMALL_TOKENIZER}
    small["data"] |= {"validation_share": 0.4, "shard_rows": 16}
    return small | {"train": {"steps": 8, "batch_sequences": 4}}


def config_of(recipe, *assignments):
    changed = json.loads(json.dumps(recipe))
    for assignment in assignments:
        apply_override(changed, assignment)
    return validate(changed, source="test")


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes a tiny checkpoint with some values in its config.json changed."""

    def write(**changes):
        folder = tmp_path / "checkpoint"
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=32, **sizes)).save_pretrained(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return {"kind": "pretrained", "path": str(folder)}

    return write


def test_a_sound_recipe_is_one_line(recipe, capsys):
    check(config_of(recipe))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("small: sound. L 32, window 32, scales up to 4, contexts up to 128 tokens")


@pytest.mark.parametrize(
    ("assignments", "lines"),
    [
        (["train.warmup_steps=9"], ["train.warmup_steps: the warm-up of 9 steps is not over"]),
        (
            ["data.window=128", "train.schedule=constant", "train.final_lr_share=0.5"],
            ["positions.placement: prefix is without effect", "train.final_lr_share: 0.5 is without effect"],
        ),
        (
            ["cluster.object_store_mib=16000000"],
            ["on this machine: cluster.object_store_mib: 16000000 MiB do not fit"],
        ),
        (["model.attention=flash_attention_2"], ["on this machine: model.attention: flash_attention_2 needs a GPU"]),
    ],
)
def test_what_is_without_effect_is_told_in_one_plain_line_each_and_the_recipe_is_sound(
    recipe, capsys, assignments, lines
):
    check(config_of(recipe, *assignments))
    *told, sound = capsys.readouterr().out.splitlines()
    assert len(told) == len(lines) and sound.startswith("small: sound.")
    for found, wanted in zip(told, lines, strict=True):
        assert found.startswith(f"warning: {wanted}")


def test_a_choice_about_a_scaling_that_is_not_there_is_told_the_same_way(recipe, checkpoint, capsys):
    recipe["model"] = checkpoint() | {"base_scaling": "keep"}
    check(config_of(recipe))
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith("warning: model.base_scaling: keep is without effect, since ")


def test_a_setting_of_a_ray_that_is_not_started_here_is_told(recipe, monkeypatch):
    config = config_of(recipe, "cluster.object_store_mib=512")
    assert resolve(config).ignored == ()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (line,) = resolve(config).ignored
    assert line.startswith("cluster.object_store_mib: 512 is without effect, since RAY_ADDRESS names a cluster")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.attention=flash_attention_2", r"model\.attention: flash_attention_2 needs a GPU, the device is cpu"),
        ("cluster.object_store_mib=16000000", r"cluster\.object_store_mib: 16000000 MiB do not fit into the \d+ MiB"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_where_a_run_starts_on_it(recipe, monkeypatch, assignment, message):
    run = resolve(config_of(recipe, assignment))
    with pytest.raises(SettingsError, match=message):
        checks.refuse_before_start(run)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # another machine's affair
    checks.refuse_before_start(run)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SettingsError, match=message):
        checks.refuse_before_start(run)


@pytest.mark.parametrize(("store_mib", "limit_mib", "told"), [(80, 79, "79"), (300, 0.25, "0.25"), (80, 80, None)])
def test_a_limit_of_files_that_rays_object_store_does_not_fit_into_is_refused(
    recipe, limited, store_mib, limit_mib, told
):
    run = resolve(config_of(recipe, f"cluster.object_store_mib={store_mib}"))
    with limited(int(limit_mib * 2**20)):
        found = checks.unfit_here(run)
    if told is None:
        assert found == []
        return
    (line,) = found
    wanted = f"cluster.object_store_mib: {store_mib} MiB are one file, and files may not grow beyond {told} MiB here"
    assert line == wanted + "; raise the limit (`ulimit -f`)"


@pytest.mark.parametrize("said", ["step-7", "nothing", "", None])
def test_checkpoints_that_nobody_points_to_are_told_before_any_worker_starts(recipe, said):
    config = config_of(recipe)
    checkpoints = resolve(config).folder / "checkpoints"
    (checkpoints / "step-4").mkdir(parents=True)
    (checkpoints / "step-4" / "manifest.json").write_text("{}")
    if said is not None:
        (checkpoints / "latest").write_text(said)
    for ask in (check, lambda config: checks.refuse_lost_checkpoints(resolve(config))):
        with pytest.raises(SettingsError, match=r"`echo step-4 > .+/checkpoints/latest'?` names the newest one"):
            ask(config)
    (checkpoints / "latest").write_text("step-4")
    check(config)
    (checkpoints / "latest").unlink()
    (checkpoints.parent / "model").mkdir()  # which is what a finished run is read from
    checks.refuse_lost_checkpoints(resolve(config))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"kind": "factors", "factors": [1.0, 2.0, 3.0], "max_scale": 4},
            r"^positions\.method\.factors: has 3 numbers, .* 8 pairs",
        ),
        ({"kind": "truncated"}, r"^positions\.method: truncated: .* which no rope type .* or set export: null$"),
    ],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_method_that_the_model_or_its_servers_cannot_carry_is_told_at_check(
    recipe, checkpoint, method, message, pretrained
):
    recipe["positions"]["method"] = method
    recipe["export"] = {"context_lengths": [32, 128]}
    if pretrained:
        recipe["model"] = checkpoint()
        message = (
            message.replace("8 pairs", r"\d+ pairs")
            .replace(r"^positions\.method: truncated", "truncated")
            .replace("or set export: null$", "")
        )
    with pytest.raises(SettingsError, match=message):
        check(config_of(recipe))
    recipe["positions"]["method"] = {"kind": "yarn"}
    check(config_of(recipe))


def test_a_lane_whose_method_the_model_cannot_carry_is_told_at_check_by_its_name(recipe):
    positions = {"preset": "e2yarn", "max_scale": 4}
    lanes = {"sound": {"positions": positions}}
    recipe["compare"] = {"lanes": [], "untrained": [], "own": lanes}
    check(config_of(recipe))
    listed = {"kind": "factors", "factors": [1.0, 2.0, 3.0], "max_scale": 4}
    lanes["wrong, listed"] = {"positions": positions | {"method": listed}}
    with pytest.raises(SettingsError, match=r"^compare\.own\.wrong, listed\.positions\.method\.factors: has 3 numbers"):
        check(config_of(recipe))


def test_the_lane_best_trains_for_what_its_study_has_found(recipe, tmp_path):
    found = recipe | {"name": "found", "positions": {"preset": "e2yarn", "max_scale": 4}}
    found["train"] = recipe["train"] | {"lr": 7e-4, "objective": {"next_token": 0.25, "distill": 0.75}}
    path = tmp_path / "best.yaml"
    path.write_text(json.dumps(found))
    recipe["compare"] = {"lanes": ["e2llm", "best"], "best": str(path)}
    config = config_of(recipe)
    best = checks.best_of(config, config.compare)
    assert (best.train.objective.distill, best.train.objective.next_token, best.train.lr) == (0.75, 0.25, 7e-4)
    assert best.positions.method.kind == "yarn" and best.train.steps == config.train.steps


@pytest.fixture
def weights(checkpoint):
    """A function that writes a tiny checkpoint with weights, and returns the section of a recipe and their file."""

    def write(**changes):
        section = checkpoint(**changes)
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(section["path"]))
        model.save_pretrained(section["path"])
        return section, Path(section["path"]) / "model.safetensors"

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("lm_head.weight"), "1 of its weights are missing, lm_head.weight among them"),
        (lambda held: held.update(more=torch.zeros(2)), "1 of its weights are left over, .* more among them"),
        (lambda held: held.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight has the shape \[3\]"),
        (
            lambda held: [held.update({f"module.{name}": held.pop(name)}) for name in list(held)],
            "begin with 'module.', module.lm_head.weight among them, wanted lm_head.weight",
        ),
        (
            lambda held: [held.update({f"module.{name}": held.pop(name)}) for name in list(held) if "head" not in name],
            "begin with 'module.', module.model.*, wanted model.*; save the model that the wrapper holds",
        ),
    ],
)
def test_weights_that_are_not_whole_are_told_at_check(recipe, weights, capfd, change, message):
    section, path = weights()
    check(config_of(recipe | {"model": section}))
    held = load_file(path)
    change(held)
    save_file(held, path, {"format": "pt"})
    capfd.readouterr()
    with pytest.raises(SettingsError, match=rf"model\.path \S+checkpoint: .*{message}"):
        check(config_of(recipe | {"model": section}))
    assert capfd.readouterr() == ("", "")  # nothing of transformers beside it


def test_a_tokenizer_with_ids_beyond_the_embeddings_is_told_at_check(recipe, weights, tmp_path):
    section, _ = weights(vocab_size=290)
    made = train_byte_level_bpe(["word of a text"] * 9, ByteLevelBpe(vocab_size=270))
    made.save_pretrained(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 289  # ids with a gap
    path.write_text(json.dumps(content))
    recipe["data"]["tokenizer"] = {"kind": "pretrained", "path": str(tmp_path / "t")}
    tokenizer = load_tokenizer(tmp_path / "t")
    assert len(tokenizer) < vocabulary_size(tokenizer) == 290
    check(config_of(recipe | {"model": section}))
    vocabulary[last] = 290
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="has 290 token embeddings, the tokenizer 291 tokens; name the model's own"):
        check(config_of(recipe | {"model": section}))


@pytest.mark.parametrize(
    ("told", "method"),
    [({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"), ({"quant_method": "weird"}, "weird")],
)
def test_a_quantised_base_is_refused(recipe, checkpoint, told, method):
    section = checkpoint(quantization_config=told)
    with pytest.raises(SettingsError, match=rf"its weights are quantised \({method}\), wanted bf16, fp16 or fp32"):
        check(config_of(recipe | {"model": section}))


def test_what_lora_does_otherwise_than_asked_for_is_told_in_one_line(recipe, checkpoint, capsys):
    base = checkpoint(tie_word_embeddings=True)
    lora = {"rank": 2, "targets": ["embed_tokens", "q_proj", "v_proj"], "trainable": ["self_attn"]}
    recipe["model"] = base | {"lora": lora}
    check(config_of(recipe))
    shared, inside, sound = capsys.readouterr().out.splitlines()
    assert shared.startswith("warning: model.lora.targets: model.embed_tokens (with lm_head) share a weight")
    assert inside.startswith("warning: model.lora.targets: model.layers.0.self_attn.q_proj, ") and ": sound." in sound


def test_attention_is_refused_on_a_cluster_without_gpus(recipe):
    run = resolve(config_of(recipe, "model.attention=flash_attention_2"))
    checks.refuse_undoable(run, use_gpu=True)
    with pytest.raises(SettingsError, match=r"flash_attention_2 needs a GPU"):
        checks.refuse_undoable(run, use_gpu=False)


# ---- the model's config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-5, 0, 1, 10**20])
def test_a_config_with_a_context_length_that_cannot_be_is_refused(recipe, checkpoint, length):
    recipe["model"] = checkpoint(max_position_embeddings=length)
    with pytest.raises(
        SettingsError, match=rf"its config\.json says that it was pretrained with {length} tokens, wanted"
    ):
        check(config_of(recipe))
    config = config_of(recipe | {"model": recipe["model"] | {"base_context_length": 32}})
    assert resolve(config).base_context_length == 32


def test_the_context_length_before_a_scaling_is_looked_at_too(recipe, checkpoint):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": -8}
    recipe["model"] = checkpoint(rope_parameters=rope) | {"base_scaling": "replace"}
    with pytest.raises(SettingsError, match=r"was pretrained with -8 tokens"):
        resolve(config_of(recipe))


@pytest.mark.parametrize("kind", ["built", "pretrained"])
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"targets": ["query"]},
            r"model\.lora\.targets: LlamaForCausalLM has no module 'query'; its linear modules are",
        ),
        ({"targets": ["q_proj", "model.layers.9.mlp"]}, r"has no module 'model\.layers\.9\.mlp'"),
        ({"trainable": ["wte"]}, r"model\.lora\.trainable: LlamaForCausalLM has no module 'wte'"),
    ],
)
def test_adapters_on_modules_that_are_not_there_are_refused_without_weights(recipe, checkpoint, kind, lora, message):
    recipe["model"] = (recipe["model"] if kind == "built" else checkpoint()) | {"lora": lora}
    with pytest.raises(SettingsError, match=message):
        check(config_of(recipe))


def test_adapters_on_modules_that_are_there_are_sound(recipe, checkpoint, capsys):
    recipe["model"] = checkpoint() | {"lora": {"targets": ["gate_proj"], "trainable": ["embed_tokens"]}}
    check(config_of(recipe))
    assert "sound" in capsys.readouterr().out


# ---- storage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("/dev/null", r"storage: /dev/null is no folder, wanted a folder"),
        ("/dev/null/runs", r"storage: /dev/null is no folder"),
        ("/etc/hostname", r"storage: /etc/hostname is a file, wanted a folder"),
        ("/etc/hostname/a/b", r"storage: /etc/hostname is a file"),
        ("/" + "x" * 300, r"storage: has a name of 300 bytes in it, no file system takes more than 255"),
        ("/" + "x/" * 3000, r"storage: /x/.* cannot be used \(File name too long\)"),
    ],
)
def test_a_storage_that_takes_no_folder_is_refused(recipe, storage, message):
    with pytest.raises(SettingsError, match=message):
        check(config_of(recipe | {"storage": storage}))


# ---- sources and held-out documents -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["data.min_tokens=100000"],
            r"data\.min_tokens: no document of data\.corpus\.0 can have 100000 tokens, \d+ at most",
        ),
        (
            ["data.corpus.0.min_tokens=100000"],
            r"data\.corpus\.0\.min_tokens: no document of data\.corpus\.0 can have 100000",
        ),
        (
            ["evaluate.skip_documents=5000"],
            r"evaluate\.skip_documents: 5000 leaves none of the at most \d+ held-out documents of at least \d+ tokens",
        ),
        (
            ["data.validation_corpus=[{kind: passkey, max_characters: 9, min_tokens: 99999}]"],
            r"data\.validation_corpus\.0\.min_tokens: no document of data\.validation_corpus\.0 can have 99999",
        ),
        (
            ["evaluate.document_tokens=20"],
            r"evaluate\.document_tokens: cuts documents to 20 tokens, wanted at least the",
        ),
        (["compare={lanes: [best], best: /gone.yaml}"], r"/gone\.yaml: no such recipe"),
        (
            ["compare={lanes: [pi_long]}", "train.batch_sequences=5"],
            r"compare\.lanes: pi_long has rows of 128 tokens, a step",
        ),
    ],
)
def test_what_cannot_be_trained_or_measured_is_refused_before_anything_is_made(recipe, assignments, message):
    with pytest.raises(SettingsError, match=message):
        check(config_of(recipe, *assignments))
    assert not Path(recipe["storage"]).exists()


def test_a_weight_too_small_for_a_row_is_refused_at_check(recipe):
    recipe["data"]["corpus"] = [recipe["data"]["corpus"][0] | {"weight": weight} for weight in (1.0, 1e-7)]
    with pytest.raises(SettingsError, match=r"data\.corpus: weight 1e-07 is under a ten-thousandth of all"):
        check(config_of(recipe))


@pytest.mark.parametrize("name", ["more.txt.gz", "more.txt"])
def test_a_packed_file_may_hold_long_documents_whatever_its_name(recipe, texts, name):
    folder = texts / "packed"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(b"word " * 200_000))
    recipe["data"]["corpus"][0]["paths"] = [f"{folder}/*"]
    checks.refuse_sources(config_of(recipe, "data.min_tokens=100000").data)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["evaluate.skip_documents=12"],
            r"evaluate\.skip_documents: 12 leaves none of the \d+ held-out documents of at least",
        ),
        (["evaluate.windows=[4096]"], r"the longest of \d+ held-out documents has \d+ tokens, wanted at least 4096"),
    ],
)
def test_documents_that_are_not_there_are_told_at_check_where_shards_stand_and_else_before_any_training(
    recipe, monkeypatch, tmp_path, assignments, message
):
    from contextlib import nullcontext

    recipe["evaluate"].pop("document_tokens")
    with without_ray(tmp_path):
        monkeypatch.setattr(pipeline, "cluster", lambda settings: nullcontext())
        monkeypatch.setattr("e2ray.train.launch.resources", lambda settings: None)
        monkeypatch.setattr(training, "_train", lambda *arguments: pytest.fail("it trained"))
        with pytest.raises(SettingsError, match=message):
            pipeline.execute(config_of(recipe, *assignments))
    with pytest.raises(SettingsError, match=message):  # the shards stand now
        check(config_of(recipe | {"name": "other"}, *assignments))


def test_shards_that_were_made_otherwise_are_told(recipe, tmp_path, capsys):
    recipe["data"]["shards"] = str(tmp_path / "mine")
    with without_ray(tmp_path):
        training.prepare(resolve(config_of(recipe)))
    capsys.readouterr()
    for assignment, path in (
        ("data.validation_share=0.1", "data.validation_share"),
        ("data.pack=document", "data.pack"),
        ("data.min_tokens=9", "data.min_tokens"),
        ("data.on_bad=skip", "data.on_bad"),
        ("data.near_duplicates=0.8", "data.near_duplicates"),
        ("data.tokenizer.vocab_size=300", "data.tokenizer"),
    ):
        check(config_of(recipe, assignment))
        told, _ = capsys.readouterr().out.splitlines()
        assert told.startswith(
            f"warning: {path}: is without effect, since the shards of data.shards were made with another"
        )
    check(config_of(recipe))
    assert "warning" not in capsys.readouterr().out
    check(config_of(recipe, "data.corpus.0.paths=[/gone/*.txt]"))  # nobody reads them any more
    told, sound = capsys.readouterr().out.splitlines()
    assert told.startswith("warning: data.corpus: is without effect") and f" rows in {tmp_path / 'mine'};" in sound
    with pytest.raises(SettingsError, match="32-token rows, the run wants 16; rerun prepare"):
        check(config_of(recipe, "data.window=16"))


def test_how_far_a_base_reads_is_measured_once_there_is_held_out_text(
    recipe, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluation, "wants_gpu", lambda settings: False)
    monkeypatch.setattr(
        evaluation, "remote", lambda name, function, *arguments, use_gpu, tells=False: function(*arguments)
    )
    with pytest.raises(SettingsError, match=r"^--measure: the base is pretrained by the run at L"):
        check(config_of(recipe), measure=True)
    recipe["model"] = checkpoint()
    config = config_of(recipe)
    with pytest.raises(
        SettingsError, match=r"^--measure: reads held-out text, and .*shards.* is not made yet; run `e2r"
    ):
        check(config, measure=True)
    with without_ray(tmp_path):
        shards = training.prepare(resolve(config))
        capsys.readouterr()
        check(config, measure=True)
        (told, _) = [line for line in capsys.readouterr().out.splitlines() if "base: reads" in line or "sound" in line]
        assert re.match(r"(warning: )?base: reads \d+ tokens", told)
        run = resolve(config)
        run.folder.mkdir(parents=True)
        found = evaluation.base_length_of(run, shards, config.model)
        assert found.claimed == 32 and {row.window for row in found.rows} >= {8, 16, 24, 32}
        assert base_length.told(found) == told
        RunFolder(run.folder).base_length.chmod(0o444)
        assert evaluation.base_length_of(run, None, None) == found  # kept, and not measured again


def test_a_source_that_gives_nothing_beside_others_is_told_with_the_reasons_and_a_small_vocabulary_too(
    recipe, texts, capsys
):
    copies = texts / "copies"
    copies.mkdir()
    text = " ".join(f"word {n} of a text that stands here once and for all" for n in range(30))
    for n in range(4):
        (copies / f"{n}.txt").write_text(text if n else "short")
    (texts / "00.txt").write_text(text)
    first = recipe["data"]["corpus"][0]
    again = {"kind": "text", "paths": [f"{copies}/*.txt"], "min_tokens": 9}
    recipe["data"]["corpus"] = [first, again, first | {"min_tokens": 2000}]
    with without_ray(texts):
        training.prepare(resolve(config_of(recipe, "data.tokenizer.vocab_size=3000", "data.near_duplicates=0.9")))
    told = capsys.readouterr().out
    reasons = "1 shorter than min_tokens, 3 near duplicates"
    assert f"prepare: data.corpus.1 gives nothing, of its documents are left out: {reasons}\n" in told
    assert "data.corpus.2 gives nothing, of its documents are left out: 12 shorter than min_tokens\n" in told
    assert re.search(r"the text makes \d+ tokens, fewer than data\.tokenizer\.vocab_size \(3000\)", told)


def test_warnings_are_told_at_the_start_of_every_command_that_trains(recipe, tmp_path, monkeypatch, capsys):
    """Each of them ends at what it would need a cluster for."""
    stop = SettingsError("no further")

    def refuse(*arguments):
        raise stop

    monkeypatch.setattr(checks, "refuse_before_start", refuse)
    recipe |= {"pretrain": {"steps": 1, "batch_sequences": 4}, "compare": {"lanes": ["e2llm"], "long_window_seeds": 3}}
    study = {"trials": 6, "baselines": ["e2llm"], "startup_trials": 3, "sampler": "random", "early_stopping": None}
    recipe |= {"search": study}
    config = config_of(recipe, "train.warmup_steps=9")
    for name, command, own in (
        ("run", pipeline.execute, None),
        ("study", lambda config: tuning.tune(config, resume=False), "search.startup_trials: 3"),
        ("comparison", comparing.compare, "compare.long_window_seeds: 3"),
    ):
        with pytest.raises(SettingsError, match="no further"):
            command(config.model_copy(update={"name": name}))
        told = [line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines()]
        assert any(line.startswith("train.warmup_steps: ") for line in told), name
        assert own is None or any(line.startswith(own) for line in told), name


def test_the_line_of_a_check_is_all_that_a_person_sees(recipe, tmp_path):
    """In a process of its own: no warning of Python's, with the place in the code, on standard error."""
    import subprocess
    import sys

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"train": {"steps": 4, "batch_sequences": 4, "warmup_steps": 7}}))
    command = [sys.executable, "-m", "e2ray.cli", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    told, sound = done.stdout.splitlines()
    assert told.startswith("warning: train.warmup_steps: the warm-up of 7 steps") and sound.startswith("small: sound.")


@pytest.mark.parametrize("key", ["storage", "data.shards"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/dev/null/x", "/dev/null is no folder, wanted a folder or a place for one"),
        ("{file}", "words is a file, wanted a folder or a place for one"),
        ("{file}/x", "words is a file, wanted a folder or a place for one"),
        ("/proc/xx", r"/proc/xx\S* cannot be used \(.*\)"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_at_check_by_its_setting(recipe, tmp_path, key, place, message):
    (tmp_path / "words").write_text("words")
    config = config_of(recipe, f"{key}={place.format(file=tmp_path / 'words')}")
    with pytest.raises(SettingsError, match=rf"{key}: .*{message}.*; choose another {key}"):
        check(config)
