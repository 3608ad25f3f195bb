"""The commands. Parsing imports nothing heavy: `--help` and a wrong setting answer at once.

Exit codes: 0 done; 2 a setting, a path or data is wrong (one line on stderr); 1 anything else.
"""

import argparse
import os
import sys
from collections.abc import Sequence

DESCRIPTIONS = {
    "prepare": "corpus -> tokens -> Arrow shards",
    "train": "run a recipe: prepare, pretrain, train, evaluate, export; the same command continues a stopped run",
    "evaluate": "measure a trained run: NLL over window x scale, base beside tuned",
    "export": "write a trained run as a Hugging Face folder with a serving profile per context length",
    "check": "validate a recipe, its paths and its model before a submission",
    "schema": "print the JSON schema of a recipe",
}


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of one command, or of all of them as subcommands."""
    if command:
        single = argparse.ArgumentParser(description=DESCRIPTIONS[command])
        _add_options(single, command)
        return single
    top = argparse.ArgumentParser(
        prog="e2ray", description="Train once on short windows, serve every context length: E2-LLM on Ray."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in DESCRIPTIONS.items():
        _add_options(commands.add_parser(name, help=text, description=text), name)
    return top


def _add_options(target: argparse.ArgumentParser, command: str) -> None:
    if command == "schema":
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
    except (SettingsError, FileNotFoundError) as error:
        print(f"e2ray {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"e2ray {command}: interrupted; the same command continues", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("E2RAY_TRACEBACK"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"e2ray {command}: {text} (E2RAY_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    return 0


def _dispatch(command: str, parsed: argparse.Namespace) -> None:
    from e2ray.config import load

    if command == "schema":
        print(load.schema())
        return
    config = load.load(parsed.config, parsed.overrides)  # before torch and ray are imported
    from e2ray import pipeline

    match command:
        case "prepare":
            pipeline.prepare_only(config)
        case "train":
            pipeline.execute(config)
        case "evaluate":
            pipeline.evaluate_only(config)
        case "export":
            pipeline.export_only(config)
        case "check":
            pipeline.check(config)


if __name__ == "__main__":
    sys.exit(main())
