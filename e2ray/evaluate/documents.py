"""Which held-out documents every cell of an evaluation scores, and which windows they can fill."""

import hashlib
from collections.abc import Sequence, Sized

import numpy as np

from e2ray.config.base import SettingsError
from e2ray.config.resolved import ResolvedEvaluate
from e2ray.data.pace import Progress


def reachable_windows(
    documents: Sequence[Sized],
    windows: Sequence[int],
    *,
    cut: int | None,
    skip: int = 0,
    progress: Progress | None = None,
) -> tuple[int, ...]:
    """Return the windows that at least one document fills, and report the others in one line.

    Args:
        documents: Held-out documents, of which only the length in tokens is used.
        windows: W in tokens.
        cut: Tokens of a document that are scored, from its start; None for whole documents.
        skip: Long enough documents that `select_documents` leaves out; a window needs more than these.
        progress: Takes the line.

    Raises:
        SettingsError: If no document fills the smallest window, or `skip` leaves none that does.
    """
    lengths = [len(document) for document in documents]
    filling = {window: len(long_enough(lengths, window, cut)) for window in windows}
    reachable = tuple(window for window in windows if filling[window] > skip)
    if not reachable:
        smallest = min(windows)
        raise SettingsError(
            skips_all(skip, filling[smallest], smallest) if filling[smallest] else too_short(documents, smallest, cut)
        )
    unfilled = [window for window in windows if not filling[window]]
    skipped = [window for window in windows if 0 < filling[window] <= skip]
    if unfilled and progress:
        longest = max(_cut_length(document, cut) for document in documents)
        progress(
            f"left out: windows {', '.join(map(str, unfilled))}; the longest held-out document has {longest} tokens"
            + (f" (evaluate.document_tokens cuts them to {cut})" if cut is not None and cut <= longest else "")
        )
    if skipped and progress:
        few = max(filling[window] for window in skipped)
        progress(
            f"left out: windows {', '.join(map(str, skipped))}; evaluate.skip_documents skips {skip} documents, "
            f"at most {few} are that long; lower it or raise data.validation_share"
        )
    return reachable


def select_documents(
    documents: Sequence[np.ndarray], *, minimum_tokens: int, limit: int, cut: int | None, skip: int = 0
) -> list[np.ndarray]:
    """Return the documents that every cell scores: `limit` of at least `minimum_tokens` tokens, after the first `skip`.

    Args:
        documents: Held-out documents, integer tokens of shape [length].
        minimum_tokens: The largest window asked for.
        limit: Documents returned at most.
        cut: Tokens kept of each, from its start; None keeps them whole.
        skip: Long enough documents that are left out.

    Raises:
        SettingsError: If no document is long enough, or `skip` leaves none.
    """
    left = refuse_none_long_enough(documents, minimum_tokens, cut=cut, skip=skip)
    return [documents[index][:cut] for index in left[:limit]]


def refuse_none_long_enough(
    documents: Sequence[Sized], minimum_tokens: int, *, cut: int | None, skip: int = 0
) -> list[int]:
    """Return the indices of the documents of at least `minimum_tokens` tokens, after the first `skip` of them.

    Raises:
        SettingsError: If no document is long enough, or `skip` leaves none.
    """
    indices = long_enough([len(document) for document in documents], minimum_tokens, cut)
    if not indices:
        raise SettingsError(too_short(documents, minimum_tokens, cut))
    if len(indices) <= skip:
        raise SettingsError(skips_all(skip, len(indices), minimum_tokens))
    return indices[skip:]


def documents_digest(documents: Sequence[np.ndarray]) -> str:
    """Return a digest of documents by their tokens and their order: 64 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little"))
        digest.update(document.astype("<i4").tobytes())
    return digest.hexdigest()


def long_enough(lengths: Sequence[int], minimum_tokens: int, cut: int | None) -> list[int]:
    """Return the indices of the documents that `select_documents` chooses among, from their lengths in tokens."""
    return [i for i, length in enumerate(lengths) if (length if cut is None else min(length, cut)) >= minimum_tokens]


def first_unseen(
    lengths: Sequence[int], base_context_length: int, *, scored: ResolvedEvaluate, own: ResolvedEvaluate
) -> int | None:
    """Return how many of the documents that an evaluation can choose come before the first that another did not score.

    Args:
        lengths: Of all held-out documents, in tokens.
        base_context_length: L in tokens.
        scored: The settings of the other evaluation.
        own: The settings of this evaluation.

    Returns:
        The number; None if the other scored them all.
    """

    def eligible(settings: ResolvedEvaluate) -> list[int]:
        return long_enough(lengths, max(base_context_length, *settings.windows), settings.document_tokens)

    seen = eligible(scored)[scored.skip_documents :][: scored.documents]
    return next((n for n, document in enumerate(eligible(own)) if document > max(seen, default=-1)), None)


def _cut_length(document: Sized, cut: int | None) -> int:
    return len(document) if cut is None else min(cut, len(document))


def too_short(documents: Sequence[Sized], window: int, cut: int | None) -> str:
    """Return one line that says why no document is as long as a window of `window` tokens."""
    if not documents:
        return "evaluation: no held-out documents; raise data.validation_share or name data.validation_corpus"
    if cut is not None and cut < window:
        return (
            f"evaluate.document_tokens: cuts documents to {cut} tokens, wanted at least the window of {window}; raise "
            "it or lower evaluate.windows"
        )
    longest = max(map(len, documents))
    return (
        f"evaluation: the longest of {len(documents)} held-out documents has {longest} tokens, wanted at least "
        f"{window}; lower evaluate.windows or name longer documents in data.validation_corpus"
    )


def skips_all(skip: int, long: int | str, window: int) -> str:
    """Return one line that says that no document is left after the skipped ones."""
    return (
        f"evaluate.skip_documents: {skip} leaves none of the {long} held-out documents of at least {window} tokens; "
        "lower it or raise data.validation_share"
    )
