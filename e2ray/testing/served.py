"""Folders that models are served from: a tiny one of wide random weights, so that its text depends on every token."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from e2ray.config.data import ByteLevelBpe
from e2ray.data.tokenizer import train_byte_level_bpe
from e2ray.records.folders import ExportFolder

L = 32
TEXT = "the dog sat on the log and looked at the porter, who is what he is"


def write_served_run(folder: Path, *, template: str | None = None) -> Path:
    """Return the folder, with model, tokenizer and scales of its own: 1 up to L, 3 up to 2 L, 5 up to 4 L.

    The tokenizer wraps a text by `template`, of `[gMASK]` and `<sop>`, which are added, and `<|endoftext|>`.
    """
    tokenizer = train_byte_level_bpe([TEXT] * 20, ByteLevelBpe(vocab_size=300))
    if template is not None:
        names = ("[gMASK]", "<sop>", "<|endoftext|>")
        tokenizer.add_special_tokens({"additional_special_tokens": [*names[:2]]})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
        )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=L,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"context_length": length, "served": scale} for length, scale in ((32, 1.0), (64, 3.0), (128, 5.0))]
    ExportFolder(folder).scales.write_text(json.dumps({"base_context_length": L, "lengths": rows}))
    return folder


def save_tokenizer(folder: Path, **options: object) -> None:
    """Save a tokenizer of single bytes, without special tokens but those that `options` name."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
