import io

import pytest
from rich.console import Console

from e2ray.report.frame.terminal import grid
from e2ray.report.frame.text import DASH
from e2ray.report.run_diff import figures, show_diff
from e2ray.report.run_files import read_run
from e2ray.report.run_folder import open_runs
from e2ray.testing.runs import TEXT, asked, begun, evaluated


def lines(one, other):
    records = [read_run(run) for run in open_runs([one, other])]
    return {row.cells[0]: tuple(row.cells[1:]) for row in figures(*records).rows}


def passkeys(found):
    """Return rows of retrieval of the tuned model, {(context length, depth): answers found of four}."""
    return [
        {"model": "tuned", "task": "passkey", "context_length": length, "depth": depth, "scale": length / 32,
         "found": count, "trials": 4}
        for (length, depth), count in found.items()
    ]  # fmt: skip


def score(folder, value):
    row = f'{{"model": "tuned", "task": "piqa", "metric": "acc", "value": {value}, "stderr": 0.01}}'
    (folder / "suites.json").write_text(f'{{"scores": [{row}]}}')


def test_figures_stand_side_by_side_with_their_difference(tmp_path):
    one = evaluated(tmp_path, "one", retrieval=asked(2))
    other = evaluated(
        tmp_path, "other", better=0.05, retrieval=asked(3), train={"steps": 8, "batch_sequences": 8, "lr": 2e-3}
    )
    found = lines(one, other)
    assert found["NLL at 64 tokens"][2] == "-0.050 (-0.050 to -0.050)"
    assert found["found, passkey at 64 tokens"] == ("50 % (4 of 8)", "75 % (6 of 8)", "+25 points")
    assert found["found, common words at 128 tokens"] == ("50 % (2 of 4)", "75 % (3 of 4)", "+25 points")
    assert found["tokens trained on"] == ("2,048", "2,048", "+0")
    assert found["training"] == ("12 s", "12 s", "+0 s")
    assert found["claimed length"] == ("128", "128", "+0")
    assert found["effective length"] == ("none", "none", DASH)  # retrieval fails at 64, does not cover 32


def test_lengths_that_were_judged_in_two_ways_have_no_difference(tmp_path):
    found = lines(evaluated(tmp_path, "one", retrieval=asked(4)), evaluated(tmp_path, "other"))
    assert found["effective length"] == ("128 (128 to 128)", "128 (128 to 128), by NLL alone", DASH)


def test_retrieval_is_compared_over_the_depths_that_both_runs_have(tmp_path, capsys):
    """Pooled over all that each was asked it would be 15 of 16 against 10 of 16, 31 points lower."""
    one = passkeys({(64, 0.1): 4, (64, 0.5): 4, (64, 0.9): 3, (128, 0.1): 4})
    other = passkeys({(64, 0.1): 4, (64, 0.9): 4, (64, 1.0): 0, (128, 0.9): 2})
    found = lines(evaluated(tmp_path, "one", retrieval=one), evaluated(tmp_path, "other", retrieval=other))
    assert found["found, passkey at 64 tokens"] == ("88 % (7 of 8)", "100 % (8 of 8)", "+12 points")
    assert found["found, passkey at 128 tokens"] == ("100 % (4 of 4)", "50 % (2 of 4)", DASH)
    assert not any("passkey" in figure and "tokens" not in figure for figure in found)
    show_diff(open_runs([tmp_path / "one", tmp_path / "other"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "Retrieval counts only the depths that both runs have where one has more (passkey at 64)." in said
    assert "No difference of retrieval is formed where the runs have no depth in common (passkey at 128)." in said


def test_a_length_that_only_one_run_was_asked_has_its_share_and_no_difference(tmp_path, capsys):
    one = evaluated(tmp_path, "one", retrieval=passkeys({(64, 0.5): 3}))
    other = evaluated(tmp_path, "other", retrieval=passkeys({(64, 0.5): 3, (128, 0.5): 1}))
    found = lines(one, other)
    assert found["found, passkey at 64 tokens"] == ("75 % (3 of 4)", "75 % (3 of 4)", "+0 points")
    assert found["found, passkey at 128 tokens"] == (DASH, "25 % (1 of 4)", DASH)
    show_diff(open_runs([one, other]))
    assert "etrieval" not in capsys.readouterr().out  # a dash says it


@pytest.mark.parametrize(("changes", "said"), [({"seed": 1}, "seed 0 and 1"), ({"digits": 3}, "digits 5 and 3")])
def test_other_prompts_have_no_difference(tmp_path, capsys, changes, said):
    cells = passkeys({(64, 0.5): 3})
    one = evaluated(tmp_path, "one", retrieval=cells, evaluate={"retrieval": {}})
    other = evaluated(tmp_path, "other", retrieval=cells, evaluate={"retrieval": changes})
    found = lines(one, other)
    assert found["found, passkey at 64 tokens"] == ("75 % (3 of 4)", "75 % (3 of 4)", DASH)
    assert found["claimed length"][2] == "+0"
    show_diff(open_runs([one, other]))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"No difference of retrieval is formed, other prompts were asked: evaluate.retrieval.{said}." in printed


def test_runs_of_other_text_have_no_difference(tmp_path, capsys):
    one = evaluated(tmp_path, "one", retrieval=passkeys({(64, 0.1): 4, (64, 0.9): 4, (128, 0.1): 4}))
    other = evaluated(
        tmp_path,
        "other",
        text=TEXT | {"tokenizer_hash": "c" * 64},
        retrieval=passkeys({(64, 0.1): 4, (64, 0.9): 2, (128, 0.1): 4}),
    )
    score(one, 0.5)
    score(other, 0.25)
    found = lines(one, other)
    assert found["NLL at 64 tokens"][2] == DASH
    assert found["claimed length"] == ("128", "128", DASH)
    assert found["effective length"] == ("128 (128 to 128)", "none", DASH)
    assert found["found, passkey at 64 tokens"] == ("100 % (8 of 8)", "75 % (6 of 8)", DASH)
    assert found["piqa, acc"] == ("0.500 ± 0.010", "0.250 ± 0.010", DASH)
    assert found["tokens trained on"][2] == "+0"  # a cost is one whatever was scored
    show_diff(open_runs([one, other]))
    said = " ".join(capsys.readouterr().out.split())
    assert "Not all NLLs can be compared: their tokens are of different tokenizers" in said
    assert (
        "No difference of NLL, reach, retrieval or suites is formed between these runs: they did not score the same "
        "tokens of the same documents in the same way." in said
    )
    assert "No setting differs." in said


def test_a_run_without_an_evaluation_has_dashes_and_the_reason(tmp_path, capsys):
    one, other = evaluated(tmp_path, "one"), begun(tmp_path, "other", seed=1)
    found = lines(one, other)
    assert found["NLL at 128 tokens"][1:] == (DASH, DASH)
    assert found["effective length"][1:] == (DASH, DASH)
    show_diff(open_runs([one, other]))
    said = " ".join(capsys.readouterr().out.split())
    assert "other: no evaluation yet: running, step 4 of 8; `e2ray train" in said
    assert "is formed between these runs: other has no evaluation." in said
    assert "│ seed" in said


def test_suites_stand_among_the_figures(tmp_path):
    folders = [evaluated(tmp_path, name) for name in ("one", "other")]
    for folder, value in zip(folders, (0.5, 0.25), strict=True):
        score(folder, value)
    assert lines(*folders)["piqa, acc"] == ("0.500 ± 0.010", "0.250 ± 0.010", "-0.250")


def test_no_cell_is_cut_and_none_is_markup(tmp_path):
    folders = [evaluated(tmp_path / "[red]bold", "one"), evaluated(tmp_path, "one")]
    table = figures(*(read_run(run) for run in open_runs(folders)))
    said = {}
    for width in (40, 200):
        console = Console(file=io.StringIO(), width=width)
        console.print(grid(table))
        said[width] = console.file.getvalue()
    assert "[red]bold/one" in said[200]
    assert "\N{HORIZONTAL ELLIPSIS}" not in said[40]
