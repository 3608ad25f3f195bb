"""Does vLLM read a profile of every method as transformers does?

    python jobs/bench_serving.py --vllm vllm-environment/bin/python --check

A small random Llama is exported under each method that a server can be told, at a scale of 16, and reads 2,000 tokens:
in transformers with the profile's override, and in a real vLLM, which lives in an environment of its own, with the
server's. Kept are the largest differences of the log-probabilities of the tokens, and as a control those of a profile
of twice the scale. What no server can be told is named with its reason; what llama.cpp is told is written down and not
run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a source tree too

from bench_methods import methods
from benchmarking import finish, goal, parser

L, SCALE, TOKENS, THETA = 128, 16.0, 2000, 10_000.0
SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": L,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EQUAL = 5e-5  # of log-probabilities, nats
# Run by vLLM's own Python: the log-probability of each token but the first, under one profile.
READ_BY_VLLM = """
import json, os, sys
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

def read(folder, override, length, tokens):
    from vllm import LLM, SamplingParams
    model = LLM(
        model=folder, hf_overrides=override, max_model_len=length, dtype="float32", enforce_eager=True,
        skip_tokenizer_init=True, seed=0,
    )
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    told = model.generate({"prompt_token_ids": tokens}, asked, use_tqdm=False)[0].prompt_logprobs
    return [known[token].logprob for token, known in zip(tokens[1:], told[1:])]

if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    found = read(asked["folder"], asked["override"], asked["length"], asked["tokens"])
    with open(sys.argv[2], "w") as file:
        json.dump(found, file)
    os._exit(0)  # what a backend's threads do at the interpreter's end is nothing to the figures
"""


def temperatures() -> dict[str, Any]:
    """Return YaRN under other temperatures, which servers are told as a factor of their own."""
    from e2ray.config.methods import LogTemperature, NoTemperature, YarnMethod

    return {
        "yarn, temperature 0.25": YarnMethod(temperature=LogTemperature(coefficient=0.25)),
        "yarn, no temperature": YarnMethod(temperature=NoTemperature()),
    }


def main() -> int:
    """Measure and write the result."""
    made = parser(__doc__)
    made.add_argument("--vllm", type=Path, help="Python of an environment that holds vLLM; without it none is asked")
    parsed = made.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_model(folder / "model")
        for title, settings in (methods(pairs=16) | temperatures()).items():
            found[title] = served(folder, config, settings, parsed.vllm)
            print(title, {key: value for key, value in found[title].items() if key != "llama.cpp"}, flush=True)
    read = [one for one in found.values() if "vllm" in one]
    goals = [goal("methods whose profile vLLM has read", len(read), at_least=6)]
    if read:
        goals += [
            goal("largest difference of log-probabilities", max(one["vllm"] for one in read), at_most=EQUAL),
            goal("least difference under twice the scale", min(one["twice_the_scale"] for one in read), at_least=0.01),
        ]
    config = {"base_context_length": L, "scale": SCALE, "tokens": TOKENS, "sizes": SIZES}
    return finish("serving", config=config, runs=found, goals=goals, check=parsed.check)


def write_model(folder: Path) -> Any:
    """Save the random Llama and return its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    LlamaForCausalLM(config).save_pretrained(folder)
    return config


def served(folder: Path, config: Any, settings: Any, vllm: Path | None) -> dict[str, Any]:
    """Return how far a method's profile in vLLM lies from transformers', or why it has none."""
    import torch

    from e2ray.config.base import SettingsError
    from e2ray.core.methods.registry import method_of
    from e2ray.serve.profiles import commands, make_profile

    method = method_of(settings)
    if method.needs_length:
        return {"cannot": "vLLM's dynamic NTK is constant, and e2ray trains none"}
    try:
        right, wrong = (
            make_profile(config, L, int(L * SCALE), base_scaling=None, scale=scale, method=method)
            for scale in (SCALE, 2 * SCALE)
        )
    except SettingsError as error:
        return {"cannot": str(error)}
    told = {"llama.cpp": commands(right, model=".", name="model")["llama.cpp"]}
    if vllm is None:
        return told
    tokens = torch.randint(1, SIZES["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(1))
    wanted = read_by_transformers(folder / "model", right, tokens)
    found = {
        name: read_by_vllm(folder, profile, tokens, vllm) for name, profile in (("right", right), ("wrong", wrong))
    }
    return told | {
        "vllm": float((found["right"] - wanted).abs().max()),
        "twice_the_scale": float((found["wrong"] - wanted).abs().max()),
        "mean_log_probability": float(wanted.mean()),
    }


def read_by_transformers(folder: Path, profile: Any, tokens: Any) -> Any:
    """Return the log-probability of each token but the first, float32, as transformers reads a profile."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **profile.override)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(tokens[None], use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]


def read_by_vllm(folder: Path, profile: Any, tokens: Any, python: Path) -> Any:
    """Return the same as a real vLLM reads the server's profile, in a process of its own."""
    import torch

    script, asked, answer = (folder / name for name in ("read.py", "asked.json", "answer.json"))
    script.write_text(READ_BY_VLLM)
    override, length = profile.server_override, profile.context_length
    words = {"folder": str(folder / "model"), "override": override, "length": length, "tokens": tokens.tolist()}
    asked.write_text(json.dumps(words))
    answer.unlink(missing_ok=True)
    done = subprocess.run([str(python), str(script), str(asked), str(answer)], capture_output=True, text=True)
    if done.returncode or not answer.exists():
        raise SystemExit(f"{python}: vLLM ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return torch.tensor(json.loads(answer.read_text()), dtype=torch.float64)


if __name__ == "__main__":
    sys.exit(main())
