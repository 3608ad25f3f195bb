"""Examples of several rows are ordinary ones: they stay together, share a draw, and are judged as a whole."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus

from e2ray.config.base import SettingsError
from e2ray.core.losses import token_nll
from e2ray.core.positions import Draw
from e2ray.data.shards import ShardSet, local_batches
from e2ray.train import worker
from e2ray.train.batch import Batch
from e2ray.train.ledger import Ledger, read_ledger
from e2ray.train.objectives import Outcome
from e2ray.train.worker import drawn

CPU = torch.device("cpu")


def numbered(examples, rows, *, packed=False):
    """A batch whose every tensor tells the number of its row."""
    numbers = torch.arange(examples * rows)
    tokens = numbers[:, None].expand(-1, 5).clone()
    draw = Draw(1.0 + numbers, tokens.clone())
    return Batch(tokens, draw, tokens.clone() if packed else None, numbers, rows)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_parts_are_whole_examples_in_order(rows, size, packed):
    batch = numbered(6, rows, packed=packed)
    parts = list(batch.parts(size))
    assert [len(part.tokens) for part in parts[:-1]] == [size * rows] * (len(parts) - 1)
    assert torch.cat([part.ids for part in parts]).tolist() == list(range(6 * rows))
    for part in parts:
        assert (
            len(part.tokens) % rows == 0 and part.rows_per_example == rows and (part.token_index is not None) == packed
        )
        for told in (part.tokens[:, 0], part.draw.scale - 1, part.draw.offsets[:, 0]):
            assert told.tolist() == part.ids.tolist()


def rows_of(task, first, last, *, rank=0, num_workers=1):
    return local_batches(
        task.shards,
        seed=task.seed,
        start_step=first,
        stop_step=last,
        rank=rank,
        num_workers=num_workers,
        batch_sequences=task.train.batch_sequences,
        window=task.window,
        tokenizer_hash=task.tokenizer_hash,
        rows_per_example=task.rows_per_example,
    )


def read(task, *, rank=0, num_workers=1, ledger=None):
    rows = rows_of(task, 0, 3, rank=rank, num_workers=num_workers)
    return list(drawn(rows, task, rank=rank, num_workers=num_workers, start_step=0, ledger=ledger))


@pytest.mark.parametrize("task", ["concat", "document"], indirect=True)
def test_the_rows_of_an_example_follow_each_other_and_share_a_draw_on_any_number_of_workers(task):
    task = replace(task, rows_per_example=2)
    seen = []
    for step, batch in enumerate(read(task)):
        first, second = batch.ids[0::2], batch.ids[1::2]
        assert len(batch.tokens) == 8 and (first % 2 == 0).all() and torch.equal(second, first + 1)
        assert torch.equal(batch.draw.scale[0::2], batch.draw.scale[1::2]) and len(set(batch.draw.scale.tolist())) > 1
        assert torch.equal(batch.draw.offsets[0::2], batch.draw.offsets[1::2])
        parts = [read(task, rank=rank, num_workers=2)[step] for rank in (0, 1)]
        for name in ("tokens", "ids"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        assert torch.equal(torch.cat([part.draw.offsets for part in parts]), batch.draw.offsets)
        alone = read(replace(task, rows_per_example=1))[step].draw
        assert torch.equal(batch.draw.scale[0::2], alone.scale)  # a draw is a function of the example's place alone
        seen += batch.ids.tolist()
    assert len(set(seen)) == len(seen)


def test_the_ledger_names_an_examples_place_for_each_of_its_rows(task, tmp_path):
    task = replace(task, rows_per_example=2)
    ledger = Ledger(tmp_path, rank=0, start_step=0)
    batches = read(task, ledger=ledger)
    ledger.commit(3)
    found = read_ledger(tmp_path)
    assert found["index"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3] * 3
    assert found["row"].to_pylist() == torch.cat([batch.ids for batch in batches]).tolist()


def test_shards_that_end_in_the_middle_of_an_example_are_refused_with_the_next_move(task):
    order = ShardSet.open(task.shards).order(0, 16, 4).corpora[0]
    assert order.rows == ShardSet.open(task.shards).rows // 4
    with pytest.raises(SettingsError, match=r"no whole examples of 3 rows each; prepare them with data\.shard_rows "):
        read(replace(task, rows_per_example=3))


def preferring(forward, batch):
    """The first row of an example is to be likelier than each of the others, by log-sigmoid of the difference."""
    nll = token_nll(forward(batch.tokens, **batch.given), batch.tokens).mean(dim=1)
    by_example = nll.reshape(-1, batch.rows_per_example)
    behind = softplus(by_example[:, :1] - by_example[:, 1:]).mean(dim=1)
    return Outcome(nll, behind.mean(), {"behind": behind.repeat_interleave(batch.rows_per_example)})


@pytest.mark.usefixtures("one_rank")
def test_an_objective_over_four_rows_trains_through_the_same_loop_however_the_batch_is_cut(task, monkeypatch):
    real, told = worker.set_out, {}

    def set_out(engine, task, **options):
        real(engine, task, **options)
        engine.objective = preferring

    monkeypatch.setattr(worker, "set_out", set_out)
    for micro in (1, 2, 4):
        train = task.train.model_copy(update={"micro_batch_sequences": micro})
        mine = replace(task, folder=task.folder / str(micro), train=train, rows_per_example=4, ledger=False)
        mine.folder.mkdir()
        lines = []
        done = worker.run(mine, device=CPU, open_rows=partial(rows_of, mine), report=lines.append)
        assert done == 8 and lines[-1].tokens == 8 * 4 * 4 * task.window
        told[micro] = [line.plain()["behind"] for line in lines]
    assert told[1] == pytest.approx(told[2], rel=1e-4) and told[1] == pytest.approx(told[4], rel=1e-4)
    assert told[1][-1] < told[1][0]


def test_packed_rows_on_the_cpu_are_given_where_documents_begin():
    index = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, -1, -2], [0, 1, 2, 3, 4]])
    batch = replace(numbered(3, 1), token_index=index)
    given = batch.with_lengths().given
    assert given["cu_seq_lens_q"].tolist() == given["cu_seq_lens_k"].tolist() == [0, 3, 5, 7, 8, 10, 15]
    assert given["cu_seq_lens_q"].dtype == torch.int32 and given["max_length_q"] == given["max_length_k"] == 5
    assert given["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]


def test_rows_of_one_text_are_told_only_where_there_is_one():
    assert numbered(3, 1).with_lengths().given == {}
    alone = numbered(1, 1).with_lengths().given
    assert alone["cu_seq_lens_q"].tolist() == [0, 5] and "position_ids" not in alone


def test_what_goes_to_a_device_is_all_but_numbers_and_scales():
    batch = replace(numbered(2, 1), token_index=torch.zeros(2, 5, dtype=torch.int64)).with_lengths()
    there = batch.to("meta")
    moved = [
        there.tokens,
        there.draw.offsets,
        there.token_index,
        *(there.lengths[k] for k in there.lengths if "cu" in k),
    ]
    assert all(each.device.type == "meta" for each in moved) and len(there.tensors()) == len(moved)
    assert there.draw.scale is batch.draw.scale and there.ids is batch.ids
