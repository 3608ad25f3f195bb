"""One update of packed rows: every predicted token of the batch weighs the same, however the batch is cut."""

import copy
from functools import partial
from itertools import pairwise

import deepspeed
import pytest
import torch
import torch.nn.functional as F
from spoiling import spoiled
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from e2ray.config.base import SettingsError
from e2ray.config.model import LlamaModel
from e2ray.config.positions import PositionSettings
from e2ray.config.train import TrainSettings
from e2ray.core.head import FusedHead
from e2ray.core.losses import plain_ids, predicted, token_nll
from e2ray.core.model import build_model
from e2ray.core.positions import draw
from e2ray.core.proof import prove_apart
from e2ray.train.adam import SkippingAdamW
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine, SkippingCPUAdam, adamw
from e2ray.train.parameters import precision_of

CPU = torch.device("cpu")
WINDOW, ROWS, VOCABULARY = 24, 4, 50
LENGTHS = [[10, 9], [24], [2, 2, 2], [1, 20]]

pytestmark = pytest.mark.usefixtures("one_rank")


def engine_of(micro, *, zero_stage=1, attention="sdpa", **changes):
    model = LlamaModel(
        hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=2, intermediate_size=48, base_context_length=24
    )
    settings = TrainSettings(
        steps=1, batch_sequences=ROWS, micro_batch_sequences=micro, lr=1e-2, log_every=1, checkpoint_every=1,
        **{"zero_stage": zero_stage, "clip_norm": 0.0, "weight_decay": 0.0} | changes,
    )  # fmt: skip
    dtype = precision_of(settings, CPU)
    built = build_model(model, dtype=dtype, vocab_size=VOCABULARY, seed=1).train()
    built.config._attn_implementation = attention
    return Engine(built, settings, device=CPU, dtype=dtype)


def batch():
    tokens = torch.randint(VOCABULARY, (ROWS, WINDOW), generator=torch.Generator().manual_seed(2))
    rows = []
    for lengths in LENGTHS:
        fill = WINDOW - sum(lengths)
        rows.append(torch.cat([*(torch.arange(length) for length in lengths), -1 - torch.arange(fill)]))
    positions = PositionSettings.model_validate({"preset": "pose", "max_scale": 4})
    drawn = draw(positions, seed=0, step=0, indices=range(ROWS), window=WINDOW, base_context_length=WINDOW)
    return tokens, torch.stack(rows), drawn


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_an_update_of_packed_rows_is_that_of_the_mean_over_predicted_tokens(micro):
    tokens, places, drawn = batch()
    engine = engine_of(micro)
    with engine.hook.applied(drawn.scale, drawn.offsets):
        nll = token_nll(
            engine.ds.module(input_ids=tokens, position_ids=plain_ids(places), use_cache=False).logits, tokens
        )
    wanted = predicted(places)
    mean = (nll * wanted).sum() / wanted.sum()
    gradient = torch.autograd.grad(mean, [parameter for _, parameter in engine.parameters()])
    found = engine.update(Batch(tokens, drawn, places), lr=1e-2)
    torch.testing.assert_close(found, ((nll * wanted).sum(1) / wanted.sum(1)).detach(), rtol=1e-5, atol=1e-6)
    norm = torch.nn.utils.get_total_norm(gradient)
    assert engine.grad_norm == pytest.approx(float(norm), rel=1e-4)


STAGES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3},
    {"zero_stage": 1, "precision": "bf16"},
    {"zero_stage": 2, "precision": "bf16"},
    {"zero_stage": 1, "precision": "bf16", "offload": "optimizer"},
    {"zero_stage": 2, "precision": "bf16", "offload": "optimizer"},
    {"zero_stage": 3, "precision": "bf16", "offload": "all"},
]


def state_of(engine):
    """Everything that an update changes: weights in fp32 and as the forward has them, moments, Adam's counters."""
    found = {state.name: (state.weight, state.exp_avg, state.exp_avg_sq) for state in engine.states()}
    if engine.settings.zero_stage < 3:
        found |= {f"own {name}": (own.detach().clone(),) for name, own in engine.parameters()}
    return found | {"counters": [torch.as_tensor(s["step"]).clone() for s in engine._adam.state.values()]}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(mine, its) for name in one for mine, its in zip(one[name], other[name], strict=True)
    )


def update(engine, step):
    tokens, places, drawn = batch()
    rows = Batch((tokens + step) % VOCABULARY, drawn, places if step % 2 else None)
    return engine.update(rows, lr=1e-2 / (step + 1))


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")  # DeepSpeed's own calls
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("changes", STAGES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_a_skipped_update_changes_no_bit_and_the_next_is_that_of_a_run_without_it(changes, clip_norm):
    engine, other = (engine_of(2, **changes, clip_norm=clip_norm, weight_decay=0.1) for _ in range(2))
    with spoiled(engine.ds.module, "gradient"):  # before AdamW has any moment
        update(engine, 0)
    assert engine.skipped and not any(state.exp_avg.any() or state.exp_avg_sq.any() for state in engine.states())
    for step in (1, 2):
        assert torch.equal(update(engine, step), update(other, step)) and not engine.skipped
    before = state_of(engine)
    for step, how in enumerate(("gradient", "loss", "finite gradient", "square"), start=3):
        with spoiled(engine.ds.module, how):
            nll = update(engine, step)
        assert engine.skipped, how
        assert bool(nll.isfinite().all()) is (how in ("gradient", "square"))
        assert equal(state_of(engine), before), how
    for step in (7, 8):
        assert torch.equal(update(engine, step), update(other, step))
        assert not engine.skipped and engine.grad_norm == other.grad_norm
    assert equal(state_of(engine), state_of(other))


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")  # DeepSpeed's own calls
@pytest.mark.parametrize("changes", STAGES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_what_is_not_finite_is_named(changes):
    engine = engine_of(2, **changes)
    assert engine.non_finite() is None  # no moments yet
    update(engine, 0)
    assert engine.non_finite() is None
    for place, kind in ((0, "weight"), (4, "exp_avg"), (-1, "exp_avg_sq")):
        states = list(engine.states())
        good = getattr(states[place], kind).clone()
        getattr(states[place], kind).view(-1)[-1] = torch.nan if place else torch.inf
        engine.load(iter(states), optimizer_step=1)
        assert engine.non_finite() == f"{kind} of {states[place].name}"
        getattr(states[place], kind).copy_(good)
        engine.load(iter(states), optimizer_step=1)
        assert engine.non_finite() is None


@pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning")  # DeepSpeed's own calls
@pytest.mark.parametrize("changes", STAGES, ids=lambda changes: "-".join(str(value) for value in changes.values()))
def test_a_loss_with_the_head_in_it_trains_alike(changes):
    fused, plain = engine_of(2, **changes, fused_loss=True), engine_of(2, **changes)
    for step in (0, 1):
        nll = [update(engine, step) for engine in (fused, plain)]
        torch.testing.assert_close(*nll, rtol=1e-5 if fused.ds.module.dtype == torch.float32 else 2e-2, atol=1e-5)
        assert fused.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4 if "precision" not in changes else 2e-2)
    assert torch.equal(fused.logits(batch()[0]).argmax(-1), plain.logits(batch()[0]).argmax(-1))  # the head is back


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda model: setattr(model.config, "final_logit_softcapping", 30.0),
            r"changes its logits \(final_logit_soft",
        ),
        (lambda model: setattr(model, "lm_head", torch.nn.Sequential(model.lm_head)), "has no plain linear layer"),
    ],
)
def test_a_head_that_the_loss_cannot_be_put_into_is_refused(change, complaint):
    model = build_model(LlamaModel(num_layers=1), dtype=torch.float32, vocab_size=VOCABULARY)
    change(model)
    with pytest.raises(SettingsError, match=rf"train\.fused_loss: LlamaForCausalLM {complaint}.*; leave it out"):
        FusedHead(model)


@pytest.mark.slow
def test_deepspeeds_adamw_for_cpus_steps_like_torchs_and_skips(monkeypatch):
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", None, raising=False)
    settings = TrainSettings(steps=1, offload="optimizer", weight_decay=0.1)
    models = [torch.nn.Sequential(torch.nn.Linear(300, 40), torch.nn.Linear(40, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, torchs = adamw(models[0], settings, on_gpu=True), adamw(models[1], settings, on_gpu=False)
    assert type(ours) is SkippingCPUAdam and type(torchs) is SkippingAdamW
    for step, norm in enumerate((1.0, 2.0, torch.inf, 3.0)):
        before = copy.deepcopy(models[0].state_dict())
        inputs = torch.randn(8, 300, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, (ours, torchs), strict=True):
            optimizer.norm, optimizer.skipped = partial(float, norm), None
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert ours.skipped is torchs.skipped is (norm == torch.inf)
        assert all(torch.equal(before[name], each) for name, each in models[0].state_dict().items()) is ours.skipped
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def attention_by_lengths(
    module, query, key, value, mask, *, scaling, cu_seq_lens_q=None, cu_seq_lens_k=None, max_length_q=None, **others
):
    """What flash attention does, in torch: no mask; documents as it is told, those of all rows one after the other."""
    assert mask is None
    rows, heads, tokens, size = query.shape
    ends = range(0, rows * tokens + 1, tokens) if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    assert cu_seq_lens_k is cu_seq_lens_q and ends[0] == 0 and ends[-1] == rows * tokens
    flat = [each.transpose(1, 2).reshape(1, rows * tokens, -1, size).transpose(1, 2) for each in (query, key, value)]
    outputs = []
    for start, end in pairwise(ends):
        assert end - start <= (max_length_q or tokens)
        document = [each[:, :, start:end] for each in flat]
        outputs.append(F.scaled_dot_product_attention(*document, is_causal=True, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, dim=2).transpose(1, 2).reshape(rows, tokens, heads, size), None


@pytest.fixture
def flash(monkeypatch):
    """The name of an attention with flash attention's manners that a CPU can compute."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_in_torch", attention_by_lengths)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_in_torch", flash_attention_mask)
    return "flash_in_torch"


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_packed_rows_of_any_number_train_alike_on_an_attention_without_a_mask(flash, micro):
    tokens, index, drawn = batch()
    engines = [engine_of(micro, attention=name) for name in (flash, "sdpa")]
    nll = [engine.update(Batch(tokens, drawn, index), lr=1e-2) for engine in engines]
    torch.testing.assert_close(*nll, rtol=1e-5, atol=1e-5)
    for ours, other in zip(*(engine.states() for engine in engines), strict=True):
        torch.testing.assert_close(ours.exp_avg, other.exp_avg, rtol=1e-4, atol=1e-7)  # a tenth of the gradient


@pytest.mark.parametrize("micro", [1, 4])
def test_rows_of_one_text_train_alike_on_an_attention_without_a_mask(flash, micro):
    tokens, _, drawn = batch()
    engines = [engine_of(micro, attention=name) for name in (flash, "sdpa")]
    nll = [engine.update(Batch(tokens, drawn), lr=1e-2) for engine in engines]
    torch.testing.assert_close(*nll, rtol=1e-5, atol=1e-5)


def test_the_proof_sees_whether_an_attention_is_told_where_documents_begin(flash):
    engine = engine_of(2, attention=flash)
    prove_apart(engine.logits, engine.hook, engine.ds.module, vocab_size=VOCABULARY, device=CPU)
    engine.flash = False
    with pytest.raises(SettingsError, match="a packed document sees the one before it"):
        prove_apart(engine.logits, engine.hook, engine.ds.module, vocab_size=VOCABULARY, device=CPU)
