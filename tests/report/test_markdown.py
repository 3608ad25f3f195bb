import re
from pathlib import Path

from e2ray.report.frame.markdown import escaped, file_names, render
from e2ray.report.frame.page import Card, Code, Column, Point, Points, Row, Table, Words
from e2ray.testing.pages import HOSTILE, every_part


def test_a_section_reads_as_its_page_does():
    sections = [
        Card(
            "Figures",
            "figures",
            [
                Points([Point("one:", "is lower")]),
                Words("Not compared", warning=True),
                Table([Column("run"), Column("NLL", "number")], [Row(["one", "3.1"])], "In nats."),
                Code("e2ray report a"),
            ],
        )
    ]
    assert render("Runs", "of two", sections, {}) == (
        "## Runs\n\nof two\n\n### Figures\n\n- **one:** is lower\n\n> Not compared\n\n"
        "| run | NLL |\n| :--- | ---: |\n| one | 3.1 |\n\nIn nats.\n\n```\ne2ray report a\n```\n"
    )


def test_nothing_gets_out_of_its_place():
    table = Table([Column("a|b")], [Row(["x | y\nz <b>"])], "`code` *bold* [a](b) $x$ &lt;")
    text = render("# <i>", "~~x~~", [Card("s", "s", [table])], {})
    assert "| a\\|b |" in text
    assert "| x \\| y z &lt;b&gt; |" in text
    assert "\\`code\\` \\*bold\\* \\[a\\](b) \\$x\\$ &amp;lt;" in text
    assert "<" not in text


def test_hostile_texts_are_shown_as_they_stand():
    sections = [Card(HOSTILE, "all", every_part(HOSTILE))]
    names = file_names(sections, Path("pictures"))
    assert [*names.values()] == ["pictures/all-1.png"]
    text = render(HOSTILE, HOSTILE, sections, names)
    fenced = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in fenced
    assert "(pictures/all-1.png)" in text


def test_a_code_block_outlasts_the_ticks_in_it():
    text = render("t", "s", [Card("c", "c", [Code("```\nx\n```")])], {})
    assert text.endswith("````\n```\nx\n```\n````\n")


def test_escaping_leaves_plain_words_alone():
    assert escaped("A mean of 3.412 (3.390 to 3.434), -0.1 at W/L.") == "A mean of 3.412 (3.390 to 3.434), -0.1 at W/L."
