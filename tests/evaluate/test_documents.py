import re

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.evaluate.documents import documents_digest, reachable_windows, select_documents


def test_the_digest_names_tokens_their_order_and_where_documents_end():
    one, two = np.array([1, 2, 3]), np.array([4, 5])
    found = documents_digest([one, two])
    assert found == documents_digest([one.astype(np.int64), two.astype(np.int32)])
    others = ([two, one], [one], [np.array([1, 2]), np.array([3, 4, 5])], [one, np.array([4, 6])], [])
    assert len({found, *map(documents_digest, others)}) == 6


def test_a_window_that_only_skipped_documents_fill_is_left_out():
    documents = [np.arange(length) for length in (20, 90, 40, 50, 70)]
    told = []
    found = reachable_windows(documents, (16, 32, 64, 128), cut=None, skip=2, progress=told.append)
    assert found == (16, 32)
    assert told == [
        "left out: windows 128; the longest held-out document has 90 tokens",
        "left out: windows 64; evaluate.skip_documents skips 2 documents, at most 2 are that long; lower it or raise "
        "data.validation_share",
    ]
    chosen = select_documents(documents, minimum_tokens=max(found), limit=9, cut=None, skip=2)
    assert [len(document) for document in chosen] == [50, 70]
    wanted = "evaluate.skip_documents: 5 leaves none of the 5 held-out documents of at least 16 tokens; lower it"
    with pytest.raises(SettingsError, match=re.escape(wanted)):
        reachable_windows(documents, (16, 32), cut=None, skip=5)
