"""Where the house is open: an objective, tracker, frequency method and section of somebody's own, for real.

Each is one new file and one line in a registry, put into a copy of the package; nothing else of it changes. A process
of its own then uses what was added, and is told it by no more than a recipe.
"""

import difflib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2ray.testing.runs import evaluated

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Seam:
    """What is added.

    Attributes:
        file: The new one, within the package.
        text: What it holds.
        registry: The file that names all members, within the package.
        opening: Where the registry begins, in that file.
        closing: What follows its last entry.
        line: The new entry.
        use: A program that uses what was added and prints JSON.
    """

    file: str
    text: str
    registry: str
    opening: str
    line: str
    use: str
    closing: str = "\n}\n"


OBJECTIVE = Seam(
    file="train/toy.py",
    text='''
"""An objective that falls with the square of each row's NLL."""

from e2ray.train.objectives import Outcome, next_token


class Squared:
    """The mean of squares of the rows' NLL."""

    def __init__(self, settings, *, teacher, weights):
        assert teacher is None and weights is None
        self.times = settings.times

    def __call__(self, forward, batch):
        """Return it, and each row's square as a figure."""
        nll = next_token(forward, batch).nll
        return Outcome(nll, self.times * (nll**2).mean(), {"squared": nll.detach() ** 2})
''',
    registry="config/train.py",
    opening="OBJECTIVES: ",
    line='    kinds.kind(ObjectiveKind, "squared", "Squares.", times=(float, Field(1.0))): "e2ray.train.toy.Squared",',
    use="""
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from e2ray.testing.tasks import run, small_task

os.environ["LOCAL_RANK"] = "0"
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

def lines(name, **objective):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    run(small_task(folder, preset="e2llm", steps=2, objective=objective))
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]

own, plain = lines("own", kind="squared", times=0.5), lines("plain")
print(json.dumps([[line["loss"] for line in own], [line["squared"] for line in own], [line["loss"] for line in plain]]))
""",
)
TRACKER = Seam(
    file="train/toy.py",
    text='''
"""A tracker that keeps a text file."""

from e2ray.train.trackers import numbers


class TextFile:
    """One line for each logged step, in the run's folder."""

    number = None

    def __init__(self, settings, folder, *, name, number):
        self.file = (folder / settings.file).open("a")
        self.name = name

    def log(self, metrics, step):
        """Write the numbers of a step."""
        print(self.name, step, dict(numbers(metrics)), file=self.file)

    def log_artifact(self, path):
        """Name a file of the run."""
        print(self.name, path.name, file=self.file)

    def close(self, *, failed=False):
        """Say how the run ended."""
        print("failed" if failed else "done", file=self.file)
        self.file.close()
''',
    registry="config/trackers.py",
    opening="TRACKERS: ",
    line='    kinds.kind(TrackerKind, "text", "A file.", file=(str, Field("told.txt"))): "e2ray.train.toy.TextFile",',
    use="""
import json, sys
from pathlib import Path
from e2ray.config.load import validate
from e2ray.train.trackers import Trackers, configured, located, missing

folder = Path(sys.argv[1])
recipe = json.loads(sys.argv[2]) | {"trackers": [{"kind": "text", "file": "lines.txt"}]}
settings = located(validate(recipe, source="test").trackers, folder)
assert not list(missing(settings))
trackers = Trackers(configured(settings, folder, name="mine", continued=True))
trackers.log({"step": 3, "loss": 2.5}, 3)
trackers.log_artifact(folder / "evaluation.json")
trackers.close()
print(json.dumps([(folder / "lines.txt").read_text(), sorted(path.name for path in folder.iterdir())]))
""",
)
METHOD = Seam(
    file="core/methods/toy.py",
    text='''
"""A frequency method that divides all pairs by a root of the scale."""

from e2ray.core.methods.base import FrequencyMethod


class Root(FrequencyMethod):
    """F_j = g ** -power."""

    label, source = "root", "nobody"

    def factors(self, base, scale, base_context_length):
        """Return the same for every pair."""
        return (scale**-self.settings.power)[..., None].expand(*scale.shape, len(base))
''',
    registry="config/methods.py",
    opening="METHODS: ",
    line='    kinds.kind(MethodKind, "root", "Root.", power=(float, Field(0.5))): "e2ray.core.methods.toy.Root",',
    use="""
import json, pickle, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from e2ray.config.compare import CompareSettings
from e2ray.config.load import validate
from e2ray.core.methods.registry import method_of
from e2ray.core.positions import draw
from e2ray.core.rope import RotaryHook
from e2ray.serve.profiles import make_profile

power = 0.25
positions = {"preset": "e2llm", "max_scale": 4, "method": {"kind": "root", "power": power}}
config = pickle.loads(pickle.dumps(validate(json.loads(sys.argv[2]) | {"positions": positions}, source="test")))
method = method_of(config.positions.method)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
llama = LlamaConfig(vocab_size=50, max_position_embeddings=32, initializer_range=0.3, **sizes)
torch.manual_seed(0)
model = LlamaForCausalLM(llama).eval()
tokens = torch.randint(50, (2, 32))
drawn = draw(config.positions, seed=0, step=0, indices=range(2), window=32, base_context_length=32)
with torch.no_grad():
    plain = model(tokens).logits
    with RotaryHook(model, method, base_context_length=32).applied(drawn.scale, drawn.offsets):
        as_drawn = model(tokens).logits
    with RotaryHook(model, method, base_context_length=32).applied(torch.full((2,), 4.0)):
        hooked = model(tokens).logits
    profile = make_profile(llama, 32, 128, base_scaling=None, method=method)
    served = LlamaForCausalLM(LlamaConfig(**llama.to_dict() | profile.override)).eval()
    served.load_state_dict(model.state_dict())
    print(json.dumps({
        "drawn": float((as_drawn - plain).abs().max()),
        "served": float((served(tokens).logits - hooked).abs().max()),
        "apart": float((hooked - plain).abs().max()),
        "factors": profile.override["rope_parameters"]["long_factor"],
        "untrained lanes": CompareSettings().untrained,
    }))
""",
)
SECTION = Seam(
    file="report/sections/toy.py",
    text='''
"""The best letter of the name of each run."""

from e2ray.report.frame.page import Column, Point, Row, Table
from e2ray.report.sections.section import RunSection


def _parts(records):
    return [Table([Column("run"), Column("best letter")], [Row((each.name, max(each.name))) for each in records], "")]


def _findings(records):
    return [Point("letters", "the letters are fine")]


TOY = RunSection("Best letters", "letters", _parts, _findings)
''',
    registry="report/runs.py",
    opening="SECTIONS: ",
    closing="\n    )\n)\n",
    line='        "toy",',
    use="""
import json, sys
from pathlib import Path
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import write_report

page = Path(sys.argv[1]) / "page.html"
markdown = write_report(page, open_runs([sys.argv[2]]))
print(json.dumps([page.read_text(), markdown.read_text()]))
""",
)


def added(seam, folder):
    """Put a seam's member into a copy of the package, and return what the copy differs by: (new files, new lines)."""
    package = folder / "e2ray"
    shutil.copytree(ROOT / "e2ray", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / seam.file).write_text(seam.text.lstrip(), encoding="utf-8")
    registry = package / seam.registry
    before, opening, behind = registry.read_text(encoding="utf-8").partition(f"\n{seam.opening}")
    entries, end, rest = behind.partition(seam.closing)
    assert opening and end, f"{seam.registry}: no registry"
    registry.write_text(f"{before}{opening}{entries}\n{seam.line}{end}{rest}", encoding="utf-8")

    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
    new = [name for name in files if not (ROOT / "e2ray" / name).exists()]
    lines = []
    for name, path in files.items():
        original = (ROOT / "e2ray" / name).read_bytes() if name not in new else path.read_bytes()
        if original != path.read_bytes():
            texts = original.decode().splitlines(), path.read_text(encoding="utf-8").splitlines()
            lines += [(name, line) for line in difflib.ndiff(*texts) if not line.startswith((" ", "?"))]
    return new, lines


# Forks a process for each program, which begins with the libraries loaded that take seconds, and none of the package.
LOADED = """
import gc, json, os, sys, traceback
gc.disable()  # a fifth of the time
import deepspeed, matplotlib.figure, torch, transformers.models.llama.modeling_llama
gc.enable()

def run(folder, program, arguments):
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv[1:] = arguments
    exec(program, {"__name__": "__main__"})
    sys.stdout.flush()

assert "e2ray" not in sys.modules
print(flush=True)
for line in sys.stdin:
    if os.fork() == 0:
        code = 1
        try:
            run(*json.loads(line))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.wait()[1], flush=True)
"""


@pytest.fixture(scope="module")
def used():
    """Return a function (seam, folder, arguments) that returns what a program says that imports the copy."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def use(seam, folder, *arguments):
        output = folder / "output"
        output.mkdir()
        process.stdin.write(json.dumps([str(folder), seam.use, [str(output), *arguments]]) + "\n")
        assert process.stdout.readline() == "0\n", (folder / "stderr").read_text()[-3000:]
        return json.loads((folder / "stdout").read_text().splitlines()[-1])

    while process.stdout.readline() != "\n":  # libraries say something as they load
        assert process.poll() is None
    yield use
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("seam", [OBJECTIVE, TRACKER, METHOD, SECTION], ids=lambda seam: seam.registry)
def test_a_member_is_one_new_file_and_one_new_line(seam, tmp_path):
    assert added(seam, tmp_path) == ([seam.file], [(seam.registry, f"+ {seam.line}")])


def test_a_training_descends_an_objective_of_ones_own(tmp_path, used):
    added(OBJECTIVE, tmp_path)
    own, squares, plain = used(OBJECTIVE, tmp_path)
    assert len(own) == len(plain) == 2
    assert own[0] == plain[0]  # `loss` is the rows' NLL whatever is descended, and nothing was updated yet
    assert own[1] != plain[1]
    assert squares[0] >= own[0] ** 2  # the mean of squares


def test_a_run_logs_to_a_tracker_of_ones_own(tmp_path, used, small):
    added(TRACKER, tmp_path)
    told, files = used(TRACKER, tmp_path, json.dumps(whole(small)))
    assert told == "mine 3 {'train/loss': 2.5}\nmine evaluation.json\ndone\n"
    assert files == ["lines.txt"]  # no number is kept of a tracker that has none


def test_rows_are_drawn_and_a_length_is_served_under_a_method_of_ones_own(tmp_path, used, small):
    added(METHOD, tmp_path)
    found = used(METHOD, tmp_path, json.dumps(whole(small)))
    assert found["drawn"] > 1e-3 < found["apart"]
    assert found["served"] < 1e-5  # rope parameters in a config and the hook: two ways to the same float32 angles
    assert found["factors"] == pytest.approx([4**0.25] * 8)
    assert found["untrained lanes"][-1] == "root"


def test_a_page_has_a_section_of_ones_own(tmp_path, used):
    run = evaluated(tmp_path / "runs")
    added(SECTION, tmp_path)
    page, markdown = used(SECTION, tmp_path, str(run))
    for text in (page, markdown):
        assert "Best letters" in text and "best letter" in text and "the letters are fine" in text
    assert "| small | s |" in markdown


def whole(small):
    """A recipe in miniature that is complete."""
    return small | {"train": {"steps": 2, "checkpoint_every": 10}}
