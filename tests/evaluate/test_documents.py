import numpy as np

from e2ray.evaluate.documents import documents_digest


def test_the_digest_names_tokens_their_order_and_where_documents_end():
    one, two = np.array([1, 2, 3]), np.array([4, 5])
    found = documents_digest([one, two])
    assert found == documents_digest([one.astype(np.int64), two.astype(np.int32)])
    others = ([two, one], [one], [np.array([1, 2]), np.array([3, 4, 5])], [one, np.array([4, 6])], [])
    assert len({found, *map(documents_digest, others)}) == 6
