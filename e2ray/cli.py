"""The commands. Parsing imports nothing heavy: `--help` and a wrong setting answer at once.

Exit codes: 0 done; 2 a setting, a path or data is wrong (one line on stderr); 1 anything else.
"""

import argparse
import errno
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

WRONG_PLACE = {errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS}
DESCRIPTIONS = {
    "prepare": "corpus -> tokens -> Arrow shards",
    "train": "run a recipe: prepare, pretrain, train, evaluate, export; the same command continues a stopped run",
    "evaluate": "measure a trained run: NLL over window x scale, base beside tuned",
    "suites": "ask a trained run the tasks of published suites (evaluate.suites), base beside tuned",
    "tune": "search settings of a recipe: many short trainings, exported as ranges, recipes and a report",
    "compare": "one base model, many methods and baselines: trained, measured and asked the same way, one table",
    "export": "write a trained run as a Hugging Face folder with a serving profile per context length",
    "generate": "continue a prompt with a trained run or an export, the scale chosen by the request's length",
    "report": "one run or several as a page that opens offline, and as Markdown for a model card",
    "diff": "two runs side by side: settings that differ, and figures with their difference",
    "check": "validate a recipe, its paths and its model before a submission",
    "doctor": "look at the cluster that a recipe would run on: versions, storage, GPUs, kernels, links",
    "plan": "what a recipe will take, before any training: memory, disk, hours and price; or what its draws will show",
    "shards": "look at a folder of shards: what it holds (info, or report as a page), and whether every byte is what "
    "prepare wrote (verify)",
    "schema": "print the JSON schema of a recipe, or of a file that e2ray leaves; or a page of settings or files",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        from e2ray.config.base import brief

        self.exit(2, f"{self.prog}: {brief(message)}; see {self.prog} --help\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of one command, or of all of them as subcommands."""
    if command:
        single = _Parser(description=DESCRIPTIONS[command])
        _add_options(single, command)
        return single
    top = _Parser(prog="e2ray", description="Train once on short windows, serve every context length: E2-LLM on Ray.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in DESCRIPTIONS.items():
        _add_options(commands.add_parser(name, help=text, description=text), name)
    return top


def _add_options(target: argparse.ArgumentParser, command: str) -> None:
    if command == "schema":
        target.add_argument(
            "name",
            nargs="?",
            metavar="NAME",
            help="a file that e2ray leaves, as `evaluation`; an unknown one brings the list; default: a recipe",
        )
        target.add_argument(
            "--markdown",
            action="store_true",
            help="as a page for people: docs/settings.md, or of run-folder docs/run-folder.md",
        )
        return
    if command == "shards":
        target.add_argument("question", choices=("info", "verify", "report"), help="what to tell about the folder")
        target.add_argument("folder", help="folder of shards, made by prepare, or the URI of a copy")
        target.add_argument("--out", metavar="HTML", default="data.html", help="report: where to put the page")
        target.add_argument("--rows", type=int, help="report: rows that a run reads; default: as many as there are")
        return
    if command == "generate":
        _add_generation(target)
        return
    if command in ("report", "diff"):
        several: str | int = "+" if command == "report" else 2
        target.add_argument("runs", nargs=several, metavar="RUN", help="folder of a run, <storage>/<run>")
        if command == "report":
            target.add_argument("--out", metavar="HTML", default="report.html", help="where to put the page")
        return
    target.add_argument("--config", required=True, metavar="RECIPE", help="recipe file (YAML); see jobs/recipes/")
    target.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="replace one setting; may be given many times",
    )
    if command == "check":
        target.add_argument("--measure", action="store_true", help="load the base and find out how far it reads")
    if command == "tune":
        target.add_argument("--resume", action="store_true", help="continue the study of this name, or begin it")
    if command == "plan":
        target.add_argument("--coverage", action="store_true", help="the relative distances that the draws will show")
        target.add_argument("--out", metavar="PNG", help="where to put the picture; default: <name>-coverage.png")
        target.add_argument("--gpu", metavar="NAME", help="plan for this kind of GPU, as H100; default: what is here")
        target.add_argument("--gpu-table", metavar="YAML", help="GPUs and prices of your own, as `H100: 2.49`")
        target.add_argument(
            "--mfu",
            type=float,
            metavar="SHARE",
            help="of a GPU's arithmetic that is reached (0.33, compiled 0.39)",
        )


def _add_generation(target: argparse.ArgumentParser) -> None:
    target.add_argument("folder", help="folder of a run or of an export")
    prompt = target.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--prompt-file", metavar="FILE", help="file that holds it; - reads standard input")
    target.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="tokens added at most (256)")
    target.add_argument("--scale", type=float, metavar="G", help="scale of the request; default: by its length")
    target.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (0)")
    target.add_argument("--top-p", type=float, default=1.0, help="share of the probability sampled from (1)")
    target.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    target.add_argument("--prefill-tokens", type=int, default=2048, help="prompt tokens of one forward (2048)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `e2ray COMMAND ...` and return the exit code."""
    parsed = parser().parse_args(arguments)
    return run(parsed.command, parsed)


def job(command: str) -> int:
    """Run one command as a job's entry point, with the arguments of the process."""
    return run(command, parser(command).parse_args())


def run(command: str, parsed: argparse.Namespace) -> int:
    """Run a parsed command and return its exit code."""
    from e2ray.config.base import SettingsError

    try:
        _dispatch(command, parsed)
        sys.stdout.flush()
    except (SettingsError, FileNotFoundError) as error:
        _say(command, error)
        return 2
    except KeyboardInterrupt:
        _say(command, f"interrupted; the same command{' with --resume' if command == 'tune' else ''} continues")
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in WRONG_PLACE and error.filename is not None:
            _say(command, f"{os.fsdecode(error.filename)}: cannot be used: {error.strerror}; choose another path")
            return 2
        gone = isinstance(error, BrokenPipeError) and _reader_has_gone()
        _discard_unwritable_output()
        if gone:
            return 1
        if os.environ.get("E2RAY_TRACEBACK"):
            raise
        _say(command, f"{str(error) or type(error).__name__} (E2RAY_TRACEBACK=1 shows where)")
        return 1
    return 0


def _say(command: str, message: object) -> None:
    """Print a message as one short line on stderr."""
    from e2ray.config.base import brief

    print(f"e2ray {command}: {brief(' '.join(str(message).split()))}", file=sys.stderr)


def _reader_has_gone() -> bool:
    """Return whether nobody reads stdout any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_unwritable_output() -> None:
    """Drop what stdout has buffered and cannot write, else the exit complains again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _loading() -> Iterator[None]:
    """Run a block of imports, and show every few seconds that they are still running."""
    from functools import partial

    from e2ray.data.pace import Pace
    from e2ray.loading import loading

    with Pace(partial(print, flush=True), "loading torch, transformers and Ray", total=1, unit="parts"), loading():
        yield


def _dispatch(command: str, parsed: argparse.Namespace) -> None:
    from e2ray.config import load
    from e2ray.config.base import SettingsError
    from e2ray.config.uris import problems

    given = {name: value for name, value in vars(parsed).items() if name not in ("prompt", "overrides")}  # texts
    for problem in problems(given):
        raise SettingsError(problem)
    if command == "schema":
        _schema(parsed.name, markdown=parsed.markdown)
        return
    if command == "shards":
        _shards(parsed)
        return
    if command == "generate":
        _generate(parsed)
        return
    if command in ("report", "diff"):
        _runs(command, parsed)
        return
    config = load.load(parsed.config, parsed.overrides)  # before torch and ray are imported
    match command:
        case "train" | "prepare" | "evaluate" | "suites" | "export":
            with _loading():
                from e2ray.stages import pipeline

            pipeline.COMMANDS[command](config)
        case "check":
            from e2ray.stages.check import check

            check(config, measure=parsed.measure)
        case "tune":
            with _loading():
                from e2ray.stages import tune as tuning

            tuning.tune(config, resume=parsed.resume)
        case "compare":
            with _loading():
                from e2ray.stages import compare as comparing

            comparing.compare(config)
        case "doctor":
            with _loading():
                from e2ray.stages.doctor import doctor

            doctor(config)
        case "plan":
            if parsed.coverage:
                from e2ray.stages.coverage import cover

                cover(config, parsed.out)
            else:
                with _loading():
                    from e2ray.stages.plan import plan

                plan(config, gpu=parsed.gpu, table=parsed.gpu_table, mfu=parsed.mfu)


def _schema(name: str | None, *, markdown: bool) -> None:
    import json

    from e2ray.config import load, reference
    from e2ray.config.base import SettingsError
    from e2ray.records import reference as files

    if name is None:
        print(reference.page(load.schema()) if markdown else json.dumps(load.schema(), indent=2))
    elif markdown != (name == files.PAGE):
        raise SettingsError(f"schema {name}: {files.PAGE} is a page, and nothing else; wanted --markdown of it alone")
    else:
        print(files.page() if markdown else json.dumps(files.schema(name), indent=2))


def _generate(parsed: argparse.Namespace) -> None:
    from pathlib import Path

    from e2ray.config.base import SettingsError

    prompt = parsed.prompt
    if prompt is None:
        try:
            data = sys.stdin.buffer.read() if parsed.prompt_file == "-" else Path(parsed.prompt_file).read_bytes()
            prompt = data.decode("utf-8")
        except OSError as error:
            raise SettingsError(
                f"--prompt-file {parsed.prompt_file}: cannot be read ({error.strerror}); name a text file, or - for "
                "standard input"
            ) from None
        except UnicodeDecodeError as error:
            raise SettingsError(f"--prompt-file {parsed.prompt_file}: is not UTF-8 (byte {error.start})") from None
    from transformers.utils.logging import disable_progress_bar

    from e2ray.serve.generate import Generator

    disable_progress_bar()
    generator = Generator(parsed.folder, prefill_tokens=parsed.prefill_tokens)
    pieces = generator.stream(
        prompt,
        max_new_tokens=parsed.max_new_tokens,
        scale=parsed.scale,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        seed=parsed.seed,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _runs(command: str, parsed: argparse.Namespace) -> None:
    from pathlib import Path

    from e2ray.report.run_folder import open_runs

    runs = open_runs(parsed.runs)  # before torch is imported
    if command == "diff":
        from e2ray.report.run_diff import show_diff

        show_diff(runs)
        return
    from e2ray.report.runs import write_report

    text = write_report(Path(parsed.out), runs)
    print(f"report: {parsed.out}; for a model card: {text}")


def _shards(parsed: argparse.Namespace) -> None:
    from e2ray.data import inspect

    match parsed.question:
        case "verify":
            inspect.verify(parsed.folder, show=print)
        case "info":
            print("\n".join(inspect.info(parsed.folder)))
        case "report":
            from pathlib import Path

            from e2ray.data.folder import Folder
            from e2ray.data.shards import read_manifest
            from e2ray.report.data import write_data

            folder = Folder(parsed.folder)
            write_data(Path(parsed.out), read_manifest(folder), location=folder.shown, rows=parsed.rows)
            print(f"report: {parsed.out}")


if __name__ == "__main__":
    sys.exit(main())
