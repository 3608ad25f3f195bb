"""The curves of a training that was watched, and the section that shows them."""

import json

from e2ray.records.run import MetricsLine
from e2ray.report.run_files import read_run
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import cards
from e2ray.report.sections.watched import draw_watched, watched_lines
from e2ray.testing.runs import evaluated


def looked(step, *values, price=None):
    windows = ("64", "256", "1024")
    nll = dict(zip(windows, values, strict=True))
    return MetricsLine(step=step, tokens=0, tokens_per_second=1.0, watch_nll=nll, price_at_base=price)


PLAIN = MetricsLine(step=15, tokens=0, tokens_per_second=1.0)
LOOKS = [looked(10, 3.0, 3.5, 4.0), PLAIN, looked(20, 2.9, None, 3.6), looked(30, 2.95, 3.2, 3.4, price=0.0625)]


def test_every_window_has_its_curve_and_what_was_no_number_is_left_out():
    figure = draw_watched(LOOKS)
    curves = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert curves == [
        [[10, 3.0], [20, 2.9], [30, 2.95]],
        [[10, 3.5], [30, 3.2]],
        [[10, 4.0], [20, 3.6], [30, 3.4]],
    ]
    named = [text.get_text() for text in figure.axes[0].texts]
    assert [name for name in named if "tokens" in name] == ["64 tokens", "256 tokens", "1,024 tokens"]
    assert [line.step for line in watched_lines(LOOKS)] == [10, 20, 30]


def test_a_report_shows_what_was_seen_and_the_price(tmp_path):
    folder = evaluated(tmp_path)
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("line", None)
        line.pop("seal", None)
        line |= {key: getattr(LOOKS[-1], key) for key in ("watch_nll", "price_at_base")}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = open_runs([folder])
    found = {section.anchor: section for section in cards([read_run(run)])}
    assert "At the last look NLL at L was +0.062 nats against the base." in found["watched"].parts[0].caption


def test_a_run_that_was_not_watched_has_no_such_section(tmp_path):
    (run,) = open_runs([evaluated(tmp_path)])
    assert "watched" not in {section.anchor for section in cards([read_run(run)])}


def test_no_curve_is_drawn_of_a_window_without_a_number():
    figure = draw_watched([looked(10, 3.0, None, None)])
    assert [text.get_text() for text in figure.axes[0].texts if "tokens" in text.get_text()] == ["64 tokens"]
