"""A base whose own scaling was removed is measured against the checkpoint and never called the base alone."""

import pytest
import torch

from e2ray.config.model import LlamaModel, PretrainedModel
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.removed import base_name, sentence
from e2ray.evaluate.removing import measure_removed, removed_scaling
from e2ray.evaluate.verdict import table, verdict
from e2ray.records.evaluation import RemovedScaling
from e2ray.report.sections.lengths import draw_by_length
from e2ray.report.sections.surface import draw_evaluation as draw
from e2ray.testing.models import SCALED, logits, random_tokens, tiny_config, tiny_model

FLOAT = {"dtype": torch.float32, "device": torch.device("cpu")}
REMOVED = RemovedScaling(scaling="yarn", factor=4.0, tokens=512, mean_difference=0.31, changed_argmax=0.125)


def saved(folder, rope):
    tiny_model("llama", rope_parameters=rope).save_pretrained(folder)
    return PretrainedModel(path=str(folder), base_scaling="replace", base_context_length=16)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_the_move_is_that_between_the_checkpoint_and_its_unscaled_model(kind, tmp_path):
    settings = saved(tmp_path, SCALED[kind])
    texts = random_tokens(3, 16)
    found = measure_removed(settings, texts.tolist(), **FLOAT)
    as_published = logits(tiny_model("llama", rope_parameters=SCALED[kind]), texts).reshape(48, -1)
    plain = logits(tiny_model("llama"), texts).reshape(48, -1)
    assert (found.scaling, found.factor, found.tokens) == (kind, SCALED[kind]["factor"], 48)
    assert found.mean_difference == pytest.approx(float((as_published - plain).abs().mean()), rel=1e-4)
    changed = (as_published.argmax(dim=1) != plain.argmax(dim=1)).float().mean()
    assert found.changed_argmax == pytest.approx(float(changed))
    assert found.mean_difference > 0.01


def test_a_scaling_that_does_nothing_within_l_moves_nothing(tmp_path):
    """Dynamic NTK begins behind the length that it was written for."""
    settings = saved(tmp_path, SCALED["dynamic"])
    found = measure_removed(settings, random_tokens(1, 16).tolist(), **FLOAT)
    assert (found.mean_difference, found.changed_argmax) == (0.0, 0.0)


@pytest.mark.parametrize("kind", sorted(SCALED))
def test_only_what_is_removed_is_named(kind, tmp_path):
    tiny_config("llama", rope_parameters=SCALED[kind]).save_pretrained(tmp_path)
    settings = PretrainedModel(path=str(tmp_path), base_scaling="replace", base_context_length=16)
    assert removed_scaling(settings) == kind
    assert base_name(kind) == base_name(kind, untouched=True) == f"base, its {kind} scaling removed"
    if kind in ("linear", "llama3", "yarn"):
        assert removed_scaling(settings.model_copy(update={"base_scaling": "keep"})) is None


def test_a_base_without_a_scaling_is_the_base():
    assert removed_scaling(LlamaModel()) is None
    assert (base_name(None), base_name(None, untouched=True)) == ("base", "base, untouched")


def cells():
    return [
        Cell(**dict(zip(Cell.model_fields, (model, window, scale, nll, 2.0**nll, 4096, 8, 16, 0.01), strict=False)))
        for model, window, scale, nll in (
            ("tuned", 64, 1.0, 3.5), ("base", 64, 1.0, 3.4), ("tuned", 128, 2.0, 3.4),
            ("base", 128, 1.0, 4.2), ("base", 128, 2.0, 3.9),
        )
    ]  # fmt: skip


def test_verdict_and_table_call_the_base_what_it_is():
    found = verdict(cells(), 64, removed=REMOVED)
    assert found.removed_scaling == REMOVED
    assert (
        found.sentences[-1]
        == sentence(REMOVED)
        == (
            "The base is read without its yarn scaling (factor 4): within L its logits differ from the published "
            "checkpoint's by 0.31 on average, and the likeliest next token is another one after 12.5% of 512 tokens."
        )
    )
    text = table(cells(), found)
    assert "base, its yarn scaling removed, at 1 |" in text
    assert "base, its yarn scaling removed at W/L, untrained" in text
    assert "tuned model is below the base, its yarn scaling removed, at scale 1 and under untrained linear" in text
    assert "tuning costs 0.100 nats per token against the base, its yarn scaling removed." in text
    assert "untouched" not in text
    assert all(cell.model in ("base", "tuned") for cell in cells())


def test_a_base_that_is_the_checkpoint_is_called_untouched():
    found = verdict(cells(), 64)
    assert found.removed_scaling is None
    text = table(cells(), found)
    assert "base untouched" in text and "removed" not in text


def words(figure):
    legends = [text for axis in figure.axes if (legend := axis.get_legend()) for text in legend.get_texts()]
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    return [*titles, *(text.get_text() for text in legends)]


def test_pictures_call_the_base_what_it_is():
    told = words(draw(cells(), 64, removed_scaling="yarn"))
    assert "base, its yarn scaling removed" in told
    assert {"base, its yarn scaling removed (g = 1)", "base, its yarn scaling removed, g = W/L without training"} < {
        *told
    }
    plain = words(draw(cells(), 64))
    assert "base model" in plain and "base, untouched (g = 1)" in plain


def test_the_picture_by_length_calls_the_base_what_it_is():
    from e2ray.evaluate.by_length import LengthCell

    fields = {"context_length": 64, "scale": 1.0, "nll": 3.0, "low": None, "high": None, "bucket_nll": 3.0}
    one = LengthCell(model="base", **fields, tokens=10, documents=2, last=16)
    assert "base, its llama3 scaling removed" in words(draw_by_length([one], removed_scaling="llama3"))
    assert "base model" in words(draw_by_length([one]))
