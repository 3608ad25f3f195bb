"""What does perplexity by context length cost, is it right, and what does a large vocabulary take?

python jobs/bench_perplexity.py

One pass per scale that all shorter lengths share, against one forward per length, A B B A, on the same documents; the
surface of a model folder against a naive implementation of the protocol, one token at a time in float64; peak memory
of scoring a row at a vocabulary of 128k tokens, its head asked for a slice at a time against all at once.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

import numpy as np
import torch
from benchmarking import alternate, finish, goal, parser
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from e2ray.core.losses import token_nll
from e2ray.core.rope import RotaryHook
from e2ray.evaluate.by_length import length_cells, token_nlls
from e2ray.evaluate.perplexity import document_sums
from e2ray.evaluate.scoring import forward_nll
from e2ray.train.environment import peak_memory_mib

L = 128
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 344}
VOCABULARY, LARGE_VOCABULARY = 1024, 131_072
LENGTHS = {
    "5 geometric lengths": (128, 256, 512, 1024, 2048),
    "16 linear lengths": tuple(range(128, 2049, 128)),
}
LAST, DOCUMENTS = 32, 2
PAIRS = {5: 20, 16: 6}
NAIVE = {"window": 256, "stride": 32, "scale": 2.0, "tokens": 333}  # the last window moves on by less than the stride


def model_of(vocab_size: int) -> LlamaForCausalLM:
    """Return a model of the built-in recipe's size, with weights that predict something."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, max_position_embeddings=L, num_key_value_heads=4, initializer_range=0.1, **SIZES
    )
    return LlamaForCausalLM(config).eval()


def by_length(model: Any, documents: list[np.ndarray], lengths: tuple[int, ...]) -> dict[str, Any]:
    """Compare one pass with one forward per length, all at one scale."""
    hook = RotaryHook(model)
    scale = lengths[-1] / L
    found: dict[str, Any] = {}

    def passes(windows: tuple[int, ...]) -> list[Any]:
        cells = []
        for window in windows:
            nll = token_nlls(model, hook, documents, window=window, scale=scale, batch_tokens=4096, device="cpu")
            inside = lengths if len(windows) == 1 else (window,)
            cells += length_cells(nll, inside, last=LAST, scale=scale, model="tuned")
        return cells

    def shared() -> None:
        found["shared"] = passes(lengths[-1:])

    def apart() -> None:
        found["apart"] = passes(lengths)

    result = alternate(apart, shared, pairs=PAIRS[len(lengths)], warmup=1)
    hook.remove()
    both = zip(found["shared"], found["apart"], strict=True)
    result["largest_relative_difference"] = max(abs(one.nll / other.nll - 1) for one, other in both)
    return result


def naive(model: Any, document: np.ndarray) -> float:
    """Return the NLL of the sliding window, each token scored by itself in the window the protocol gives it."""
    window, stride = int(NAIVE["window"]), int(NAIVE["stride"])
    losses = []
    for token in range(1, len(document)):
        moves = max(0, math.ceil((token - window + 1) / stride))
        end = min(window + moves * stride, len(document))
        context = torch.from_numpy(document[end - window : end].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(context).logits[0].double()
        place = token - (end - window)
        losses.append(-torch.log_softmax(logits[place - 1], dim=-1)[int(document[token])].item())
    return sum(losses) / len(losses)


def interpolated(folder: Path, scale: float) -> dict[str, Any]:
    """Return a saved model's rope parameters with positions divided by `scale`, as plain transformers takes them."""
    own = AutoConfig.from_pretrained(folder).rope_parameters or {}
    kind = own.get("rope_type")
    if kind not in ("default", "linear"):
        raise SystemExit(
            f"--model {folder}: its rope_type is {kind or 'of each layer type'}, wanted default or linear, which plain "
            "transformers can scale further"
        )
    return {**own, "rope_type": "linear", "factor": scale * own.get("factor", 1.0)}


def against_naive(folder: Path, document: np.ndarray) -> dict[str, float]:
    """Compare the surface of a saved model with the naive protocol on the same folder, scaled by its config."""
    scale = NAIVE["scale"]
    rope = interpolated(folder, scale)
    served = AutoModelForCausalLM.from_pretrained(folder, rope_parameters=rope, dtype=torch.float32).eval()
    wanted = naive(served, document % served.config.vocab_size)
    del served
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (sums,) = document_sums(
        model,
        RotaryHook(model),
        [document % model.config.vocab_size],
        windows=[int(NAIVE["window"])],
        scales=[scale],
        stride=int(NAIVE["stride"]),
        batch_tokens=4096,
        device="cpu",
        name="tuned",
    )
    return {"naive": wanted, "surface": sums.mean, "difference": abs(sums.mean - wanted)}


def memory(kind: str, folder: str) -> None:
    """Score one row and print the peak memory of this process beyond that before it, in MiB."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(LARGE_VOCABULARY, (1, 2048), generator=torch.Generator().manual_seed(0))
    forward_nll(model, tokens[:, :2])
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is what is resident now
    before = peak_memory_mib(model.device) or math.nan
    with torch.no_grad():
        if kind == "chunked":
            nll = forward_nll(model, tokens)
        else:
            nll = token_nll(model(input_ids=tokens, use_cache=False).logits, tokens)
    print((peak_memory_mib(model.device) or math.nan) - before, float(nll.mean()))


def memories(folder: Path) -> dict[str, Any]:
    """Compare the peak memory of both ways, each in a process of its own."""
    found: dict[str, Any] = {}
    for kind in ("chunked", "whole", "whole", "chunked"):
        command = [sys.executable, __file__, "--memory", kind, str(folder)]
        mib, nll = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        found.setdefault(kind, []).append({"peak_mib": mib, "nll": nll})
    found["ratio"] = max(run["peak_mib"] for run in found["chunked"]) / min(run["peak_mib"] for run in found["whole"])
    return found


def main() -> int:
    if sys.argv[1:2] == ["--memory"]:
        memory(*sys.argv[2:])
        return 0
    made = parser(__doc__)
    made.add_argument("--model", type=Path, help="folder of a model to compare with the naive protocol; default: built")
    parsed = made.parse_args()
    if parsed.model:
        interpolated(parsed.model, NAIVE["scale"])  # refuses one before minutes of measuring
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, VOCABULARY, 2048).astype(np.int32) for _ in range(DOCUMENTS)]
    runs: dict[str, Any] = {}
    goals = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_of(VOCABULARY)
        for what, lengths in LENGTHS.items():
            runs[what] = by_length(model, documents, lengths)
            wanted = 1.5 if len(lengths) == 5 else 6.0
            goals += [
                goal(f"{what}: a forward per length / a shared pass", runs[what]["ratio_of_medians"], at_least=wanted),
                goal(f"{what}: relative difference", runs[what]["largest_relative_difference"], at_most=1e-6),
            ]
        model.save_pretrained(folder / "small")
        runs["naive"] = against_naive(parsed.model or folder / "small", documents[0][: int(NAIVE["tokens"])])
        goals.append(goal("surface - naive protocol, nats per token", runs["naive"]["difference"], at_most=1e-6))
        model_of(LARGE_VOCABULARY).save_pretrained(folder / "large")
        runs["memory"] = memories(folder / "large")
        goals.append(goal("peak memory at 128k tokens, in slices / at once", runs["memory"]["ratio"], at_most=0.5))
    config = {"sizes": SIZES, "lengths": LENGTHS, "last": LAST, "documents": DOCUMENTS, "pairs": PAIRS, "naive": NAIVE}
    return finish("perplexity", config=config, runs=runs, goals=goals, check=parsed.check)


if __name__ == "__main__":
    sys.exit(main())
