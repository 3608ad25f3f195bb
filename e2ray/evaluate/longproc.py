"""Tasks of LongProc, asked and scored by lm-evaluation-harness from the user's own copy of the data set.

The copy is one of PrincetonPli/LongProc, which has finished prompts. A checkout of LongProc's program is not enough: it
has to write its prompts first. The scorers of `countdown` and `pseudo_to_code` run what the model wrote.

Source: LongProc (arXiv:2501.05414).
"""

from pathlib import Path

import yaml

from e2ray.optional import library

ANSWERS = {  # kinds of tasks, and the lengths of their answers in tokens
    **dict.fromkeys(("path_traversal", "tom_tracking", "html_to_tsv", "countdown"), ("0.5k", "2k", "8k")),
    "pseudo_to_code": ("0.5k", "2k"),
    "travel_planning": ("2k", "8k"),
}
NAMES = tuple(f"{kind}_{length}" for kind, lengths in ANSWERS.items() for length in lengths)
WANTED = "a copy of the data set PrincetonPli/LongProc; a checkout of LongProc's program does not hold these prompts"


def held(name: str, folder: Path) -> bool:
    """Return whether a folder holds the data of a task, one of NAMES."""
    kind = name.rsplit("_", 1)[0]
    is_checkout = any((parent / kind).is_dir() for parent in (folder, folder / "data"))
    return not is_checkout and any(folder.rglob(f"{name}*"))


def redirected(name: str, folder: Path) -> str:
    """Return a task file by which the harness asks a task, one of NAMES, from a copy of the data set."""
    original = Path(str(library("lm_eval.tasks").__file__)).parent / "longproc" / f"{name}.yaml"
    content = {"include": str(original), "task": f"longproc:{name}", "dataset_path": str(folder.absolute())}
    return str(yaml.safe_dump(content))
