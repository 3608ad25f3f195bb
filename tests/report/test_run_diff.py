import io

from rich.console import Console

from e2ray.report.run_diff import figures, grid, show_diff
from e2ray.report.run_files import read_run
from e2ray.report.run_folder import open_runs
from e2ray.report.run_terms import DASH
from report.made_runs import TEXT, asked, begun, evaluated


def lines(one, other):
    records = [read_run(run) for run in open_runs([one, other])]
    return {row.cells[0]: tuple(row.cells[1:]) for row in figures(*records).rows}


def test_figures_stand_side_by_side_with_their_difference(tmp_path):
    one = evaluated(tmp_path, "one", retrieval=asked(2))
    other = evaluated(
        tmp_path, "other", better=0.05, retrieval=asked(3), train={"steps": 8, "batch_sequences": 8, "lr": 2e-3}
    )
    found = lines(one, other)
    assert found["NLL at 64 tokens"][2] == "-0.050 (-0.050 to -0.050)"
    assert found["found, passkey"] == ("50 % (8 of 16)", "75 % (12 of 16)", "+25 points")
    assert found["tokens trained on"] == ("2,048", "2,048", "+0")
    assert found["training"] == ("12 s", "12 s", "+0 s")
    assert found["claimed length"] == ("128", "128", "+0")
    assert found["effective length"] == ("none", "none", DASH)  # retrieval fails at 64, does not cover 32


def test_lengths_that_were_judged_in_two_ways_have_no_difference(tmp_path):
    found = lines(evaluated(tmp_path, "one", retrieval=asked(4)), evaluated(tmp_path, "other"))
    assert found["effective length"] == ("128 (128 to 128)", "128 (128 to 128), by NLL alone", DASH)


def test_runs_of_other_text_have_no_difference(tmp_path, capsys):
    one = evaluated(tmp_path, "one")
    other = evaluated(tmp_path, "other", text=TEXT | {"tokenizer_hash": "c" * 64})
    assert lines(one, other)["NLL at 64 tokens"][2] == DASH
    show_diff(open_runs([one, other]))
    said = capsys.readouterr().out
    assert "Not all NLLs can be compared: their tokens are of different tokenizers" in " ".join(said.split())
    assert "No setting differs." in said


def test_a_run_without_an_evaluation_has_dashes_and_the_reason(tmp_path, capsys):
    one, other = evaluated(tmp_path, "one"), begun(tmp_path, "other", seed=1)
    found = lines(one, other)
    assert found["NLL at 128 tokens"][1:] == (DASH, DASH)
    assert found["effective length"][1:] == (DASH, DASH)
    show_diff(open_runs([one, other]))
    said = " ".join(capsys.readouterr().out.split())
    assert "other: no evaluation yet: running, step 4 of 8; `e2ray train" in said
    assert "│ seed" in said


def test_suites_stand_among_the_figures(tmp_path):
    folders = [evaluated(tmp_path, name) for name in ("one", "other")]
    for folder, value in zip(folders, (0.5, 0.25), strict=True):
        row = f'{{"model": "tuned", "task": "piqa", "metric": "acc", "value": {value}, "stderr": 0.01}}'
        (folder / "suites.json").write_text(f'{{"scores": [{row}]}}')
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
