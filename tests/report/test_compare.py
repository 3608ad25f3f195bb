import html
import json
import re

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.stats import norm
from scipy.stats import t as student

from e2ray.records.comparison import ComparisonProtocol, Lane
from e2ray.report.compare.lanes import SECTIONS
from e2ray.report.compare.page import tables, write_comparison
from e2ray.report.compare.picture import draw, named
from e2ray.report.compare.summary import Compared, summary, winners
from e2ray.report.frame.labels import spread
from e2ray.report.frame.section import cards_of
from e2ray.testing.pages import read

L, WINDOWS = 128, (128, 256, 512)
PROTOCOL = ComparisonProtocol(stride=32, documents=3, tokens=300, bos="no token is added", missing=())
TOKENS = [100, 120, 80]


def job(lane, seed, nll, *, trained=True, scales=None, retrieval=(), missing=()):
    sums = []
    for window, value in zip(WINDOWS, nll, strict=True):
        if window in missing:
            continue
        scale = (scales or {}).get(window, window / L)
        noise = np.array([0.1, -0.05, 0.0])
        each = (np.array(TOKENS) * (value + noise)).tolist()
        sums.append({"window": window, "scale": scale, "served": True, "nll": each, "tokens": TOKENS})
        if scale != 1:
            sums.append(
                {"window": window, "scale": 1.0, "served": False, "nll": [9.0 * n for n in TOKENS], "tokens": TOKENS}
            )
    cost = {"tokens": 4096, "train_s": 50.0 + seed, "steps": 10, "peak_mib": 500.0 + seed}
    if not trained:
        cost = {"tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None}
    return {"lane": lane, "seed": seed, "sums": sums, "retrieval": list(retrieval), "missing": [], **cost}


def asked(found):
    return [
        {"task": "passkey", "context_length": 512, "depth": d, "scale": 4.0, "found": found, "trials": 4}
        for d in (0.1, 0.9)
    ]


@pytest.fixture
def found():
    return [
        job("pose", 1, (3.9, 3.6, 3.5)),
        job("e2llm", 1, (3.8, 3.5, 3.4), retrieval=asked(3)),
        job("e2llm", 2, (3.7, 3.4, 3.4), retrieval=asked(1)),
        job("base", 0, (3.4, 3.9, 4.2), trained=False, scales=dict.fromkeys(WINDOWS, 1.0), retrieval=asked(0)),
        job("yarn", 0, (3.4, 3.6, 3.8), trained=False, missing=(512,)),
    ]


def lanes(found):
    return [Lane.model_validate(job) for job in found]


def summed(found, **options):
    return summary(lanes(found), L, WINDOWS, **options)


def rows_of(found):
    return {row.lane: row.plain() for row in summed(found)}


def tables_of(found):
    return tables(cards_of(SECTIONS, Compared(summed(found), L, WINDOWS, PROTOCOL)))


def test_lanes_stand_in_a_fixed_order_with_their_seeds(found):
    rows = rows_of(found)
    assert [*rows] == ["base", "yarn", "e2llm", "pose"]
    assert rows["e2llm"]["seeds"] == [1, 2]
    assert (rows["e2llm"]["train_s"], rows["e2llm"]["step_s"], rows["e2llm"]["peak_mib"]) == (51.5, 5.15, 502.0)
    assert (rows["base"]["train_s"], rows["base"]["peak_mib"]) == (None, None)


def test_nll_is_the_mean_over_seeds_with_students_interval(found):
    rows = rows_of(found)
    offset = sum(n * x for n, x in zip(TOKENS, (0.1, -0.05, 0.0), strict=True)) / sum(TOKENS)
    cell = rows["e2llm"]["nll"]["128"]
    assert cell["mean"] == pytest.approx(3.75 + offset)
    assert cell["half"] == pytest.approx(student.ppf(0.975, 1) * 0.05)  # of 3.8 and 3.7
    assert rows["pose"]["nll"]["128"]["half"] is None  # one seed shows no spread
    assert rows["e2llm"]["nll"]["512"]["unscaled"] == pytest.approx(9.0)
    assert rows["e2llm"]["long"]["mean"] == pytest.approx((3.45 + 3.4) / 2 + offset)
    assert rows["e2llm"]["short"]["mean"] == pytest.approx(0.35)
    assert rows["base"]["short"]["mean"] == pytest.approx(0.0)


def test_lanes_are_compared_with_the_papers_preset_document_by_document(found):
    cell = rows_of(found)["pose"]["nll"]["256"]
    assert cell["over_paper"] == pytest.approx(0.15)
    assert cell["low"] == pytest.approx(0.15)  # every document differs by as much
    assert cell["high"] == pytest.approx(0.15)
    assert rows_of(found)["e2llm"]["nll"]["256"]["low"] is None


def test_what_was_not_measured_is_missing_and_no_number(found):
    row = rows_of(found)["yarn"]
    assert row["nll"]["512"]["mean"] is None
    assert row["long"]["mean"] is None
    text = tables_of(found)
    line = next(line for line in text.splitlines() if line.startswith("| YaRN"))
    assert [cell.strip() for cell in line.split("|")[4:6]] == ["missing", "missing"]


def test_answers_are_counted_over_seeds_and_depths(found):
    cell = rows_of(found)["e2llm"]["retrieval"]["passkey"]["512"]
    assert (cell["share"], cell["trials"]) == (0.5, 16)
    assert cell["low"] == pytest.approx(1 - cell["high"])
    z, n = norm.ppf(0.975), 16
    assert cell["high"] - 0.5 == pytest.approx(z / (1 + z * z / n) * (0.25 / n + z * z / (4 * n * n)) ** 0.5)
    text = tables_of(found)
    assert "Passkey: share found, by context length, and its 95 % interval (Wilson) as if all prompts" in text
    assert "| 50% (28% to 72%) |" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["PoSE", "missing"] in lines


def test_files_hold_the_tables_and_the_picture(found, tmp_path):
    text = write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32)
    written = html.unescape(re.sub(r"\\(.)", r"\1", (tmp_path / "comparison.md").read_text()))
    assert re.sub(r"[ -]+", " ", written) == re.sub(r"[ -]+", " ", text)  # the same but for escapes and room for them
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert len(content["rows"]) == 4
    assert {k: content["protocol"][k] for k in ("stride", "documents", "tokens")} == {
        "stride": 32,
        "documents": 3,
        "tokens": 300,
    }
    assert "slide by 32 tokens over the same 300 tokens of 3 held-out documents; no token is added" in text
    assert "What is missing" not in text
    assert (tmp_path / "comparison.png").stat().st_size > 5000


def test_a_terminal_shows_names_as_they_are_and_the_file_escapes_them(found, tmp_path):
    found[0]["lane"], found[0]["missing"] = "half_native", ["lower `data.validation_share` <1>"]
    text = write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32)
    assert "| half_native" in text and "lower `data.validation_share` <1>" in text
    written = (tmp_path / "comparison.md").read_text()
    assert r"| half\_native" in written and r"lower \`data.validation\_share\` &lt;1&gt;" in written


def test_a_lane_that_failed_is_missing_with_its_reason(found, tmp_path):
    for lost in (found[0], found[2]):  # the only seed of a lane, and one of two
        lost |= {"tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None, "sums": [], "retrieval": []}
        lost["failed"] = "the loss is nan"
    for each in found:
        each["missing"] = ["32 tokens: hold no question"]
    found[3]["missing"].append("2,048 tokens: it does not fit into memory")
    text = write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32)
    table, missing = text.split("What is missing:")
    line = next(line for line in table.splitlines() if line.startswith("| PoSE"))
    assert {cell.strip() for cell in line.split("|")[2:-1]} == {"missing"}
    assert missing.split("\n- ")[1:] == [
        "all: 32 tokens: hold no question",
        "PoSE, seed 1: the loss is nan",
        "E2-LLM (paper's preset), seed 2: the loss is nan",
        "base, untouched: 2,048 tokens: it does not fit into memory\n",
    ]
    names = {each.get_text() for each in draw(summed(found), L, WINDOWS).axes[0].texts}
    assert names == {"base, untouched", "YaRN, untrained"}  # a mean over seeds needs all of them


def test_the_picture_names_every_lane(found):
    curves, trade = draw(summed(found), L, WINDOWS).axes
    names = {text.get_text() for text in curves.texts}
    assert names == {"base, untouched", "YaRN, untrained", "E2-LLM (paper's preset)", "PoSE"}
    assert {text.get_text() for text in trade.texts} - {""} == names - {"YaRN, untrained"}  # its long mean is missing


def test_names_of_curves_that_end_together_keep_apart(found):
    found += [job(lane, 1, (3.6, 3.5, 3.4), retrieval=asked(1)) for lane in ("randpos", "cream", "clex", "endprompt")]
    curves, _ = draw(summed(found), L, WINDOWS).axes
    boxes = [Text.get_window_extent(text) for text in curves.texts]  # without the lines to their points
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert spread([0.0, 20.0], 10.0) == [0.0, 20.0]
    assert spread([5.0, 5.0, 5.0], 10.0) == [-5.0, 5.0, 15.0]


def test_differences_to_the_papers_preset_stand_in_a_table_with_their_intervals(found):
    text = tables_of(found)
    part = text.split("NLL minus that of E2-LLM (paper's preset)")[1]
    line = next(line for line in part.splitlines() if line.startswith("| PoSE"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["+0.150 [+0.150, +0.150]"] * 2
    assert "best of the search trains at" not in text
    text = tables_of([*found, job("best", 1, (3.9, 3.6, 3.5))])
    assert "best of the search trains at the learning rate and for the objective that its study has found" in text


def test_a_job_that_failed_is_missing_with_its_reason_and_hides_no_other_lane(found, tmp_path):
    lost = {"lane": "pose", "seed": 2, "sums": [], "retrieval": [], "missing": [], "tokens": 0, "train_s": 0.0}
    lost |= {"steps": 0, "peak_mib": None, "failed": "it does not fit into memory"}
    found[1]["missing"] = ["512 tokens: NLL is nan"]
    for one in found:
        one["missing"].append("a window of 1,024 tokens is left out")
    lost["missing"] = ["a window of 1,024 tokens is left out"]
    text = write_comparison(tmp_path, lanes([*found, lost]), L, WINDOWS, stride=32)
    assert text.endswith(
        "What is missing:\n\n- all: a window of 1,024 tokens is left out\n"
        "- E2-LLM (paper's preset), seed 1: 512 tokens: NLL is nan\n- PoSE, seed 2: it does not fit into memory\n"
    )
    (nll, *_) = [line for line in text.splitlines() if line.startswith("| PoSE")]
    assert {cell.strip() for cell in nll.split("|")[2:-1]} == {"missing"}  # a mean of some seeds is not the lane's
    assert "| E2-LLM (paper's preset) " in text


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_a_base_whose_scaling_was_removed_is_called_that(kind, tmp_path):
    found = [job("base", 0, [3.0, 3.5, 4.0], trained=False), job("e2llm", 0, [3.1, 3.2, 3.3])]
    found[0]["missing"] = ["8,192 tokens: it does not fit into memory"]
    text = write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32, removed_scaling=kind)
    name = f"base, its {kind} scaling removed"
    assert f"- {name}: 8,192 tokens: it does not" in text and "untouched" not in text
    assert [row["lane"] for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]] == ["base", "e2llm"]
    picture = draw(summed(found, removed_scaling=kind), L, WINDOWS)
    assert any(name in text.get_text() for text in picture.findobj(Text))
    assert "base, untouched" in write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32)


def many(found):
    """Jobs of the lanes that are there and of twenty more, each a little worse than PoSE."""
    (like,) = [job for job in found if job["lane"] == "pose"][:1]
    more = []
    for number in range(20):
        sums = [one | {"nll": [nll * (1.5 + 0.01 * number) for nll in one["nll"]]} for one in like["sums"]]
        more.append(like | {"lane": f"own {number:02}", "sums": sums})
    return [*found, *more]


def test_of_many_lanes_a_picture_names_the_best_and_cuts_off_what_is_far_above(found):
    rows = summed(many(found))
    names = named(rows, WINDOWS)
    assert {"base", "e2llm", "yarn"} <= set(names) and len(names) < 10
    figure = draw(rows, L, WINDOWS)
    told = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert "own 19" not in told and "E2-LLM (paper's preset)" in told
    few = summed(found)
    assert named(few, WINDOWS) == [row.lane for row in few]


def test_the_best_lane_of_each_window_stands_beside_the_next_and_what_tells_them_apart(found):
    for one, window in zip((row.plain() for row in winners(lanes(found), WINDOWS)), WINDOWS, strict=True):
        rows = rows_of(found)
        known = {lane: row["nll"][str(window)]["mean"] for lane, row in rows.items()}
        ranked = sorted((lane for lane in known if known[lane] is not None), key=lambda lane: known[lane])
        assert one["window"] == window and one["nll"] == pytest.approx(known[one["lane"]])
        assert known[one["lane"]] == pytest.approx(known[ranked[0]])
        assert one["behind"]["mean"] == pytest.approx(known[one["next"]] - known[one["lane"]], abs=1e-9)
        assert known[one["next"]] == pytest.approx(known[ranked[1]]) and one["next"] != one["lane"]
        assert one["apart"] is (one["behind"]["low"] > 0)
    (nothing,) = winners([], WINDOWS[:1])
    assert nothing.lane is None


def test_the_page_shows_every_table_and_fetches_nothing(found, tmp_path):
    found[0]["missing"] = ["512 tokens: <b>NLL</b> is nan"]
    text = write_comparison(tmp_path, lanes(found), L, WINDOWS, stride=32)
    page = read((tmp_path / "report.html").read_text(encoding="utf-8"))
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 10
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    shown = " ".join(" ".join(page.texts).split())
    assert "PoSE, seed 1: 512 tokens: <b>NLL</b> is nan" in shown
    for cell in (cell.strip() for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")[1:-1]):
        assert set(cell) <= set(":-") or cell in shown
