"""The model of a run: a pretrained checkpoint, or a small Llama built from its sizes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from e2ray.config.base import LONGEST_TEXT, Settings, Text, is_folder

Attention = Literal["auto", "flash_attention_3", "flash_attention_2", "kernels", "flex", "sdpa", "eager"]


class LoraSettings(Settings):
    """Low-rank adapters (peft) instead of full fine-tuning; merged into `model/` at the end."""

    rank: int = Field(16, ge=1, le=65_536, description="Rank of the adapters.")
    alpha: float = Field(32.0, gt=0, le=1e6, description="Adapter scaling numerator; the update is alpha / rank * BA.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the adapters.")
    targets: tuple[Text, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        min_length=1,
        strict=False,
        description="Names of the linear modules that get an adapter.",
    )
    trainable: tuple[Text, ...] = Field(
        (), strict=False, description="Names of modules trained in full beside the adapters, e.g. embed_tokens."
    )


class ModelSettings(Settings):
    """What both kinds of model share."""

    attention: Attention = Field(
        "auto",
        description="auto: flash_attention_3 or flash_attention_2 where it is installed and on a GPU, else sdpa; of "
        "these what the model's class can compute, else eager. kernels: flash attention from the hub, code included; "
        "flex: torch's, compiled.",
    )
    checkpoint_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the decoder layers that recompute their activations in the backward pass: less memory, "
        "more time.",
    )
    liger: bool = Field(False, description="Liger's kernels for norms and SwiGLU while training, on GPUs.")
    lora: LoraSettings | None = Field(None, description="null trains every weight.")

    @model_validator(mode="before")
    @classmethod
    def _all_or_none(cls, value: object) -> object:
        """Read the setting of older recipes, which was all layers or none."""
        if not isinstance(value, dict) or not isinstance(every := value.get("gradient_checkpointing"), bool):
            return value
        if "checkpoint_share" in value:
            raise ValueError("gradient_checkpointing is the old name of checkpoint_share; leave it out")
        return {"checkpoint_share": float(every)} | {k: v for k, v in value.items() if k != "gradient_checkpointing"}


class PretrainedModel(ModelSettings):
    """A Hugging Face checkpoint: a local folder or a hub id. Remote code is never run."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(min_length=1, description="Folder (starts with /, ./, ../ or ~) or hub id.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a hub id.")
    base_context_length: int | None = Field(
        None, ge=2, le=LONGEST_TEXT, description="L in tokens; null takes it from the checkpoint's config.json."
    )
    base_scaling: Literal["keep", "replace"] | None = Field(
        None,
        description="Demanded where the checkpoint already carries a rope scaling: keep trains on top of it, "
        "replace removes it.",
    )

    @property
    def is_folder(self) -> bool:
        """Whether `path` names a local folder and not a hub id."""
        return is_folder(self.path)


class LlamaModel(ModelSettings):
    """A Llama built from its sizes with random weights; its recipe pretrains it first."""

    kind: Literal["llama"] = "llama"
    hidden_size: int = Field(128, ge=8, le=65_536, description="Width.")
    num_layers: int = Field(4, ge=1, le=1024, description="Decoder layers.")
    num_heads: int = Field(4, ge=1, le=32_768, description="Attention heads.")
    num_key_value_heads: int = Field(4, ge=1, le=32_768, description="Key and value heads.")
    intermediate_size: int = Field(344, ge=8, le=1_048_576, description="Width of the feed-forward layers.")
    base_frequency: float = Field(
        10_000.0, gt=1, le=1e12, description="Constant of RoPE's frequency series (rope_theta)."
    )
    base_context_length: int = Field(128, ge=2, le=LONGEST_TEXT, description="L: tokens of the pretraining window.")
    tie_embeddings: bool = Field(True, description="Input and output embeddings share their weights.")
    initializer_range: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Standard deviation of the random weights. Narrow models learn to look back much sooner from about "
        "1 / sqrt(hidden_size).",
    )

    @model_validator(mode="after")
    def _check(self) -> "LlamaModel":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_heads ({2 * self.num_heads}), got {self.hidden_size}"
            )
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_heads ({self.num_heads}), got {self.num_key_value_heads}"
            )
        return self


Model = Annotated[PretrainedModel | LlamaModel, Field(discriminator="kind")]
