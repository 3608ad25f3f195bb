"""The settings of training steps, and what the cluster provides for them."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from e2ray.config import kinds
from e2ray.config.base import Plain, Settings
from e2ray.config.deepspeed import refuse_not_passed


class ObjectiveKind(Settings):
    """What a training descends, and what it has to be given for that."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the next token's NLL alone."""
        return False

    @property
    def is_taught(self) -> bool:
        """Whether it needs the base as it was before the training."""
        return False

    @property
    def weighs_reach(self) -> bool:
        """Whether tokens are weighted by the reach of their context, which only rows of one text have."""
        return False


class ObjectiveSettings(ObjectiveKind):
    """What a training descends: the sum of its parts, each times its weight."""

    next_token: float = Field(1.0, ge=0, le=1000, description="Weight of the next token's NLL.")
    distill: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Weight of KL(base || model) per token, the base reading the same row at scale 1 without a shift.",
    )
    distance_weights: bool = Field(
        False, description="Whether tokens weigh the more the rarer the drawn reach of their context is."
    )

    @model_validator(mode="after")
    def _anything(self) -> "ObjectiveSettings":
        if not self.next_token and not self.distill:
            raise ValueError("next_token and distill are both 0, so nothing is trained for; raise one of them")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is the next token's NLL alone."""
        return self == ObjectiveSettings()

    @property
    def is_taught(self) -> bool:
        """Whether it includes any distillation."""
        return self.distill > 0

    @property
    def weighs_reach(self) -> bool:
        """Whether the recipe says so."""
        return self.distance_weights


# Every kind, and what is called with settings, `teacher` and `weights`. A section without a kind is the mixture.
OBJECTIVES: dict[type[ObjectiveKind], str] = {
    ObjectiveSettings: "e2ray.train.objectives.Mixture",
}
globals().update({each.__name__: each for each in OBJECTIVES})  # other processes find them by name
if TYPE_CHECKING:
    AnyObjective = ObjectiveKind
else:
    AnyObjective = kinds.one_of(OBJECTIVES)


class StopSettings(Settings):
    """What ends a training before its last step; what it has by then is its result."""

    price_at_base: float = Field(
        gt=0, le=100, description="Nats per token that NLL at L may rise above that of the model before its first step."
    )


class TrainSettings(Settings):
    """Optimizer, schedule and engine of one training."""

    steps: int = Field(ge=1, le=10**9, description="Optimizer updates.")
    objective: AnyObjective = Field(ObjectiveSettings(), description="What is descended.")
    batch_sequences: int = Field(16, ge=1, le=10**6, description="Rows of one update over all workers.")
    micro_batch_sequences: int = Field(
        16, ge=1, description="Rows of one forward on one worker at most; the rest is gradient accumulation."
    )
    lr: float = Field(1e-5, gt=0, le=1, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False, description="Decay rates of AdamW's moments.")
    eps: float = Field(1e-8, ge=1e-30, le=1, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, on matrices only.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Shape after the warm-up.")
    final_lr_share: float = Field(
        0.0, ge=0, le=1, description="Learning rate after the last step as a share of the peak (linear, cosine)."
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    max_skipped_steps: int = Field(
        3,
        ge=1,
        description="Steps in a row without a finite gradient norm or loss, which change nothing, that end the run.",
    )
    zero_stage: int = Field(2, ge=0, le=3, description="DeepSpeed ZeRO stage.")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="What lives in CPU memory: nothing, the optimizer, or it and (stage 3) the weights."
    )
    reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Dtype in which gradients of bf16 weights are summed over workers; bf16 sends half the bytes.",
    )
    deepspeed: Plain = Field(
        {}, description="Further settings of DeepSpeed under its own names; those that follow from ours are refused."
    )
    compile: bool = Field(
        False, description="Compile each decoder layer (torch.compile): a minute or two at the start, faster steps."
    )
    fused_loss: bool = Field(
        False,
        description="Compute the loss with the model's head in it, a chunk of tokens at a time and again in the "
        "backward pass: less memory for large vocabularies, one more product with the head.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs, fp32 on CPUs.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl; losses are means over them.")
    watch_every: int | None = Field(
        None,
        ge=1,
        description="Steps between looks at held-out documents: NLL at L, at the longest window, and half-way between; "
        "null: none.",
    )
    watch_documents: int = Field(4, ge=1, description="Held-out documents that are looked at, the first long ones.")
    stop: StopSettings | None = Field(None, description="What ends a training early; null: nothing.")
    progress_s: float = Field(5.0, gt=0, description="Seconds between progress lines.")

    @field_validator("deepspeed")
    @classmethod
    def _passed_on(cls, value: Plain) -> Plain:
        refuse_not_passed(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> "TrainSettings":
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of log_every ({self.log_every}), so that no logged mean spans "
                f"a restart, got {self.checkpoint_every}"
            )
        if self.watch_every is not None and self.watch_every % self.log_every:
            raise ValueError(
                f"watch_every must be a multiple of log_every ({self.log_every}), whose lines hold what is seen, got "
                f"{self.watch_every}"
            )
        if self.stop is not None and self.watch_every is None:
            raise ValueError("stop: watch_every is null, so nothing is seen that could end the training; set it")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload: all needs zero_stage 3, got {self.zero_stage}; use offload: optimizer")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3, got 0")
        if self.fused_loss and self.objective.is_taught:
            raise ValueError("fused_loss: a distillation compares logits, which are held whole; leave one of them out")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: needs zero_stage 0, 1 or 2, got 3, whose weights come and go within a layer; leave it out or "
                "take a lower stage"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision: bf16 needs zero_stage 1, 2 or 3, got 0; stage 0 keeps no fp32 weights")
        return self


class ClusterSettings(Settings):
    """Workers of a run and the resources each one asks Ray for."""

    num_workers: int = Field(1, ge=1, description="Training workers.")
    use_gpu: Literal["auto"] | bool = Field("auto", description="One GPU per worker; auto: where the cluster has GPUs.")
    cpus_per_worker: float | None = Field(
        None, ge=0.01, le=100_000, description="null: 1 beside a GPU, 0.5 without; the rest of the CPUs reads the data."
    )
    autoscaling: bool = Field(False, description="Whether the cluster adds nodes by itself when resources are missing.")
    wait_s: float = Field(600.0, ge=0, le=1e7, description="Seconds to wait for missing resources on such a cluster.")
    max_failures: int = Field(2, ge=0, description="Worker failures after which the run gives up.")
    hang_s: float = Field(
        300.0,
        ge=5,
        le=1e7,
        description="Seconds without any progress after which a worker is replaced; beyond the longest step, save or "
        "evaluation between two steps. After a minute its stack is shown.",
    )
    allow_open: bool = Field(
        False, description="Whether to run on a cluster that other machines reach and that asks for no token."
    )
    object_store_mib: int = Field(256, ge=80, le=2**24, description="Object store of a Ray started by the run itself.")
