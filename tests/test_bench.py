"""`electra-fast bench`: what it times is what it says, and it says what is not faster."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from rich.console import Console

from electra_fast import bench, twins
from electra_fast.bench import Report, Timed
from electra_fast.cli import main
from electra_fast.data.tokenizer import train_wordpiece
from tests.small import TEXT
from tests.test_verify import save_model

LINES = ["ragged, padded", "ragged, packed", "full length"]


def shown(report: Report) -> str:
    out = io.StringIO()
    bench.render(report, console=Console(file=out, width=160, highlight=False))
    return out.getvalue()


def test_table_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", "ElectraForTokenClassification")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    train_wordpiece([tmp_path / "text.txt"], folder, vocab_size=80)
    before = torch.get_num_threads()
    options = ["--batch-size", "4", "--batches", "3", "--rounds", "2", "--threads", "1", "--max-length", "12"]
    assert main(["bench", str(folder), "--data", str(tmp_path / "text.txt"), *options]) == 0
    text = capsys.readouterr().out
    assert torch.get_num_threads() == before
    assert "ElectraForTokenClassification of " in text
    assert "float32 on cpu, threads: 1; ragged: 3 batches of 4 lines of" in text
    assert "full length: 2 x 12; medians of 2 rounds" in text
    for line in LINES:
        assert f"\ninference, {line} " in text
        assert f"\ntraining, {line} " in text
    assert ("Not faster: " in text) != ("faster in every line" in text)


@pytest.mark.parametrize("head", ["ElectraModel", "ElectraForMultipleChoice", "BertForPreTraining"])
def test_heads_of_other_forms(head: str, tmp_path: Path) -> None:
    report = bench.bench(str(save_model(tmp_path, head)), batch_size=4, batches=1, rounds=1)
    lines = [line for line in LINES if head != "ElectraForMultipleChoice" or "packed" not in line]
    assert [row.what for row in report.rows] == [f"{kind}, {x}" for kind in ("inference", "training") for x in lines]
    for row in report.rows:
        assert len(row.stock) == len(row.fast) == 1
        assert min(row.stock + row.fast) > 0


def test_both_get_the_same_texts_and_only_fast_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[type, bool, dict[str, torch.Tensor]]] = []

    def infer(model: transformers.PreTrainedModel, given: list[bench.Call]) -> None:
        calls.extend((type(model), model.training, call.inputs) for call in given)

    def train(model: transformers.PreTrainedModel, given: list[bench.Call], optimizer: torch.optim.Optimizer) -> None:
        assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
        calls.extend((type(model), True, {**call.inputs, **call.labels}) for call in given)

    monkeypatch.setattr(bench, "infer", infer)
    monkeypatch.setattr(bench, "train", train)
    folder = save_model(tmp_path, "ElectraForSequenceClassification")
    bench.bench(str(folder), batch_size=5, batches=1, rounds=1, seed=1)
    turns = calls[: len(calls) // 2]  # each is called once before it is timed
    kinds = [kind.__module__.partition(".")[0] for kind, _, _ in turns]
    assert kinds == ["transformers", "electra_fast", "electra_fast", "transformers", "electra_fast"] * 2
    padded, same, without_padding, full, same_full = (inputs for _, _, inputs in turns[5:])
    assert padded is not same
    for name in padded:
        assert torch.equal(padded[name], same[name])
    is_token = padded["attention_mask"] == 1
    assert 0 < int(is_token.sum()) < is_token.numel()
    assert torch.equal(without_padding["input_ids"][0], padded["input_ids"][is_token])
    assert without_padding["cu_seq_lens_q"].diff().tolist() == is_token.sum(dim=1).tolist()
    assert torch.equal(without_padding["labels"], padded["labels"])
    assert full["input_ids"].shape == same_full["input_ids"].shape == (2, 24)
    assert "attention_mask" not in full


def test_it_says_what_is_not_faster_and_that_the_machine_is_busy() -> None:
    rows = [Timed("slow", [1.0, 3.0, 2.0], [4.0, 4.0, 4.0], 2, 100), Timed("quick", [3.0] * 3, [1.0] * 3, 1, 100)]
    text = shown(Report("a model", "float32 on cpu", rows, load=0.5))
    slow = next(line.split() for line in text.splitlines() if line.startswith("slow"))
    assert slow == ["slow", "1000.0", "ms", "2000.0", "ms", "0.50", "50%", "50", "25"]
    assert "Not faster: slow (0.50 times as fast)\n" in text
    assert "Others used" not in text
    text = shown(Report("a model", "float32 on cpu", rows[1:], load=7.0))
    assert "faster in every line" in text
    assert "load average 7.0" in text


def test_training_learns_and_times_are_real(tmp_path: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = twins.load_stock(str(save_model(tmp_path, "ElectraForSequenceClassification")))
    fast = twins.fast_twin(model)
    generator = torch.Generator().manual_seed(rng_seed)
    batch = twins.random_batch(model.config, [7, 3], generator)
    call = bench.Call(twins.inputs_of(model, batch), twins.labels_of(model, batch, generator))
    before = [p.detach().clone() for p in fast.parameters()]
    bench.train(fast, [call], bench.make_optimizer(fast))
    moved = [float((p - q).detach().abs().max()) for p, q in zip(fast.parameters(), before, strict=True)]
    assert 0.5 * bench.LEARNING_RATE < max(moved) < 2 * bench.LEARNING_RATE
    assert all(p.grad is None for p in fast.parameters())

    # A clock that only the contestants move: on a busy machine a real sleep takes as long as it likes.
    clock = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    contest = bench._Contest(lambda: sleep(0.02), {"fast": lambda: sleep(0.01)}, [call])
    [row] = bench._time_all([contest], torch.device("cpu"), 3, show_progress=False)
    assert (row.batches, row.tokens) == (1, 10)
    assert len(row.fast) == 3
    assert row.ratio == pytest.approx(2)


def test_sentences_are_as_long_as_those_of_sst2(shared_data) -> None:
    """The lengths in the code, from the task's file and the vocabulary."""
    from tokenizers import BertWordPieceTokenizer

    lines = shared_data("glue/SST-2/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    tokenizer = BertWordPieceTokenizer(str(shared_data("vocab/bert-base-uncased.vocab.txt")))
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([line.split("\t")[0] for line in lines])]
    assert torch.bincount(torch.tensor(lengths)).tolist() == list(bench.SENTENCE_LENGTHS)
