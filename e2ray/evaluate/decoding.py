"""How the next token of an answer is chosen: the likeliest one, or one drawn from those that are likely."""

GREEDY_BELOW = 1e-5  # as vLLM: below, only the likeliest token counts, and far below it logits overflow


def sampling(temperature: float | None, **options: object) -> dict[str, object]:
    """Return the options of transformers' `generate` that choose tokens at a temperature.

    Args:
        temperature: At least 0; near 0 the likeliest token is taken. None leaves it to the model's own settings.
        options: Further ones where tokens are drawn, e.g. `top_p`; dropped where none are, since transformers warns
            that they have no effect there.
    """
    if temperature is None:
        return {"do_sample": True, **options}
    if temperature < GREEDY_BELOW:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, **options}
