import json
import math
import shlex
import shutil

import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from e2ray.config.base import SettingsError
from e2ray.core.model_folder import seal
from e2ray.core.rope import RotaryHook
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.verdict import verdict
from e2ray.records.evaluation import Evaluation
from e2ray.records.scales import ScaleRow, Scales
from e2ray.serve.card import RunFacts
from e2ray.serve.export import export
from e2ray.serve.generate import Generator
from e2ray.serve.profiles import commands, make_profile
from e2ray.serve.verify import verify
from e2ray.testing.served import save_tokenizer

L = 64
LENGTHS = (32, 192, 1024)
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": L,
    "initializer_range": 0.1,  # attention that looks at positions, so that a wrong angle shows in the logits
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500_000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
RUN = RunFacts("demo", base_model="example/base-64", settings={"seed": 3}, facts={"steps": 1234})


def llama(**changes):
    return LlamaForCausalLM(
        LlamaConfig(**(SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}} | changes))
    )


def qwen3():
    return Qwen3ForCausalLM(
        Qwen3Config(**SIZES, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    )


def gemma3():
    layer_types = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, layer_types=layer_types, sliding_window=16))


MODELS = {
    "llama": (llama, None),
    "qwen3": (qwen3, None),
    "gemma3": (gemma3, None),
    "llama3 kept": (lambda: llama(rope_parameters=LLAMA3), "keep"),
    "yarn kept": (lambda: llama(rope_parameters=YARN), "keep"),
    "linear kept": (lambda: llama(rope_parameters=LINEAR), "keep"),
}


def save_model(model, folder):
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, (build, _) in MODELS.items():
        torch.manual_seed(0)
        save_model(build(), root / name)
    return root


def run_export(folders, out, name="llama", **changes):
    settings = {
        "base_context_length": L,
        "context_lengths": LENGTHS,
        "base_scaling": MODELS[name][1] if name in MODELS else None,
        "evaluation": None,
        "run": RUN,
    }
    return {"checks": [vars(check) for check in export(folders / name, out, **(settings | changes))]}


@pytest.mark.parametrize("name", MODELS)
def test_every_profile_loaded_by_plain_transformers_gives_the_hooks_logits(folders, tmp_path, name):
    result = run_export(folders, tmp_path / "out", name)
    trained = AutoModelForCausalLM.from_pretrained(folders / name).eval()
    hook = RotaryHook(trained)
    tokens = torch.randint(256, (1, 96), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        unscaled = trained(tokens).logits
    for length in LENGTHS:
        override = json.loads((tmp_path / "out" / "serving" / str(length) / "config_override.json").read_text())
        config = AutoConfig.from_pretrained(tmp_path / "out", **override)
        served = AutoModelForCausalLM.from_pretrained(tmp_path / "out", config=config).eval()
        with torch.no_grad(), hook.applied(max(1.0, length / L)):
            torch.testing.assert_close(served(tokens).logits, trained(tokens).logits, rtol=0, atol=1e-4)
            if length > L:
                assert (trained(tokens).logits - unscaled).abs().max() > 0.01
    assert [check["context_length"] for check in result["checks"]] == list(LENGTHS)
    assert all(check["max_logit_difference"] <= 1e-4 for check in result["checks"])
    assert result["checks"][-1]["tokens"] == 512


def test_the_exported_folder_itself_is_the_base_at_scale_1(folders, tmp_path):
    run_export(folders, tmp_path / "out", "llama3 kept", context_lengths=(128,))
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == LLAMA3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer.encode("long context")) == "long context"
    assert (tmp_path / "out" / "model.safetensors").samefile(folders / "llama3 kept" / "model.safetensors")


@pytest.mark.parametrize(("lengths", "wanted"), [((64, 256, 128), 256), ((32,), L)])
def test_the_tokenizer_comes_with_all_its_templates_and_takes_the_longest_text(folders, tmp_path, lengths, wanted):
    model = tmp_path / "model"
    shutil.copytree(folders / "llama", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = L
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}
    tokenizer.save_pretrained(model)
    run_export(tmp_path, tmp_path / "out", "model", context_lengths=lengths)
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.chat_template == tokenizer.chat_template
    assert found.model_max_length == wanted
    assert AutoTokenizer.from_pretrained(model).model_max_length == L


def test_plain_rope_is_served_by_linear_with_all_three_keys(folders):
    config = AutoConfig.from_pretrained(folders / "qwen3")
    profile = make_profile(config, L, 192, base_scaling=None)
    assert profile.override == {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e6}}
    assert isinstance(profile.override["rope_parameters"]["factor"], float)
    assert make_profile(config, L, 32, base_scaling=None).override["rope_parameters"]["factor"] == 1.0


def test_gemma3_scales_full_attention_only(folders):
    config = AutoConfig.from_pretrained(folders / "gemma3")
    rope = make_profile(config, L, 256, base_scaling=None).override["rope_parameters"]
    assert rope["sliding_attention"] == config.rope_parameters["sliding_attention"]
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}


def test_a_kept_yarn_keeps_its_attention_factor(folders):
    config = AutoConfig.from_pretrained(folders / "yarn kept")
    profile = make_profile(config, L, 128, base_scaling="keep")
    rope = profile.override["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert rope["attention_factor"] == pytest.approx(0.1 * math.log(4.0) + 1)  # YaRN's, arXiv:2309.00071
    servers = profile.server_override
    assert servers["rope_parameters"]["short_mscale"] == servers["rope_parameters"]["long_mscale"]
    assert servers["rope_parameters"]["long_mscale"] == rope["attention_factor"]
    assert servers["max_position_embeddings"] == 128  # longrope is not multiplied by servers


def test_a_kept_llama3_has_one_factor_per_pair_and_none_below_the_scale(folders):
    config = AutoConfig.from_pretrained(folders / "llama3 kept")
    rope = make_profile(config, L, 128, base_scaling="keep").override["rope_parameters"]
    assert rope["attention_factor"] == 1.0
    assert rope["short_factor"] == rope["long_factor"]
    factors = rope["long_factor"]
    assert len(factors) == 8
    # the fastest pair is not touched by llama3, the slowest divided by its factor of 4
    assert factors[0] == pytest.approx(2.0, rel=1e-6)
    assert factors[-1] == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("length", [100, 129, 1000, 1023])
def test_servers_that_multiply_reach_the_context_length(folders, length):
    for name in ("llama", "linear kept"):
        config = AutoConfig.from_pretrained(folders / name)
        override = make_profile(config, L, length, base_scaling=MODELS[name][1]).server_override
        multiplied = override.get("max_position_embeddings", L) * override["rope_parameters"]["factor"]
        assert length <= multiplied < length + 1


def test_servers_get_the_base_window_where_the_config_claims_more(folders):
    config = AutoConfig.from_pretrained(folders / "llama")
    assert "max_position_embeddings" not in make_profile(config, L, 256, base_scaling=None).server_override
    assert make_profile(config, 16, 256, base_scaling=None).server_override["max_position_embeddings"] == 16


@pytest.mark.parametrize("name", ["gemma3", "llama3 kept"])
def test_servers_that_do_not_multiply_get_the_context_length(folders, tmp_path, name):
    run_export(folders, tmp_path / "out", name, context_lengths=(256,))
    profile = make_profile(AutoConfig.from_pretrained(folders / name), L, 256, base_scaling=MODELS[name][1])
    assert profile.server_override["max_position_embeddings"] == 256
    readme = (tmp_path / "out" / "serving" / "256" / "README.md").read_text()
    assert "`max_position_embeddings` is 256 here, since servers do not multiply it" in readme


@pytest.mark.parametrize("name", ["llama", "gemma3", "yarn kept"])
def test_command_lines_parse_and_carry_the_profile(folders, tmp_path, name):
    out = tmp_path / "it's an export"
    run_export(folders, out, name, context_lengths=(256,))
    lines = json.loads((out / "serving" / "256" / "commands.json").read_text())
    config = AutoConfig.from_pretrained(folders / name)
    profile = make_profile(config, L, 256, base_scaling=MODELS[name][1])
    for server, flag, length_flag in (
        ("vllm", "--hf-overrides", "--max-model-len"),
        ("sglang", "--json-model-override-args", "--context-length"),
    ):
        words = shlex.split(lines[server])
        assert json.loads(words[words.index(flag) + 1]) == profile.server_override
        assert words[words.index(length_flag) + 1] == "256"
        assert "." in words and not any(str(tmp_path) in word for word in words)
        assert lines[server] in (out / "serving" / "256" / "README.md").read_text()
    assert shlex.split(lines["vllm"])[:2] == ["vllm", "serve"]
    assert shlex.split(lines["sglang"])[:3] == ["python", "-m", "sglang.launch_server"]


def test_the_python_snippet_loads_the_scaled_model(folders, tmp_path, monkeypatch):
    run_export(folders, tmp_path / "out", "yarn kept", context_lengths=(256,))
    monkeypatch.chdir(tmp_path / "out")
    snippet = json.loads((tmp_path / "out" / "serving" / "256" / "commands.json").read_text())["transformers"]
    names = {}
    exec(snippet, names)  # what a user pastes
    tokens = torch.arange(100)[None]
    trained = AutoModelForCausalLM.from_pretrained(folders / "yarn kept").eval()
    hook = RotaryHook(trained)
    with torch.no_grad(), hook.applied(4.0):
        wanted = trained(tokens).logits
    with torch.no_grad():
        torch.testing.assert_close(names["model"](tokens).logits, wanted, rtol=0, atol=1e-4)
    assert len(names["tokenizer"]) == 256


@pytest.mark.parametrize(
    ("name", "tamper"),
    [
        ("llama", lambda rope: rope.update(factor=4.01)),
        ("llama", lambda rope: rope.update(rope_theta=500_000.0)),
        ("gemma3", lambda rope: rope["sliding_attention"].update(rope_type="linear", factor=4.0)),
        ("yarn kept", lambda rope: rope.update(attention_factor=1.0)),
        ("llama3 kept", lambda rope: rope["long_factor"].reverse()),
    ],
)
def test_a_tampered_profile_is_refused(folders, tmp_path, name, tamper):
    out = tmp_path / "out"
    run_export(folders, out, name, context_lengths=(256,))
    path = out / "serving" / "256" / "config_override.json"
    value = json.loads(path.read_text())
    tamper(value["rope_parameters"])
    path.write_text(json.dumps(value))
    with pytest.raises(SettingsError, match=r"serving/256: loaded back, its .* differ.* scale 4 by"):
        verify(out, base_context_length=L, context_lengths=(256,))


def test_a_profile_that_cannot_be_loaded_is_named(folders, tmp_path):
    out = tmp_path / "out"
    run_export(folders, out, context_lengths=(256,))
    path = out / "serving" / "256" / "config_override.json"
    path.write_text('{"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0}}')
    with pytest.raises(SettingsError, match=r"serving/256: .* cannot be loaded \('factor'\)"):
        verify(out, base_context_length=L, context_lengths=(256,))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"256/config_override.json: not found; wanted a serving profile"):
        verify(out, base_context_length=L, context_lengths=(256,))


def test_an_override_that_changes_attention_is_found_by_the_logits(folders, tmp_path):
    out = tmp_path / "out"
    run_export(folders, out, "gemma3", context_lengths=(256,))
    path = out / "serving" / "256" / "config_override.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 3}))
    with pytest.raises(SettingsError, match=r"serving/256: loaded back, its logits differ"):
        verify(out, base_context_length=L, context_lengths=(256,))


def test_a_failed_comparison_leaves_no_folder(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("e2ray.serve.verify.EQUAL_ULPS", -1)
    with pytest.raises(SettingsError, match=r"logits differ .* refused"):
        run_export(folders, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scalings_that_contradict_the_runs_choice_are_refused(folders, tmp_path):
    with pytest.raises(
        SettingsError, match=r"carries a rope scaling \(llama3\), model.base_scaling is replace; wanted keep"
    ):
        run_export(folders, tmp_path / "out", "llama3 kept", base_scaling="replace")
    dynamic = LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    with pytest.raises(SettingsError, match="dynamic scaling change with the length of the text"):
        make_profile(dynamic, L, 128, base_scaling="keep")


def test_missing_parts_of_a_model_folder_are_named(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/config.json: not found; wanted the model folder"):
        run_export(tmp_path, tmp_path / "out", "empty", base_scaling=None)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((folders / "llama" / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"bare: holds no \*\.safetensors"):
        run_export(tmp_path, tmp_path / "out", "bare", base_scaling=None)
    with pytest.raises(SettingsError, match="would replace the model folder"):
        run_export(folders, folders / "llama")
    assert not (tmp_path / "out").exists()


def test_what_tells_of_the_owners_disk_or_of_the_old_length_does_not_leave_the_house(folders, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for path in (folders / "llama").iterdir():
        if path.is_file():
            (model / path.name).write_bytes(path.read_bytes())
    told = json.loads((model / "tokenizer_config.json").read_text())
    own = {"name_or_path": "/home/jane/base", "tokenizer_file": "/home/jane/base/tokenizer.json", "kept": "owner/name"}
    own |= {"special_tokens_map_file": "/home/jane/sp.json", "init": {"vocab_file": "~/home/jane/v.model"}}
    (model / "tokenizer_config.json").write_text(json.dumps(told | own))
    generation = {"max_length": L, "temperature": 0.6, "_name_or_path": "/home/jane/base"}
    (model / "generation_config.json").write_text(json.dumps(generation))
    run_export(tmp_path, tmp_path / "out", "model", base_scaling=None, context_lengths=(64, 128))
    assert not [
        path for path in (tmp_path / "out").rglob("*.*") if path.is_file() and b"/home/jane" in path.read_bytes()
    ]
    assert not [path for path in (tmp_path / "out").rglob("*.*") if str(tmp_path).encode() in path.read_bytes()]
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"max_length": 128, "temperature": 0.6}
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["kept"] == "owner/name"


FOREIGN = ["pytorch_model.bin", "state.PKL", "modeling_x.py", "opt.pth", "nested/notes.pickle"]


@pytest.mark.parametrize("sealed", [False, True])
def test_weights_code_and_pickles_stay_behind_and_are_named(folders, tmp_path, sealed):
    model = tmp_path / "model"
    (model / "nested").mkdir(parents=True)
    for path in (folders / "llama").iterdir():
        if path.is_file():
            (model / path.name).write_bytes(path.read_bytes())
    (model / "NOTICE").write_text("notice")
    if sealed:
        seal(model, None)
    put_in = [name for name in FOREIGN if not sealed or name != "pytorch_model.bin"]  # which is refused
    for name in (*put_in, ".env", "private.log"):
        (model / name).write_text("secret")
    said = []
    run_export(tmp_path, tmp_path / "out", "model", base_scaling=None, context_lengths=(64,), progress=said.append)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert not found & {*put_in, ".env"} and "NOTICE" in found
    assert ("private.log" in found) is not sealed  # nothing tells a folder of elsewhere whose it is
    left = sorted(line.partition(":")[0] for line in said if "is left out of the export" in line)
    assert left == sorted(str(model / name) for name in (*put_in, *(["private.log"] if sealed else [])))


def test_the_model_card_holds_the_evidence(folders, tmp_path):
    cells = [
        Cell(
            model=model, window=window, scale=scale, nll=nll, perplexity=math.exp(nll), tokens=4096, documents=8,
            stride=16, stderr=0.0123,
        )
        for model, window, scale, nll in (
            ("tuned", 64, 1.0, 3.501), ("base", 64, 1.0, 3.452), ("tuned", 128, 2.0, 3.423),
            ("tuned", 128, 1.0, 3.987), ("base", 128, 1.0, 4.234), ("base", 128, 2.0, 3.876),
        )
    ]  # fmt: skip
    evaluation = Evaluation(rows=tuple(cells), verdict=verdict(cells, L))
    picture = tmp_path / "evaluation.png"
    Image.new("RGB", (8, 8), "white").save(picture)
    run_export(folders, tmp_path / "out", context_lengths=(64, 128), evaluation=evaluation, picture=picture)
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["library_name"], facts["base_model"]) == ("transformers", "example/base-64")
    assert "llama" in facts["tags"]
    for number in (
        "3.423 ± 0.012",
        "4.234 ± 0.012",
        "3.876 ± 0.012",
        "+0.453",
        "steps: 1234",
        "seed: 3",
        "serving/128/",
    ):
        assert number in body
    assert "tuning costs 0.049 nats" in body
    assert "![NLL by window and scale](evaluation.png)" in body
    assert (tmp_path / "out" / "evaluation.png").read_bytes() == picture.read_bytes()
    assert str(tmp_path) not in card


def test_a_local_base_model_does_not_enter_the_front_matter(folders, tmp_path):
    run = RunFacts("demo", base_model="/data/models/base")
    run_export(folders, tmp_path / "out", context_lengths=(64,), run=run)
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n", 2)[1])
    assert "base_model" not in front
    assert "Not evaluated." in (tmp_path / "out" / "README.md").read_text()


def test_progress_is_one_line_per_profile(folders, tmp_path):
    lines = []
    run_export(folders, tmp_path / "out", context_lengths=(64, 128), progress=lines.append)
    assert [line.split(",")[0] for line in lines] == ["serving/64: scale 1", "serving/128: scale 2"]


def test_commands_name_the_model_they_are_given(folders):
    config = AutoConfig.from_pretrained(folders / "llama")
    lines = commands(make_profile(config, L, 128, base_scaling=None), model="owner/name", name="demo-128")
    assert shlex.split(lines["vllm"])[2:5] == ["owner/name", "--served-model-name", "demo-128"]


@pytest.mark.parametrize("name", MODELS)
def test_a_length_that_was_measured_better_at_another_scale_is_served_at_that_one(folders, tmp_path, name):
    scales = Scales(base_context_length=L, lengths=(ScaleRow(context_length=1024, served=11.0),))
    result = run_export(folders, tmp_path / "out", name, scales=scales)
    assert [check["scale"] for check in result["checks"]] == [1.0, 3.0, 11.0]
    trained = AutoModelForCausalLM.from_pretrained(folders / name).eval()
    tokens = torch.randint(256, (1, 128), generator=torch.Generator().manual_seed(5))
    profile = tmp_path / "out" / "serving" / "1024"
    config = AutoConfig.from_pretrained(tmp_path / "out", **json.loads((profile / "config_override.json").read_text()))
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "out", config=config).eval()
    with torch.no_grad(), RotaryHook(trained).applied(11.0):
        torch.testing.assert_close(served(tokens).logits, trained(tokens).logits, rtol=0, atol=1e-4)
    assert "was measured better at this length than W / L = 16" in (profile / "README.md").read_text()
    assert json.loads((profile / "commands.json").read_text())["scale"] == 11.0
    assert Scales.read(tmp_path / "out" / "scales.json") == scales


def test_no_measurement_is_claimed_where_the_papers_scale_was_not_measured(folders, tmp_path):
    row = ScaleRow(context_length=1024, served=4.0, paper_scale=16.0)  # of an older evaluation
    scales = Scales(base_context_length=L, lengths=(row,))
    result = run_export(folders, tmp_path / "out", context_lengths=(1024,), scales=scales)
    assert [check["scale"] for check in result["checks"]] == [16.0]
    text = (tmp_path / "out" / "serving" / "1024" / "README.md").read_text()
    assert "Scale 16 = 1024 / 64." in text and "measured" not in text


def test_a_length_within_the_base_context_is_served_as_it_is(folders, tmp_path):
    run_export(folders, tmp_path / "out", context_lengths=(L // 2, L))
    for length in (L // 2, L):
        text = (tmp_path / "out" / "serving" / str(length) / "README.md").read_text()
        assert f"Scale 1 since it is at most L = {L}." in text


def test_servers_reach_a_length_whose_scale_is_below_w_over_l(folders):
    for name in ("llama", "linear kept"):
        config = AutoConfig.from_pretrained(folders / name)
        profile = make_profile(config, L, 1024, base_scaling=MODELS[name][1], scale=11.0)
        length = profile.server_override.get("max_position_embeddings", config.max_position_embeddings)
        factor = profile.server_override["rope_parameters"]["factor"]
        assert 1024 <= length * factor < 1024 + factor


def card_of(folder):
    front, body = (folder / "README.md").read_text().split("---\n", 2)[1:]
    return yaml.safe_load(front), body


def test_an_export_holds_what_its_model_folder_holds_and_the_bases_fields(folders, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folders / "llama", model)
    beside = {
        "LICENSE": "licence",
        "NOTICE": "notice",
        "a/b/policy.md": "policy",
        "additional_chat_templates/x.jinja": "{}",
    }
    fields = "---\nlicense: llama3.1\nlanguage: [en]\ntags: [meta, e2ray]\npipeline_tag: other\n---\n"
    for name, content in {**beside, "README.base.md": fields}.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(content)
    run_export(tmp_path, tmp_path / "out", "model", base_scaling=None, context_lengths=(64,))
    assert {name: (tmp_path / "out" / name).read_text() for name in beside} == beside
    front, _ = card_of(tmp_path / "out")
    assert (front["license"], front["language"], front["pipeline_tag"]) == ("llama3.1", ["en"], "other")
    assert front["tags"] == ["meta", "e2ray", "long-context", "e2-llm", "llama"]
    assert front["base_model"] == "example/base-64"


def test_a_card_names_sources_and_no_paths_or_keys(folders, tmp_path):
    settings = {
        "model": {"path": "/data/models/Base-8B", "attention": "auto"},
        "data": {
            "corpus": [{"kind": "text", "paths": ["~/mine/books/*.txt", "relative/house/notes.txt"], "weight": 1.0}],
            "shards": "s3://key:secret@bucket/rows?secret_key=hidden&region=x",
        },
        "seed": 3,
    }
    run_export(folders, tmp_path / "out", context_lengths=(64,), run=RunFacts("demo", "Base-8B", settings))
    front, body = card_of(tmp_path / "out")
    assert "base_model" not in front and "- base model: Base-8B\n" in body
    found = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert found["model"] == {"path": "Base-8B", "attention": "auto"}
    assert found["data"]["corpus"] == [{"kind": "text", "paths": ["*.txt", "notes.txt"], "weight": 1.0}]
    assert (found["data"]["shards"], found["seed"]) == ("s3://bucket/rows", 3)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "serving/64/config_override.json", "tokenizer.json"]
)
def test_a_damaged_export_is_not_read(folders, tmp_path, name):
    run_export(folders, tmp_path / "out", context_lengths=(64,))
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.unlink()  # the weights are a link to those of the model folder
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{name}: is damaged"):
        Generator(tmp_path / "out")


def test_a_damaged_model_folder_is_not_exported(folders, tmp_path):
    shutil.copytree(folders / "llama", tmp_path / "model")
    seal(tmp_path / "model", None)
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"tokenizer_config\.json: is missing or truncated"):
        run_export(tmp_path, tmp_path / "out", "model", base_scaling=None, context_lengths=(64,))
    assert not (tmp_path / "out").exists()
