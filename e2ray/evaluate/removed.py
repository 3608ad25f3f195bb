"""The name of a base, and how far it moved, where its own scaling was removed before the training.

With `base_scaling: replace` the model that is trained, and measured as the base, is not the checkpoint as it was
published: a yarn factor changes angles and scores within L too. So its logits are compared with the checkpoint's
before the training, and wherever figures of a base are shown they are those of "base, its yarn scaling removed".
"""

from e2ray.records.evaluation import RemovedScaling


def base_name(scaling: str | None, *, untouched: bool = False) -> str:
    """Return the name of a base in tables and pictures.

    Args:
        scaling: Rope type of the scaling that was removed from it; None where it is the checkpoint itself.
        untouched: Whether the name of a base that is the checkpoint says that it is untouched.
    """
    if scaling is None:
        return "base, untouched" if untouched else "base"
    return f"base, its {scaling} scaling removed"


def base_words(scaling: str | None) -> str:
    """Return the name of a base in running text; `scaling` as for `base_name`."""
    return "the untouched base" if scaling is None else f"the base without its {scaling} scaling"


def scaling_of(removed: RemovedScaling | None) -> str | None:
    """Return the rope type that a `removed_scaling` of a verdict or a file names."""
    return removed.scaling if removed else None


def sentence(removed: RemovedScaling) -> str:
    """Return in words what removing a scaling did."""
    factor = f" (factor {removed.factor:g})" if removed.factor is not None else ""
    return (
        f"The base is read without its {removed.scaling} scaling{factor}: within L its logits differ from the "
        f"published checkpoint's by {removed.mean_difference:.2g} on average, and the likeliest next token is "
        f"another one after {removed.changed_argmax:.1%} of {removed.tokens:,} tokens."
    )
