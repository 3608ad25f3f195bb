"""An evaluated model whose NLL cannot be that of the trained one is told with both numbers."""

import pytest

from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.plausible import ImplausibleError, refuse_implausible, scale_bucket
from e2ray.records.run import MetricsLine
from e2ray.train.loop import scale_bucket as bucket_in_training


def cell(nll, *, window=128, scale=1.0, model="tuned"):
    fields = (model, window, scale, nll, 0.0, 1000, 4, 32, None)
    return Cell(**dict(zip(Cell.model_fields, fields, strict=False)))


def lines(loss, *, bucket="1"):
    return [
        MetricsLine(step=step, tokens=0, tokens_per_second=1.0, loss_by_scale={bucket: loss + (9 if step < 90 else 0)})
        for step in range(10, 101, 10)
    ]


def check(cells, metrics, window=128, loss_gap=3.0, least_loss_share=0.1):
    options = {"window": window, "loss_gap": loss_gap, "least_loss_share": least_loss_share}
    return refuse_implausible(cells, metrics, **options)


@pytest.mark.parametrize(("nll", "loss"), [(4.4, 4.4), (7.3, 4.4), (0.5, 4.4), (2.0, 0.1), (0.01, 0.05)])
def test_held_out_text_may_be_harder_or_easier(nll, loss):
    check([cell(nll)], lines(loss))


@pytest.mark.parametrize(("nll", "loss"), [(67.3, 4.44), (7.5, 4.4), (0.3, 4.4), (3.2, 0.1)])
def test_what_cannot_be_the_trained_model_is_told_with_both_numbers(nll, loss):
    with pytest.raises(ImplausibleError, match=rf"at scale 1 .*is {nll:.3f}, its last training loss was {loss:.3f}"):
        check([cell(nll)], lines(loss))


def test_both_bounds_are_settings_and_each_names_its_own():
    check([cell(9.0)], lines(2.0), loss_gap=8.0)
    assert check([cell(0.01)], lines(2.0), least_loss_share=0.0)
    with pytest.raises(ImplausibleError, match=r"easier than the rows, lower evaluate\.least_loss_share \(0\.2\)"):
        check([cell(0.3)], lines(2.0), least_loss_share=0.2, loss_gap=1e9)
    with pytest.raises(ImplausibleError, match=r"raise evaluate\.loss_gap \(0\.5 nats\)"):
        check([cell(2.6)], lines(2.0), loss_gap=0.5)


def test_scales_and_windows_that_were_not_both_seen_say_nothing():
    assert not check([], lines(4.0))
    assert not check([cell(60.0)], [])
    assert not check([cell(60.0, model="base")], lines(4.0))
    assert not check([cell(60.0, scale=4.0)], lines(4.0))
    assert not check([cell(60.0, window=64)], lines(4.0))  # shorter than a row
    assert check([cell(4.0, window=128), cell(60.0, window=2048)], lines(4.0))  # reading so far may just fail


def test_each_scale_is_judged_by_its_own_losses():
    with pytest.raises(ImplausibleError, match=r"at scale 3 .*is 60\.000, its last training loss was 4\.000"):
        check([cell(60.0, scale=3.0, window=256)], lines(4.0, bucket="4"))


@pytest.mark.parametrize("scale", [1.0, 1.001, 2.0, 2.5, 3.0, 4.0, 20.0, 1000.0])
def test_buckets_are_those_of_the_training(scale):
    import torch

    assert scale_bucket(scale) == str(2 ** int(bucket_in_training(torch.tensor([scale]))[0]))
