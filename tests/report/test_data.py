"""The page about a folder of shards."""

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.data.order import PARTS, Corpus, Order, shares
from e2ray.records.manifest import Manifest
from e2ray.report.data import drawn_rows, write_data
from e2ray.testing.pages import read

SHARD = {"blocks": [], "bytes": 0, "file": "train-00000.arrow", "first_row": 0, "rows": 350, "sha256": "ab" * 32}


def manifest(**changes):
    documents = {
        "train": {
            "count": 40,
            "tokens": 90_000,
            "min": 3,
            "median": 900,
            "max": 999,
            "histogram": [[4, 1], [1024, 39]],
        },
        "validation": {"count": 2, "tokens": 300, "min": 100, "median": 200, "max": 200, "histogram": [[256, 2]]},
    }
    fields = {
        "window": 128, "rows": 700, "pack": "best_fit", "tokens": 89_000, "padded_tokens": 600, "dropped_tokens": 0,
        "vocab_size": 1024, "tokenizer_hash": "ab" * 32, "documents": documents, "shards": [SHARD, SHARD],
        "num_short": 3, "num_skipped": 1, "skipped": ["<b>/x.txt: is empty"], "rows_per_batch": 64, "validation": [],
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


def mixed(**changes):
    corpora = [
        {"weight": 3.0, "first_row": 0, "rows": 100, "shard_rows": 64, "tokens": 12_000},
        {"weight": 1.0, "first_row": 100, "rows": 600, "shard_rows": 64, "tokens": 76_800},
    ]
    parts = shares([3.0, 1.0], [120.0, 128.0])
    shared = [corpus | {"parts": count} for corpus, count in zip(corpora, parts, strict=True)]
    return manifest(corpora=shared, **changes)


def page(tmp_path, made, rows=None):
    write_data(tmp_path / "data.html", made, location="/shards/here", rows=rows)
    found = read((tmp_path / "data.html").read_text(encoding="utf-8"))
    return " ".join(" ".join(found.texts).split()), (tmp_path / "data.html").read_text(encoding="utf-8")


def test_the_page_says_what_is_in_the_shards(tmp_path):
    text, html = page(tmp_path, manifest())
    assert "/shards/here" in text and "700 of 128 tokens, in 2 files" in text and "best_fit" in text
    assert f"{(700 * 128 - 600) / (700 * 128):.4%} of the places" in text
    assert "40, 90,000 tokens" in text and "3 documents, shorter than min_tokens" in text
    assert "<b>/x.txt: is empty" in text and "<b>/x.txt" not in html  # escaped
    assert html.count("data:image/png;base64,") == 1


def test_the_mixture_is_told_as_a_run_draws_it(tmp_path):
    made = mixed()
    text, html = page(tmp_path, made, rows=12_345)
    order = Order(0, tuple(Corpus(c.first_row, c.rows, c.shard_rows, c.parts) for c in made.corpora), 2)
    read_rows = order.at(np.arange(12_345))
    counts = [int((read_rows < 100).sum()), int((read_rows >= 100).sum())]
    assert drawn_rows(made, 12_345) == counts and sum(corpus.parts for corpus in made.corpora) == PARTS
    assert all(f"{count:,}" in text for count in counts)
    assert "75.00%" in text and "Source 0, 1 is read more than four times" in text
    assert html.count("data:image/png;base64,") == 2


def test_sources_are_named_by_their_kinds_where_the_manifest_tells_them(tmp_path):
    text, _ = page(tmp_path, mixed(sources=[{"kind": "parquet"}, {"kind": "passkey"}]), rows=12_345)
    assert "Source 0 (parquet), 1 (passkey) is read more than four times" in text


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"data\.pdf: the report is a page; give it a name that ends in \.html"):
        write_data(tmp_path / "data.pdf", manifest(), location="here", rows=None)
    with pytest.raises(SettingsError, match=r"--rows: wanted at least 1, got 0"):
        write_data(tmp_path / "data.html", manifest(), location="here", rows=0)
