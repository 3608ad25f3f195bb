"""Kinds of files of a model folder, by their names: what programs read unasked, what runs or unpickles, texts.

Names are paths relative to the folder.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

WEIGHTS = (".safetensors", ".bin")  # suffixes of what is loaded
INDEX = ".index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
MODELS = (".model", ".tiktoken", ".spm")  # suffixes of vocabularies
TEMPLATES = "additional_chat_templates"  # a folder, as transformers names it
CONFIGS = (
    "config.json", "generation_config.json", "adapter_config.json", "params.json", "preprocessor_config.json",
    "processor_config.json", "quantize_config.json", "hf_quant_config.json",
)  # fmt: skip
ANY_WEIGHTS = frozenset(
    ".safetensors .bin .pt .pth .ckpt .gguf .ggml .onnx .onnx_data .h5 .keras .msgpack .npz .tflite .mlmodel "
    ".mlpackage .engine .plan .ot .distcp .nemo .tar .tgz .gz .zip .zst .xz .7z".split()
)
CODE = frozenset(".py .pyc .ipynb .so .dll .dylib .exe .sh .bat .ps1 .js .jar .whl .c .cc .cpp .cu .rs .go".split())
PICKLES = frozenset(".pkl .pickle .joblib .dill .npy".split())
FOR_PEOPLE = re.compile(r".*\.(md|pdf|png|jpe?g|svg)|(licen[cs]e|notice|copying|use_policy)\b.*", re.IGNORECASE)


def is_for_people(name: str) -> bool:
    """Return whether a file is a text or picture that no program reads, so that it may be edited."""
    return FOR_PEOPLE.fullmatch(PurePath(name).name) is not None and not is_of_a_tokenizer(name)


def is_of_a_tokenizer(name: str, more: Iterable[str] = ()) -> bool:
    """Return whether a file belongs to a tokenizer, as a chat template does; `more` are names of its own class."""
    path = PurePath(name)
    if path.parts[0] == TEMPLATES:
        return path.suffix == ".jinja"
    return len(path.parts) == 1 and (name in {*TOKENIZER_FILES, *SIDE_FILES, *more} or path.suffix in MODELS)


def is_loaded(name: str) -> bool:
    """Return whether programs read a file of a model folder unasked."""
    path = PurePath(name)
    loaded = path.suffix in WEIGHTS or name in CONFIGS or name.endswith(INDEX)
    return is_of_a_tokenizer(name) or (loaded and len(path.parts) == 1)


def kind_left_behind(name: str) -> str | None:
    """Return what kind of file is left behind when a model is copied, None for a file that is copied."""
    suffix = PurePath(name).suffix.lower()
    kinds = (("weights or an archive", ANY_WEIGHTS), ("code", CODE), ("a pickle", PICKLES))
    return next((kind for kind, suffixes in kinds if suffix in suffixes), None)


def files_below(folder: Path) -> list[str]:
    """Return the sorted names of all files below a folder, without hidden files and those in hidden folders."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in paths if not any(part.startswith(".") for part in name.parts))
