"""The report on runs: what it says, what it leaves out, and that both its forms say the same."""

import html
import json
import re

import pytest

from e2ray.config.base import SettingsError
from e2ray.files import read_told, write_json
from e2ray.report.frame.page import Picture, Table
from e2ray.report.frame.text import DASH
from e2ray.report.run_files import read_run
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import cards, write_report
from e2ray.report.sections.nll import draw_nll
from e2ray.testing.pages import read, unrendered
from e2ray.testing.runs import TEXT, asked, begun, evaluated


def made(*folders):
    """Return the sections of a report by their anchors, their pictures empty."""
    with unrendered():
        return rendered(*folders)


def rendered(*folders):
    """Return the sections of a report by their anchors."""
    return {section.anchor: section for section in cards([read_run(run) for run in open_runs(folders)])}


def tables(section):
    return [part for part in section.parts if isinstance(part, Table)]


def rows(table, *names):
    """Return the rows of a table as mappings, those whose `run` is among `names` where some are given."""
    titles = [column.title for column in table.columns]
    found = [dict(zip(titles, row.cells, strict=True)) for row in table.rows]
    return [row for row in found if not names or row["run"] in names]


def points(section):
    return {point.head: point for point in section.parts[0].items}


def test_one_run_has_a_verdict_and_every_section_that_it_measured(tmp_path):
    found = made(evaluated(tmp_path, retrieval=asked()))
    assert [*found] == ["words", "runs", "nll", "surface", "position", "reach", "retrieval", "cost", "method"]
    assert "Served at scale W/L, the tuned model is below the untouched base" in points(found["words"])["small:"].text
    (nll,) = tables(found["nll"])
    assert [row["window W"] for row in rows(nll)] == ["32", "64", "128"]
    assert rows(nll)[1]["minus base at 1"].startswith("-0.400 (-0.400")
    (cost,) = tables(found["cost"])
    assert rows(cost)[0] | {"run": ""} == {
        "run": "",
        "steps": "8",
        "tokens": "2,048",
        "training": "12 s",
        "tokens per second": "171",
        "peak memory": "508 MiB",
        "workers": "1",
        "hardware": "2 CPUs",
        "whole run": "2.5 min",
    }


def test_retrieval_that_could_not_be_measured_is_said_and_not_taken_for_one_that_was_not_asked(tmp_path):
    asks = {"windows": [32, 64, 128], "scales": [1, 2, 4], "retrieval": {"context_lengths": [64]}}
    section = made(evaluated(tmp_path, evaluate=asks))["retrieval"]
    assert [part.text for part in section.parts] == [
        "small: retrieval was asked and could not be measured; its cells are missing."
    ]
    beside = made(evaluated(tmp_path, "one", evaluate=asks), evaluated(tmp_path, "whole", retrieval=asked()))
    assert "one: retrieval was asked and could not be measured" in beside["retrieval"].parts[0].text
    assert "retrieval" not in made(evaluated(tmp_path, "none"))


def test_a_length_is_served_at_the_scale_that_export_takes(tmp_path):
    folder = evaluated(tmp_path)
    path = folder / "scales.json"
    content = read_told(path, wanted="it")[0]
    content["lengths"][1] |= {"served": 4.0, "scale": None, "paper_scale": 2.0, "paper_nll": None}  # an older file's
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "digest"}))
    _, scales = tables(made(folder)["reach"])
    row = rows(scales)[1]
    assert (row["W/L"], row["best scale"], row["served at"]) == ("2", DASH, "2")


def without_its_scaling(folder, kind):
    """Make a run one of a base whose scaling was removed and return its folder."""
    path = folder / "evaluation.json"
    found = read_told(path, wanted="it")[0]
    found["verdict"]["removed_scaling"] = {
        "scaling": kind,
        "factor": 4.0,
        "tokens": 512,
        "mean_difference": 0.3,
        "changed_argmax": 0.1,
    }
    path.write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_base_whose_scaling_was_removed_is_called_that_everywhere(kind, tmp_path):
    suites = {"scores": [{"model": m, "task": "t", "metric": "acc", "value": 0.5} for m in ("base", "tuned")]}
    folder = without_its_scaling(evaluated(tmp_path, retrieval=asked()), kind)
    write_json(folder / "suites.json", suites | {"missing": []})
    found, name = made(folder), f"base, its {kind} scaling removed"
    (nll,) = tables(found["nll"])
    titles = [column.title for column in nll.columns]
    assert {f"{name} at 1", f"{name} at W/L", f"minus {name} at 1"} < set(titles)
    picture = found["nll"].parts[0]
    assert f"What is called base of small is the {name}." in picture.caption
    assert "untouched" not in picture.caption
    (asked_table,) = tables(found["retrieval"])
    assert {row["model"] for row in rows(asked_table)} == {name, "tuned"}
    (scores,) = tables(found["suites"])
    assert name in [column.title for column in scores.columns]
    left, right = draw_nll([read_run(open_runs([folder])[0])]).axes
    labels = [text.get_text() for axis in (left, right) for text in axis.get_legend().get_texts()]
    assert name in labels and not any("untouched" in label for label in labels)


def test_bases_of_several_kinds_stand_under_one_title_and_are_told_apart_below(tmp_path):
    plain, other = evaluated(tmp_path, "plain"), without_its_scaling(evaluated(tmp_path, "other"), "yarn")
    (nll,) = tables(made(plain, other)["nll"])
    assert "base at 1" in [column.title for column in nll.columns]
    assert nll.caption.endswith("What is called base of other is the base, its yarn scaling removed.")


def test_runs_are_compared_document_by_document(tmp_path):
    one = evaluated(tmp_path, "one")
    other = evaluated(tmp_path, "other", better=0.05, positions={"preset": "pose", "max_scale": 4})
    found = made(one, other)
    text = points(found["words"])["other is lowest at 128 tokens,"].text
    assert "Against it one is +0.050 (+0.050 to +0.050), beyond the spread of the documents." in text
    assert "other is lowest at 32 tokens," in points(found["words"])
    (nll,) = tables(found["nll"])
    assert rows(nll, "other")[0]["minus one"] == "-0.050 (-0.050 to -0.050)"
    assert len([part for part in found["nll"].parts if isinstance(part, Picture)]) == 1
    assert len(found["surface"].parts) == 2
    (settings,) = tables(found["settings"])
    assert {"setting": "positions.scale.kind", "one": "uniform_int", "other": "fixed"} in rows(settings)


def test_runs_that_are_alike_say_so(tmp_path):
    found = made(evaluated(tmp_path, "one"), evaluated(tmp_path, "other"))
    assert found["settings"].parts[0].text == "None but the names."
    assert "not told apart" in points(found["words"])["one is lowest at 128 tokens,"].text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT | {"tokenizer_hash": "c" * 64}, "of different tokenizers"),
        (TEXT | {"documents_digest": "c" * 64}, "scored different held-out documents"),
        ({}, "the evaluation of other does not name the documents that it scored"),
    ],
)
def test_runs_of_other_text_are_never_compared_silently(tmp_path, text, reason):
    found = made(evaluated(tmp_path, "one"), evaluated(tmp_path, "other", text=text))
    first = found["words"].parts[0].items[0]
    assert first.head == "Not all NLLs can be compared:" and first.warning and reason in first.text
    assert reason in found["nll"].parts[0].text and found["nll"].parts[0].warning
    assert [[row["run"] for row in rows(table)] for table in tables(found["nll"])] == [["one"] * 3, ["other"] * 3]
    assert not any(column.title == "minus one" for table in tables(found["nll"]) for column in table.columns)
    assert not [head for head in points(found["words"]) if "is lowest" in head]


def test_a_run_without_an_evaluation_looks_missing_and_the_page_comes_out(tmp_path):
    found = rendered(begun(tmp_path, "bare"), evaluated(tmp_path, "whole", retrieval=asked()))
    point = points(found["words"])["bare:"]
    assert point.warning and "no evaluation yet: running, step 4 of 8; `e2ray train" in point.text
    (nll,) = tables(found["nll"])
    for row in rows(nll, "bare"):
        assert {value for key, value in row.items() if key not in ("run", "window W")} == {DASH}
    reach, scales = tables(found["reach"])
    assert rows(reach, "bare")[0]["effective"] == DASH
    assert {row["reads"] for row in rows(scales, "bare")} == {DASH}
    (retrieval,) = tables(found["retrieval"])
    assert {row["128"] for row in rows(retrieval, "bare")} == {DASH}
    assert rows(retrieval, "whole")[1]["128"] == "75 % (6 of 8)"
    assert "bare: has no evaluation" in found["retrieval"].parts[0].text
    assert "It has no surface here." in found["surface"].parts[-1].text


def test_what_could_not_be_measured_is_a_dash(tmp_path):
    asks = {"windows": [32, 64, 128, 4096], "scales": [1, 2, 4], "retrieval": {"context_lengths": [64, 128, 256]}}
    found = rendered(evaluated(tmp_path, evaluate=asks, retrieval=asked(0)))
    (nll,) = tables(found["nll"])
    assert rows(nll)[-1]["window W"] == "4,096"
    assert rows(nll)[-1]["tuned at W/L"] == rows(nll)[-1]["base at 1"] == DASH
    (retrieval,) = tables(found["retrieval"])
    assert (rows(retrieval)[0]["128"], rows(retrieval)[0]["256"]) == ("0 % (0 of 8)", DASH)


def test_scores_of_suites_have_a_section_where_there_are_any(tmp_path):
    folder = evaluated(tmp_path, "one")
    score = (
        '{"model": "%s", "task": "piqa", "metric": "acc", "value": %s, "stderr": 0.01, "samples": 100, "truncated": 3}'
    )
    lacking = ", ".join(
        f'{{"model": "{model}", "task": "{task}", "reason": "{reason}"}}'
        for model, task, reason in (
            ("base", "hellaswga", "is no task"),
            ("tuned", "hellaswga", "is no task"),
            ("tuned", "arc", "needs the network"),
        )
    )
    (folder / "suites.json").write_text(
        f'{{"scores": [{score % ("base", 0.5)}, {score % ("tuned", 0.6)}], "missing": [{lacking}]}}'
    )
    found = made(folder, evaluated(tmp_path, "other"))
    (suites,) = tables(found["suites"])
    assert [*rows(suites, "one")[0].values()] == [
        "piqa", "acc", "one", "0.500 ± 0.010", "0.600 ± 0.010", "+0.100", "100", "3",
    ]  # fmt: skip
    assert [*rows(suites, "one")[1].values()] == ["hellaswga", DASH, "one", *[DASH] * 5]
    assert [row["task"] for row in rows(suites, "one")] == ["piqa", "hellaswga", "arc"]
    assert {*rows(suites, "other")[0].values()} == {"piqa", "acc", "other", DASH}
    assert [part.text for part in found["suites"].parts[1:]] == [
        "one, base and tuned: hellaswga has no score: is no task",
        "one, tuned: arc has no score: needs the network",
    ]
    assert any("texts of piqa were cut to fit" in point.text for point in found["words"].parts[0].items)


def test_page_and_markdown_hold_the_same_and_come_out_the_same_again(tmp_path):
    runs = open_runs([evaluated(tmp_path, "one", retrieval=asked()), evaluated(tmp_path, "other", better=0.05)])
    page = tmp_path / "out" / "report.html"
    text = write_report(page, runs)
    assert text == tmp_path / "out" / "report.md"
    pictures = sorted(path.name for path in (tmp_path / "out" / "report-pictures").iterdir())
    assert pictures == [
        "nll-1.png",
        "position-1.png",
        "position-2.png",
        "retrieval-1.png",
        "surface-1.png",
        "surface-2.png",
    ]
    shown = ("nll-1", "surface-1", "surface-2", "position-1", "position-2", "retrieval-1")
    assert re.findall(r"\]\((.*?)\)\n", text.read_text()) == [f"report-pictures/{name}.png" for name in shown]
    seen = read(page.read_text())
    assert sum(tag == "img" for tag, _ in seen.tags) == len(shown)
    plain = html.unescape(re.sub(r"\\(.)", r"\1", text.read_text()))
    for cell in re.findall(r"<td[^>]*>(.*?)</td>", page.read_text()):
        assert html.unescape(cell) in plain
    before = page.read_bytes(), text.read_bytes()
    write_report(page, runs)
    assert (page.read_bytes(), text.read_bytes()) == before

    # A report with fewer pictures leaves none of the earlier ones, and nothing else is removed.
    (tmp_path / "out" / "report-pictures" / "mine.png").touch()
    write_report(page, runs[1:])
    pictures = sorted(path.name for path in (tmp_path / "out" / "report-pictures").iterdir())
    assert pictures == ["mine.png", "nll-1.png", "position-1.png", "surface-1.png"]


def test_hostile_names_stay_text(tmp_path):
    name = "<script>alert(1)</script>|$x^$ **b** `c`"
    folder = evaluated(tmp_path, "one")
    hostile = folder.rename(tmp_path / name.replace("/", "\u2044"))
    page = tmp_path / "report.html"
    text = write_report(page, open_runs([hostile])).read_text()
    assert "script" not in [tag for tag, _ in read(page.read_text()).tags]
    assert "<" not in text
    assert all(line.count(" | ") == text.splitlines()[place - 1].count(" | ")
               for place, line in enumerate(text.splitlines()) if line.startswith("| :---"))  # fmt: skip


def test_a_page_has_the_name_of_a_page(tmp_path):
    runs = open_runs([evaluated(tmp_path)])
    with pytest.raises(SettingsError, match=r"report\.pdf: the report is a page; give it a name that ends in \.html"):
        write_report(tmp_path / "report.pdf", runs)


def test_a_report_names_files_and_not_where_they_lie(tmp_path):
    folders = [
        evaluated(tmp_path / f"home-of-{name}", name=name, data={
            "corpus": [{"kind": "text", "paths": [f"/home/jane/{name}/*.txt"]}],
            "tokenizer": {"kind": "pretrained", "path": f"/home/jane/tokenizers/{name}-tokenizer"},
            "window": 32,
            "shards": f"file:///home/jane/shards/of-{name}",
        })
        for name in ("one", "two")
    ]  # fmt: skip
    page = tmp_path / "report.html"
    write_report(page, open_runs(folders))
    for path in (page, page.with_suffix(".md")):
        text = path.read_text()
        assert "/home/jane" not in text and "one-tokenizer" in text and "of-two" in text


def test_a_page_fetches_nothing_and_holds_its_pictures(tmp_path):
    page = tmp_path / "report.html"
    write_report(page, open_runs([evaluated(tmp_path, "one", retrieval=asked()), begun(tmp_path, "bare")]))
    tags = read(page.read_text(encoding="utf-8")).tags
    links = [attrs[name] for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)
    pictures = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert len(pictures) == len([*(tmp_path / "report-pictures").iterdir()]) >= 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in pictures)
