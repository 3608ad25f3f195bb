import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from e2ray import cli
from e2ray.config.base import SettingsError
from e2ray.config.methods import YarnMethod
from e2ray.core.methods.registry import method_of
from e2ray.core.model_folder import seal
from e2ray.data.tokenizer import load_tokenizer
from e2ray.evaluate.weights import weights_digest
from e2ray.records.model import ModelTraining
from e2ray.serve.card import RunFacts
from e2ray.serve.export import export
from e2ray.serve.generate import Generator
from e2ray.testing.served import TEXT, L, write_served_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_served_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def generator(run):
    return Generator(run, device="cpu", prefill_tokens=16)


def plain_text(folder, prompt, *, scale, new):
    """Return what plain transformers writes with the scale in its config."""
    rope = {"rope_type": "linear", "factor": scale, "rope_theta": 10_000.0}
    config = AutoConfig.from_pretrained(folder / "model", rope_parameters=rope)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", config=config).eval()
    tokenizer = Generator(folder, device="cpu").tokenizer
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
    return tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(("length", "scale"), [(1, 1.0), (32, 1.0), (33, 3.0), (64, 3.0), (100, 5.0), (129, 129 / L)])
def test_the_scale_follows_from_the_whole_requests_length(generator, length, scale):
    assert generator.scale_of(length) == scale


def test_without_measured_scales_it_is_the_papers(run):
    plain = Generator(run / "model", device="cpu")
    assert (plain.base_context_length, plain.scales) == (L, None)
    assert plain.scale_of(L) == 1.0
    assert plain.scale_of(3 * L) == 3.0


@pytest.mark.parametrize("exported", [False, True])
def test_a_model_that_was_trained_under_yarn_reads_a_scale_by_it(run, tmp_path, exported):
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    method = YarnMethod(fast=6, slow=0.4)
    shutil.rmtree(folder / "e2ray", ignore_errors=True)
    seal(folder, None, training=ModelTraining(settings={"positions": {"method": method.model_dump(mode="json")}}))
    if exported:
        export(
            folder, tmp_path / "out", base_context_length=L, context_lengths=(4 * L,), base_scaling=None,
            evaluation=None, run=RunFacts("demo", method=method),
        )  # fmt: skip
        folder = tmp_path / "out"
    written = Generator(folder, device="cpu").generate(TEXT, max_new_tokens=12, scale=4.0)
    rope = method_of(method).to_transformers({"rope_theta": 10_000.0}, torch.empty(0), 4.0, L)
    config = AutoConfig.from_pretrained(folder, rope_parameters=rope)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    tokenizer = Generator(folder, device="cpu").tokenizer
    tokens = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    assert written == tokenizer.decode(wanted[0, tokens.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["the dog", TEXT, TEXT * 2], ids=["short", "one chunk", "chunks"])
def test_text_equals_that_of_plain_transformers_with_the_scale_in_its_config(run, generator, prompt):
    tokens = len(generator.tokenizer(prompt)["input_ids"])
    scale = generator.scale_of(tokens + 20)
    assert generator.generate(prompt, max_new_tokens=20) == plain_text(run, prompt, scale=scale, new=20)
    other = generator.generate(prompt, max_new_tokens=20, scale=scale + 7)
    assert other == plain_text(run, prompt, scale=scale + 7, new=20)


def test_text_equals_that_of_an_exported_profile(run, generator, tmp_path):
    export(
        run / "model",
        tmp_path / "export",
        base_context_length=L,
        context_lengths=[128],
        base_scaling=None,
        evaluation=None,
        run=RunFacts("run"),
    )
    override = json.loads((tmp_path / "export" / "serving" / "128" / "config_override.json").read_text())
    served = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", config=AutoConfig.from_pretrained(tmp_path / "export", **override)
    ).eval()
    tokens = generator.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        written = served.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=30, do_sample=False, pad_token_id=0
        )
    wanted = generator.tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)
    assert generator.generate(TEXT, max_new_tokens=30, scale=128 / L) == wanted
    assert Generator(tmp_path / "export", device="cpu").generate(TEXT, max_new_tokens=30, scale=128 / L) == wanted


def test_long_prompts_are_read_in_chunks(run, monkeypatch):
    generator = Generator(run, device="cpu", prefill_tokens=16)
    widths = []
    layers = generator.model.model
    layers.register_forward_pre_hook(lambda m, a, k: widths.append(k["input_ids"].shape[1]), with_kwargs=True)
    tokens = len(generator.tokenizer(TEXT * 2)["input_ids"])
    generator.generate(TEXT * 2, max_new_tokens=4)
    assert max(widths) == 16
    assert sum(widths) == tokens + 3
    assert widths[-3:] == [1, 1, 1]


def test_text_comes_in_pieces_and_leaving_ends_the_generation(generator):
    pieces = list(generator.stream(TEXT, max_new_tokens=20))
    assert len(pieces) > 3
    assert "".join(pieces) == generator.generate(TEXT, max_new_tokens=20)
    calls = []
    handle = generator.model.register_forward_pre_hook(lambda *call: calls.append(1))
    stream = generator.stream(TEXT, max_new_tokens=500)
    next(stream)
    stream.close()
    handle.remove()
    assert len(calls) < 400


def test_sampling_follows_its_seed(generator):
    def sample(seed):
        return generator.generate(TEXT, max_new_tokens=20, temperature=1.0, top_p=0.9, seed=seed)

    assert sample(1) == sample(1) != sample(2)


def test_an_error_of_the_model_reaches_the_caller(generator):
    handle = generator.model.model.register_forward_pre_hook(lambda *c: (_ for _ in ()).throw(RuntimeError("broken")))
    try:
        with pytest.raises(RuntimeError, match="broken"):
            generator.generate(TEXT)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (TEXT, {"max_new_tokens": 0}, "max new tokens: must be at least 1, got 0"),
        (TEXT, {"scale": 0.5}, "scale: must be 1 to 1048576, got 0.5"),
        (TEXT, {"scale": float("nan")}, "scale: must be 1 to 1048576, got nan"),
        (TEXT, {"scale": 1e30}, r"scale: must be 1 to 1048576, got 1e\+30"),
        (TEXT, {"seed": 2**64}, r"seed: must be at least 0 and below 2\*\*63, got 18446744073709551616"),
        (TEXT, {"seed": -1}, r"seed: must be at least 0"),
        ("a \udcff b", {}, "prompt: holds bytes that are no UTF-8; write it into a file as UTF-8"),
        (TEXT, {"temperature": -1}, "wanted temperature >= 0 and 0 < top_p <= 1"),
        (TEXT, {"temperature": float("nan")}, "wanted temperature >= 0 and 0 < top_p <= 1"),
        (TEXT, {"top_p": 0}, "wanted temperature >= 0 and 0 < top_p <= 1"),
    ],
)
def test_options_out_of_range_are_refused(generator, prompt, options, message):
    with pytest.raises(SettingsError, match=message):
        generator.generate(prompt, **options)


def continued(generator, tokens, *, new):
    """Return what the model writes greedily behind some tokens, one forward each, at the scale of the whole."""
    tokens = list(tokens)
    start, scale = len(tokens), generator.scale_of(len(tokens) + new)
    with torch.inference_mode(), generator.hook.applied(scale):
        for _ in range(new):
            tokens.append(int(generator.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return generator.tokenizer.decode(tokens[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"]),
        ("<sop> $A <|endoftext|>", ["<sop>"]),
        ("$A <|endoftext|>", []),
    ],
    ids=["two in front", "one in front, an end", "an end alone"],
)
def test_a_prompt_begins_with_all_that_the_tokenizer_puts_there_and_does_not_end(tmp_path, template, prefix):
    generator = Generator(write_served_run(tmp_path, template=template), device="cpu")
    tokenizer = generator.tokenizer
    prefix = tokenizer.convert_tokens_to_ids(prefix)
    bare = tokenizer.encode("the dog", add_special_tokens=False)
    assert generator.tokens_of("the dog") == [*prefix, *bare]
    assert generator.tokens_of(tokenizer.decode(prefix) + "the dog") == [*prefix, *bare]
    assert generator.generate("the dog", max_new_tokens=6) == continued(generator, [*prefix, *bare], new=6)
    opening = prefix or [tokenizer.eos_token_id]
    assert generator.tokens_of("") == opening
    assert generator.generate("", max_new_tokens=6) == continued(generator, opening, new=6)


def test_an_empty_prompt_needs_something_to_begin_with(run, generator, capsys):
    assert generator.tokens_of("") == [generator.tokenizer.eos_token_id]
    assert cli.main(["generate", str(run), "--prompt", "", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == continued(generator, generator.tokens_of(""), new=5) + "\n"
    bare = Generator(run, device="cpu")
    bare.tokenizer.eos_token = None
    with pytest.raises(
        SettingsError, match="prompt: is empty, and the tokenizer has no prefix and no end-of-text token"
    ):
        bare.generate("")


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 1e-40])
def test_next_to_no_temperature_takes_the_likeliest_token(generator, temperature):
    found = generator.generate(TEXT, max_new_tokens=8, temperature=temperature, top_p=0.5)
    assert found == generator.generate(TEXT, max_new_tokens=8)


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"holds no config\.json"):
        Generator(tmp_path)
    with pytest.raises(SettingsError, match="prefill tokens: must be at least 1, got 0"):
        Generator(tmp_path, prefill_tokens=0)


@pytest.fixture
def beside(run, tmp_path):
    """A copy of the run, to put other files into."""
    folder = tmp_path / "beside"
    shutil.copytree(run, folder)
    return folder


def rescale(folder, **changes):
    path = folder / "scales.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scales_that_are_damaged_or_of_another_model_are_refused(beside):
    rescale(beside, base_context_length=2 * L)
    wanted = rf"scales\.json: was measured for a base context length of 64 tokens, .*model/config\.json says {L}; run"
    with pytest.raises(SettingsError, match=wanted):
        Generator(beside, device="cpu")
    (beside / "config.yaml").write_text("model: {base_context_length: 48}\n")
    with pytest.raises(SettingsError, match=r"of 64 tokens, .*config\.yaml says 48"):
        Generator(beside, device="cpu")
    rescale(beside, base_context_length=L, weights_digest="0" * 64)
    with pytest.raises(SettingsError, match=r"scales\.json: was measured with other weights than .*/beside/model; run"):
        Generator(beside, device="cpu")
    (beside / "scales.json").write_text('{"lengths": []}')
    with pytest.raises(SettingsError, match=r"scales\.json: is damaged, it lacks base_context_length; wanted base"):
        Generator(beside, device="cpu")


def test_a_base_context_length_that_the_recipe_set_is_believed(beside):
    rescale(beside, base_context_length=2 * L, weights_digest=weights_digest(beside / "model"))
    (beside / "config.yaml").write_text(f"model: {{base_context_length: {2 * L}}}\n")
    assert Generator(beside, device="cpu").base_context_length == 2 * L
    (beside / "config.yaml").unlink()  # an export holds none; the digest names the model
    assert Generator(beside, device="cpu").scale_of(512) == 8.0


def test_the_base_context_length_of_the_training_counts_more_than_the_configs(beside):
    """A run whose recipe set L says so in the model's record, which an export has too."""
    for name in ("scales.json", "config.yaml"):
        (beside / name).unlink(missing_ok=True)
    model = beside / "model"
    shutil.rmtree(model / "e2ray", ignore_errors=True)
    seal(model, None, training=ModelTraining(settings={"base_context_length": 2 * L}))
    generator = Generator(model, device="cpu")
    assert generator.base_context_length == 2 * L and generator.scale_of(8 * L) == 4.0


def test_a_tokenizer_of_more_tokens_than_the_model_embeds_is_refused(beside):
    tokenizer = load_tokenizer(beside / "model")
    known = len(tokenizer)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(beside / "model")
    with pytest.raises(SettingsError, match=f"has {known} token embeddings, the tokenizer {known + 1} tokens"):
        Generator(beside, device="cpu")


def test_the_command_prints_the_text(run, generator, capsys, tmp_path):
    wanted = generator.generate(TEXT, max_new_tokens=8)
    assert cli.main(["generate", str(run), "--prompt", TEXT, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    (tmp_path / "prompt.txt").write_text(TEXT)
    assert cli.main(["generate", str(run), "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out == wanted + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--temperature", "-1"], "wanted temperature >= 0"),
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max new tokens: must be at least 1"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(run, capsys, arguments, message):
    assert cli.main(["generate", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("e2ray generate: ") and message in error and error.count("\n") == 1


def test_a_prompt_that_is_no_text_is_refused(run, capsys, tmp_path):
    (tmp_path / "prompt").write_bytes(b"ab\xff")
    assert cli.main(["generate", str(run), "--prompt-file", str(tmp_path / "prompt")]) == 2
    assert "is not UTF-8 (byte 2)" in capsys.readouterr().err
