"""The commands as a person meets them, by their exit codes and what they print.

Unless a test says otherwise the command runs in a process of its own, in an empty folder, with nothing of this project
on PYTHONPATH. Those that work with models run in this process, which has loaded what they take seconds to load.
"""

import ast
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import jsonschema
import pytest

from e2ray.cli import DESCRIPTIONS, main
from e2ray.testing.runs import begun, evaluated

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "jobs" / "recipes" / "demo-cpu.yaml"
JOBS = ("prepare", "train", "tune", "evaluate", "export")
WITHOUT_RECIPE = ("schema", "shards", "generate", "report", "diff")
HEAVY = {"torch", "ray", "transformers", "pyarrow", "numpy", "deepspeed"}

# Runs a command and says on the last line of stdout which modules it has imported.
SPY = """
import sys
from e2ray.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("\\n" + " ".join(sorted(name for name in sys.modules if "." not in name)))
sys.exit(code)
"""


def start(arguments, folder, **environment):
    """Start a process in `folder`; its output can be read."""
    surroundings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "E2RAY_TRACEBACK")}
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=folder,
        env=surroundings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )


def run(arguments, folder, **environment):
    """Return (exit code, stdout, stderr) of a process."""
    process = start(arguments, folder, **environment)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def e2ray(*arguments):
    """Return the command line of `e2ray ...` with the source tree in sight."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SPY}", *arguments]


def spied(folder, *arguments):
    """Return (exit code, stdout, stderr, modules) of one `e2ray` command."""
    code, output, errors = run(e2ray(*arguments), folder)
    output, _, modules = output.rstrip("\n").rpartition("\n")
    return code, output, errors, set(modules.split())


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """A function that runs one `e2ray` command in this process, in an empty folder, and returns what `run` does."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_here


def one_line(errors):
    """Return the single line of stderr."""
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    return lines[0]


# ---- help -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], *([name] for name in DESCRIPTIONS)], ids=" ".join)
def test_help_answers_without_importing_anything_heavy(tmp_path, arguments):
    code, output, errors, modules = spied(tmp_path, *arguments, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith("usage: e2ray" if not arguments else "usage:")
    assert not modules & (HEAVY | {"pydantic", "yaml"})
    assert "argparse" in modules


def test_help_names_every_command(tmp_path):
    _, output, _, _ = spied(tmp_path, "--help")
    for name in DESCRIPTIONS:
        assert f"\n    {name} " in output


def test_the_installed_command_answers_in_under_a_second(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, output, _ = run([Path(sys.executable).with_name("e2ray"), "--help"], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0
    assert output.startswith("usage: e2ray")
    # processor time, since elapsed time on a busy machine says nothing
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


# ---- wrong settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name in DESCRIPTIONS if name not in WITHOUT_RECIPE])
def test_a_wrong_setting_is_one_line_before_anything_heavy_is_imported(tmp_path, command):
    code, output, errors, modules = spied(tmp_path, command, "--config", RECIPE, "--set", "train.lr=fast")
    assert code == 2
    assert output == ""
    assert one_line(errors) == f"e2ray {command}: {RECIPE}: train.lr: got 'fast', wanted a number"
    assert not modules & HEAVY
    assert "pydantic" in modules


def test_a_wrong_setting_answers_in_under_a_second(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    spied(tmp_path, "train", "--config", RECIPE, "--set", "train.lr=fast")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # processor time


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "gone.yaml"], "e2ray train: gone.yaml: no such recipe; jobs/recipes/ holds some"),
        (["train", "--config", "two\nlines.yaml"], "e2ray train: two lines.yaml: no such recipe"),
        (["train", "--config", "/"], "e2ray train: /: cannot be read: Is a directory"),
        (["train", "--config", "/dev/null"], "e2ray train: /dev/null: is empty"),
        (["check", "--config", RECIPE, "--set", "a\nb"], "e2ray check: --set a b: wanted key.path=value"),
        (["check", "--config", RECIPE, "--set", "name.a=1"], "--set name.a=1: name is 'demo-cpu', not a section"),
        (["report", "gone"], "e2ray report: gone: not found; wanted the folder of a run, <storage>/<run>"),
        (["report", "/dev"], "e2ray report: /dev: holds no run: config.yaml is missing; wanted a folder that"),
        (["diff", "gone", "gone"], "e2ray diff: gone: not found; wanted the folder of a run, <storage>/<run>"),
        (["diff", "one"], "e2ray diff: the following arguments are required: RUN; see e2ray diff --help"),
        (["report"], "e2ray report: the following arguments are required: RUN; see e2ray report --help"),
        (["train"], "e2ray train: the following arguments are required: --config; see e2ray train --help"),
        (["train", "--config", RECIPE, "--set"], "e2ray train: argument --set: expected one argument"),
        (["train", "--config", RECIPE, "more"], "e2ray: unrecognized arguments: more"),
        (["trian", "--config", RECIPE], "e2ray: argument COMMAND: invalid choice: 'trian' (choose from"),
        ([], "e2ray: the following arguments are required: COMMAND; see e2ray --help"),
    ],
)
def test_what_cannot_be_run_exits_with_2_and_one_line(tmp_path, arguments, message):
    code, output, errors, modules = spied(tmp_path, *arguments)
    assert (code, output) == (2, "")
    assert one_line(errors).startswith(message) or message in errors
    assert not modules & HEAVY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["x" * 5_000, "ab " * 1_700, "/x" * 2_500])
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--config", "{}"),
        ("check", "--config", RECIPE, "--set", "name={}"),
        ("check", "--config", RECIPE, "--set", "storage=/tmp/{}"),
        ("check", "--config", RECIPE, "--set", "{}=1"),
        ("check", "--config", RECIPE, "--set", "train.lr={}"),
        ("check", "--config", RECIPE, "--set", "data.corpus=[{{kind: text, paths: ['{}']}}]"),
        ("{}",),
        ("train", "--{}"),
        ("report", "{}"),
        ("diff", "{}", "{}"),
        ("shards", "info", "{}"),
        ("generate", ".", "--prompt-file", "{}"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:1])),
)
def test_a_value_of_5000_characters_is_one_short_line(tmp_path, monkeypatch, capsys, arguments, value):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([str(argument).format(value) for argument in arguments])
    except SystemExit as end:  # of argparse
        code = end.code
    assert code == 2
    assert len(one_line(capsys.readouterr().err)) < 1_100
    assert list(tmp_path.iterdir()) == []


KEYS = "s3://keyid:xyzzy@bucket/x"
TOKEN = "gs://bucket/x?access_token=xyzzy"
REFUSED = r"(holds credentials in front of an @|has the parameter 'access_token', .*); credentials belong into the env"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--set", "data.shards={}"], f"{RECIPE}: data.shards: {REFUSED}"),
        (["train", "--set", "data.shards=['{}']"], f"{RECIPE}: data.shards.0: {REFUSED}"),
        (["plan", "--set", "data.shardz={}"], f"{RECIPE}: data.shardz: {REFUSED}"),
        (["tune", "--set", "model.path={}"], f"{RECIPE}: model.path: {REFUSED}"),
        (["prepare", "--set", "data.corpus.0.paths=[/a, '{}']"], f"{RECIPE}: data.corpus.0.paths.1: {REFUSED}"),
        (["export", "--set", "storage={}"], f"{RECIPE}: storage: {REFUSED}"),
        (["check", "--set", 'data={"{}": 1}'], f"{RECIPE}: data: a key {REFUSED}"),
        (["check", "--set", "{}"], r"--set \S+: wanted key.path=value|the recipe: a key has a parameter \(not shown\)"),
        (["check", "--set", "data.shards={}", "--set", "data.shards.a=1"], r"data.shards is '\S+', not a section"),
        (["check", "--set", "data.shards=!{}"], r"tags are refused, got !\S+"),
        (["check", "--set", "data={'{}': 1, '{}': 2}"], r"--set data line 1, column \d+: key '\S+' stands twice"),
        (["evaluate", "--config", "{}"], f"config: {REFUSED}"),
        (["shards", "info", "{}"], f"folder: {REFUSED}"),
        (["shards", "verify", "{}"], f"folder: {REFUSED}"),
        (["shards", "report", "/nowhere", "--out", "{}"], f"out: {REFUSED}"),
        (["report", "here", "{}"], f"runs.1: {REFUSED}"),
        (["diff", "{}", "here"], f"runs.0: {REFUSED}"),
        (["generate", "{}", "--prompt", "http://a:b@c"], f"folder: {REFUSED}"),
        (["shards", "info", "here", "{}"], r"unrecognized arguments: \S+; see"),
        (["shards", "{}", "here"], r"argument question: invalid choice: '\S+' \(choose"),
        (["{}"], r"argument COMMAND: invalid choice: '\S+' \(choose"),
    ],
)
@pytest.mark.parametrize("place", [KEYS, TOKEN])
def test_no_command_takes_or_shows_credentials(capsys, arguments, message, place):
    if "--set" in arguments:
        arguments = [arguments[0], "--config", str(RECIPE), *arguments[1:]]
    try:
        code = main([argument.replace("{}", place) for argument in arguments])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert re.search(message, one_line(printed.err))
    assert "xyzzy" not in printed.err and "keyid" not in printed.err


def test_the_last_of_several_overrides_counts(tmp_path):
    overrides = ["--set", "train.lr=fast", "--set", "train.lr=1e-4", "--set", "train.steps=0"]
    _, _, errors, _ = spied(tmp_path, "check", "--config", RECIPE, *overrides)
    assert one_line(errors) == f"e2ray check: {RECIPE}: train.steps: got 0, wanted at least 1"


# ---- schema and check -------------------------------------------------------------------------------------------


def test_schema_prints_a_json_schema_without_anything_heavy(tmp_path):
    code, output, errors, modules = spied(tmp_path, "schema")
    assert (code, errors) == (0, "")
    jsonschema.Draft202012Validator.check_schema(json.loads(output))
    assert "positions" in json.loads(output)["properties"]
    assert not modules & HEAVY


def test_check_validates_a_recipe_and_writes_nothing(tmp_path, here):
    storage = f"storage={tmp_path / 'storage'}"
    code, output, errors = here("check", "--config", RECIPE, "--set", storage, "--set", "name=mine")
    assert code == 0, errors
    assert output.startswith("mine: sound. L 128, window 128, scales up to 16, contexts up to 2,048 tokens;")
    assert list(tmp_path.iterdir()) == []


def test_check_tells_what_a_search_will_do(tmp_path, here):
    recipe = ROOT / "jobs" / "recipes" / "search-cpu.yaml"
    code, output, errors = here("check", "--config", recipe, "--set", f"storage={tmp_path / 'storage'}")
    assert code == 0, errors
    assert "search: sound. 42 trials of 200 steps over 26 settings, 10 of them published methods" in output
    assert "stopped early at 130 steps" in output


def test_plan_shows_which_distances_the_draws_cover(tmp_path, here):
    code, output, errors = here("plan", "--coverage", "--config", RECIPE, "--out", "seen.png")
    assert code == 0, errors
    assert "demo-cpu" in output and "reach" in output
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")


def test_plan_shows_what_a_recipe_takes_on_a_gpu_that_is_not_here(here):
    code, output, errors = here("plan", "--config", RECIPE, "--gpu", "h100", "--mfu", "0.2")
    assert code == 0, errors
    assert "demo-cpu: 0.7 million numbers, 0.7 trained, bfloat16, ZeRO stage 2" in output
    assert "if 20% of its 989.4 TFLOPS are reached" in output and output.rstrip().endswith("It fits.")
    for options, complaint in (
        (["--gpu", "V100"], "--gpu: V100 is not known, wanted one of B200, "),
        (["--gpu", "h100", "--mfu", "2"], "--mfu: wanted a share above 0 and at most 1, got 2"),
        (["--gpu-table", "none.yaml"], "--gpu-table none.yaml: cannot be read"),
        (["--set", "cluster.use_gpu=true"], "--gpu: cluster.use_gpu is true and there is none here"),
    ):
        code, output, errors = here("plan", "--config", RECIPE, *options)
        assert (code, output) == (2, "") and one_line(errors).startswith(f"e2ray plan: {complaint}")


# ---- reports on runs --------------------------------------------------------------------------------------------


def test_a_run_without_an_evaluation_is_no_report_yet(tmp_path):
    begun(tmp_path, "mine")
    for command in (["report", "mine"], ["diff", "mine", "mine"]):
        code, output, errors, modules = spied(tmp_path, *command)
        assert (code, output) == (2, "")
        assert one_line(errors).startswith(f"e2ray {command[0]}: ")
        assert not modules & HEAVY
    assert "mine: is given 2 times; name each run once" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_report_and_diff_tell_of_runs(tmp_path, here):
    evaluated(tmp_path, "one"), evaluated(tmp_path, "other", better=0.05, seed=7)
    code, output, errors = here("report", "one", "other")
    assert (code, errors) == (0, "")
    assert output == "report: report.html; for a model card: report.md\n"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.md").read_text().startswith("## Runs one, other\n")
    code, output, errors = here("diff", "one", "other")
    assert (code, errors) == (0, "")
    assert "-0.050 (-0.050 to -0.050)" in output
    seed = next(line for line in output.splitlines() if "seed" in line)
    assert [part.strip() for part in seed.split("│")[1:4]] == ["seed", "0", "7"]


# ---- other ends -------------------------------------------------------------------------------------------------


def test_an_interrupted_command_says_so_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    process = start(e2ray("check", "--config", "recipe.yaml"), tmp_path)
    writer = open_for(process, tmp_path / "recipe.yaml")  # held open: the command waits for what is never written
    errors = ""
    for _ in range(20):  # a signal between Python's last look and the blocking read is seen with the next one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=3)
            break
    os.close(writer)
    assert process.returncode == 1
    assert one_line(errors) == "e2ray check: interrupted; the same command continues"


def open_for(process, pipe):
    """Return the writing end of a pipe as soon as a process has opened it for reading."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.02)
    pytest.fail("the command never opened its recipe")


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(tmp_path):
    command = [sys.executable, "-m", "e2ray.cli", "schema"]
    with open("/dev/full", "w") as full:  # nobody expects that of standard output
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert one_line(done.stderr) == ("e2ray schema: [Errno 28] No space left on device (E2RAY_TRACEBACK=1 shows where)")


def test_an_unexpected_error_shows_its_traceback_when_asked(tmp_path):
    command, environment = [sys.executable, "-m", "e2ray.cli", "schema"], os.environ | {"E2RAY_TRACEBACK": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("OSError: [Errno 28] No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "e2ray.cli", "schema"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# ---- jobs -------------------------------------------------------------------------------------------------------


def bare_python(*arguments):
    """Return a command line that sees the dependencies, but neither the installed project nor the working folder.

    -S leaves the site module out, and with it the editable install; -P the folder of `-c`.
    """
    return [sys.executable, "-S", "-P", *arguments]


DEPENDENCIES = {"PYTHONPATH": sysconfig.get_paths()["purelib"]}


def options(usage):
    """Return what a help text says about options."""
    return usage[usage.index("options:") :]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_takes_the_options_of_its_command(tmp_path, name):
    _, of_job, errors = run([sys.executable, ROOT / "jobs" / f"{name}.py", "--help"], tmp_path)
    assert errors == ""
    _, of_command, _, _ = spied(tmp_path, name, "--help")
    assert options(of_job) == options(of_command).rstrip("\n") + "\n"
    assert "--config RECIPE" in options(of_job)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_from_any_folder_without_being_installed(tmp_path, name):
    code, _, errors = run(bare_python("-c", "import e2ray"), tmp_path, **DEPENDENCIES)
    assert code == 1
    assert "No module named 'e2ray'" in errors, "this Python is no proof, it knows the project by itself"
    job = [ROOT / "jobs" / f"{name}.py", "--config", RECIPE, "--set", "train.lr=fast"]
    code, output, errors = run(bare_python(*job), tmp_path, **DEPENDENCIES)
    assert (code, output) == (2, "")
    assert one_line(errors) == f"e2ray {name}: {RECIPE}: train.lr: got 'fast', wanted a number"


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_a_docstring_and_one_call(name):
    tree = ast.parse((ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8"))
    assert f"python jobs/{name}.py --config" in ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For)]
    assert ast.unparse(tree.body[-1].body[0]) == f"sys.exit(job('{name}'))"
