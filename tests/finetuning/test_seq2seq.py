"""Texts from texts: what the model is made of, what it reads, what it writes, and that it learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import BertTokenizer, ElectraConfig, PreTrainedTokenizerBase

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.encoder_decoder import collate_pairs, generate_texts, load_encoder_decoder, to_text
from electra_fast.finetuning.inference import infer
from electra_fast.finetuning.model import load_finetuned, save_finetuned
from electra_fast.finetuning.predict import predict_examples
from electra_fast.finetuning.tasks.seq2seq import Seq2Seq
from electra_fast.finetuning.train import finetune

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = [consonant + vowel for consonant in "bdgklm" for vowel in "aeio"]
POSITIONS = 24


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerBase:
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})


def write_encoder(folder: Path, seed: int, *, deviation: float = 0.02, embedding_size: int = 48) -> Path:
    """A tiny discriminator, as pretraining leaves one."""
    config = ElectraConfig(
        vocab_size=5 + len(WORDS),
        embedding_size=embedding_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=POSITIONS,
        initializer_range=deviation,
    )
    torch.manual_seed(seed)
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, task: Seq2Seq, **config: object) -> transformers.EncoderDecoderModel:
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return load_encoder_decoder(folder, task, seed=0, **without, **config)


def features_of(lengths: Sequence[tuple[int, int]]) -> list[dict[str, list[int]]]:
    """Random sources and targets of so many words."""
    draw = [tuple(torch.randint(5, 5 + len(WORDS), (n,)).tolist() for n in pair) for pair in lengths]
    return [{"input_ids": [CLS, *source, SEP], "labels": [*target, SEP]} for source, target in draw]


LENGTHS = [(3, 7), (11, 1), (6, 6), (1, 2)]  # padding in sources and targets, and none


def stock_twin(model: transformers.EncoderDecoderModel) -> transformers.EncoderDecoderModel:
    """transformers' own classes with the same weights."""
    twin = transformers.EncoderDecoderModel(model.config)
    assert type(twin.encoder) is transformers.ElectraModel
    twin.load_state_dict(model.state_dict())
    twin.generation_config = model.generation_config
    return twin.train(model.training)


def test_encoder_and_decoder_are_the_checkpoint(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, 0)
    model = load(folder, Seq2Seq(max_target_length=POSITIONS))
    saved = load_file(folder / "model.safetensors")
    ours = model.state_dict()
    towers = {name.removeprefix("electra."): value for name, value in saved.items() if name.startswith("electra.")}
    for prefix in ("encoder.", "decoder.electra."):
        for name, value in towers.items():
            torch.testing.assert_close(ours[prefix + name], value, rtol=0, atol=0)
    fresh = [name for name in ours if ".crossattention." in name]
    assert len(fresh) == 20  # of two layers: queries, keys, values, output and LayerNorm, each weight and bias
    assert model.decoder.generator_lm_head.weight is model.decoder.electra.embeddings.word_embeddings.weight
    other = load_encoder_decoder(folder, Seq2Seq(max_target_length=POSITIONS), seed=1).state_dict()
    assert all(not torch.equal(ours[name], other[name]) for name in fresh if name.endswith("query.weight"))


def test_from_scratch_takes_no_weight(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, 9)
    model = load(folder, Seq2Seq(max_target_length=POSITIONS), from_scratch=True)
    saved = load_file(folder / "model.safetensors")
    assert not torch.equal(
        model.encoder.embeddings.word_embeddings.weight, saved["electra.embeddings.word_embeddings.weight"]
    )


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = write_encoder(tmp_path, 0)
    weights = load_file(folder / "model.safetensors")
    del weights["electra.encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"can't read the model in .*: it lacks encoder\.layer\.1\.output\.dense\.bias"
    ):
        load(folder, Seq2Seq(max_target_length=POSITIONS))


def test_loss_and_gradients_are_those_of_stock(tmp_path: Path, rng_seed: int) -> None:
    model = load(write_encoder(tmp_path, rng_seed), Seq2Seq(max_target_length=POSITIONS)).double()
    stock = stock_twin(model).double()
    batch = collate_pairs(features_of(LENGTHS), make_tokenizer())
    ours = model(**batch)
    with pytest.warns(FutureWarning, match="loss inside the"):
        theirs = stock(**batch)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-10)
    ours.loss.backward()
    theirs.loss.backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-7, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_decoder_reads_the_text_one_token_late(tmp_path: Path) -> None:
    """By hand: what it reads, and that a label of -100 counts for nothing."""
    model = load(write_encoder(tmp_path, 0), Seq2Seq(max_target_length=POSITIONS)).eval()
    features = [
        {"input_ids": [CLS, 7, SEP], "labels": [8, 9, SEP]},
        {"input_ids": [CLS, 6, 5, SEP], "labels": [10, SEP]},
    ]
    batch = collate_pairs(features, make_tokenizer())
    assert batch["input_ids"].tolist() == [[CLS, 7, SEP, PAD], [CLS, 6, 5, SEP]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[8, 9, SEP], [10, SEP, -100]]
    assert model.prepare_decoder_input_ids_from_labels(batch["labels"]).tolist() == [[CLS, 8, 9], [CLS, 10, SEP]]
    summed = 0.0
    with torch.no_grad():
        for feature in features:
            one = torch.tensor([feature["input_ids"]])
            read = torch.tensor([[CLS, *feature["labels"][:-1]]])
            scores = model(input_ids=one, decoder_input_ids=read).logits[0].log_softmax(-1)
            summed -= sum(float(scores[place, label]) for place, label in enumerate(feature["labels"]))
        assert float(model(**batch).loss) == pytest.approx(summed / 5, rel=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generates_what_stock_generates(tmp_path: Path, num_beams: int) -> None:
    """Token by token, with and without cache; weights so large that no choice is a near tie, by fixed seeds."""
    task = Seq2Seq(max_target_length=POSITIONS, num_beams=num_beams, no_repeat_ngram_size=3)
    model = load(write_encoder(tmp_path, 9, deviation=0.3), task).eval()
    torch.manual_seed(6)
    batch = collate_pairs(features_of([*LENGTHS, (9, 1), (20, 1)]), make_tokenizer())
    del batch["labels"]
    options = {"return_dict_in_generate": True, "output_scores": True, "min_new_tokens": 12}
    ours, theirs = model.generate(**batch, **options), stock_twin(model).generate(**batch, **options)
    uncached = model.generate(**batch, **options, use_cache=False)
    if num_beams == 1:
        best = torch.stack(theirs.scores).topk(2).values
        assert float((best[..., 0] - best[..., 1]).min()) > 1e-3  # rounding makes 1e-4 at most
    assert ours.sequences.shape[1] > 12
    assert ours.sequences.tolist() == theirs.sequences.tolist() == uncached.sequences.tolist()
    for a, b, c in zip(ours.scores, theirs.scores, uncached.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_a_text_may_be_as_long_as_the_position_table(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, 0)
    model = load(folder, Seq2Seq(max_target_length=8, max_new_tokens=POSITIONS)).eval()
    written = model.generate(input_ids=torch.tensor([[CLS, 7, SEP]]), min_new_tokens=POSITIONS)
    assert written.shape == (1, 1 + POSITIONS)
    for options in ({"max_target_length": POSITIONS + 1}, {"max_target_length": 8, "max_new_tokens": POSITIONS + 1}):
        name = list(options)[-1]
        with pytest.raises(ValueError, match=rf"{name} must be at most the model's positions \(24\); got 25"):
            load(folder, Seq2Seq(**options))


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_saved_and_loaded(tmp_path: Path, tie_embeddings: bool) -> None:
    task = Seq2Seq(max_target_length=POSITIONS, tie_embeddings=tie_embeddings, num_beams=2, length_penalty=0.5)
    model = load(write_encoder(tmp_path / "encoder", 3, deviation=0.3), task)
    batch = collate_pairs(features_of(LENGTHS), make_tokenizer())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    words = model.encoder.get_input_embeddings().weight
    assert (model.decoder.get_input_embeddings().weight is words) == tie_embeddings
    assert (model.decoder.generator_lm_head.weight is words) == tie_embeddings

    save_finetuned(model.eval(), make_tokenizer(), task, tmp_path / "saved")
    opened = load_finetuned(tmp_path / "saved")
    stock = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert type(stock) is transformers.EncoderDecoderModel
    assert type(stock.encoder) is transformers.ElectraModel
    assert opened.task == task
    assert (opened.model.generation_config.num_beams, opened.model.generation_config.length_penalty) == (2, 0.5)
    labels = batch.pop("labels")
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        expected = model(**batch).logits
        for other in (opened.model, stock):
            torch.testing.assert_close(other(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    again = load(tmp_path / "saved", task)  # fine-tuning may go on from a pair
    assert (
        again.decoder.get_input_embeddings().weight is again.encoder.get_input_embeddings().weight
    ) == tie_embeddings
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_results_come_in_the_order_of_the_features(tmp_path: Path) -> None:
    model = load(write_encoder(tmp_path, 5, deviation=0.3), Seq2Seq(max_target_length=12)).eval()
    torch.manual_seed(7)
    features = features_of([(9, 1), (2, 1), (15, 1), (2, 1), (4, 1)])
    tokenizer = make_tokenizer()
    batches: list[int] = []
    together = infer(model, tokenizer, "seq2seq", features, batch_tokens=16, progress=batches.append)
    assert together == [generate_texts(model, tokenizer, [{"input_ids": f["input_ids"]}])[0] for f in features]
    assert batches == [3, 1, 1]  # 4 + 4 + 6 tokens, 11, 17: by length
    assert len(set(together)) > 3


def test_turns_are_joined_and_the_last_tokens_stay() -> None:
    tokenizer = make_tokenizer()
    ba, be, bi, bo = range(5, 9)
    task = Seq2Seq(max_length=7, max_target_length=3)
    examples = [
        {"source": "ba be bi bo ba be", "label": "ba be bi"},
        {"source": ["ba be", "bi"]},
        {"source": ["ba be", "bi", "bo"], "label": "ba"},
    ]
    features = task.encode(examples, tokenizer, training=True)
    assert [feature["input_ids"] for feature in features] == [
        [CLS, ba, be, bi, bo, ba, SEP],
        [CLS, ba, be, SEP, bi, SEP],
        [CLS, be, SEP, bi, SEP, bo, SEP],
    ]
    assert [feature.get("labels") for feature in features] == [[ba, be, SEP], None, [ba, SEP]]
    assert [feature["example"] for feature in features] == [0, 1, 2]
    assert task.lowercase is True
    cased = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}, do_lower_case=False)
    task = Seq2Seq()
    assert task.encode([], cased, training=False) == []
    assert task.lowercase is False


def test_text_is_written_as_people_do() -> None:
    tokenizer = make_tokenizer(["我", "喜", "欢", "。", "electra", "##s", "do", "not", ",", ".", "猫"])

    def text(source: str) -> str:
        return to_text(tokenizer, tokenizer(source)["input_ids"])

    assert text("我喜欢electras。猫") == "我喜欢electras。猫"
    assert text("do not, do.") == "do not, do."


def test_metrics_follow_the_language() -> None:
    english, chinese, russian = (Seq2Seq() for _ in range(3))
    english.fit([{"source": "", "label": "The cat, 猫, sat."}])
    chinese.fit([{"source": "", "label": "我喜欢AI猫"}])
    russian.fit([{"source": "", "label": "я люблю котов"}])
    assert (english.rouge_tokens, english.bleu_tokenizer) == ("words", "13a")
    assert (chinese.rouge_tokens, chinese.bleu_tokenizer) == ("characters", "zh")
    assert (russian.rouge_tokens, russian.bleu_tokenizer) == ("characters", "13a")
    given = Seq2Seq(rouge_tokens="words", bleu_tokenizer="char")
    given.fit([{"source": "", "label": "我喜欢猫"}])
    assert (given.rouge_tokens, given.bleu_tokenizer) == ("words", "char")
    scores = chinese.score([{"label": "我喜欢猫"}], [{"text": "我喜欢狗"}])
    assert scores["rouge_l"] == pytest.approx(75.0, abs=1e-6)
    assert scores["exact_match"] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', "row 2: no column 'target'"),
        ("a.jsonl", '{"source": "a", "traget": "b"}\n', "row 1: no column 'target'; did you mean traget\\?"),
        ("a.jsonl", '{"source": "a", "target": " "}\n', "row 1: target is empty"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', "row 1: target must be text; got 3"),
        ("a.jsonl", '{"source": [], "target": "b"}\n', "row 1: source is empty"),
        ("a.jsonl", '{"source": ["a", ""], "target": "b"}\n', "row 1: turn 2 of source must be text that is not empty"),
        ("a.jsonl", '{"source": ["a", 5], "target": "b"}\n', "row 1: turn 2 of source .*; got 5"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": \n', "row 2: broken JSON"),
        ("a.jsonl", "", "holds no row"),
        ("a.csv", "source,target\na\n", "row 2: 1 fields, but 2 columns"),
        ("a.csv", "text,target\na,b\n", "row 2: no column 'source'"),
        ("a.tsv", "source\ttarget\n\tb\n", "row 2: source is empty"),
    ],
)
def test_a_mistake_in_a_file_is_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        Seq2Seq().read(file, "train")
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)


def test_targets_may_be_absent_where_there_is_nothing_to_score(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"source": ["a", "b"]}\n{"source": "c", "target": "d"}\n')
    assert Seq2Seq().read(file, "test") == [{"source": ["a", "b"]}, {"source": "c", "label": "d"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_target_length": 1}, "max_target_length must be 2 or more; got 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more; got 0"),
        ({"num_beams": 0}, "num_beams must be 1 or more"),
        ({"length_penalty": 2.0}, "length_penalty must be 1 without beams; got 2.0"),
        ({"rouge_tokens": "letters"}, "rouge_tokens must be words or characters; got 'letters'"),
        ({"bleu_tokenizer": "14a"}, "bleu_tokenizer must be 13a or intl"),
    ],
)
def test_an_option_that_can_not_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seq2Seq(**options)


def test_copying_is_learned_from_500_pairs(tmp_path: Path) -> None:
    """By the run itself, scored on other sentences. Seeds are fixed: the same run everywhere, far from the edge."""
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("train", 500), ("dev", 100)):
        lengths = torch.randint(2, 6, (rows,), generator=generator).tolist()
        drawn = (torch.randint(0, len(WORDS), (length,), generator=generator).tolist() for length in lengths)
        texts = [" ".join(WORDS[index] for index in indices) for indices in drawn]
        lines = (json.dumps({"source": text, "target": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = FinetuneConfig(
        learning_rate=3e-3,
        layer_decay=1.0,
        epochs=10,
        weight_decay=0.01,
        dropout=0.0,
        evaluate_every=10_000,
        save_every=10_000,
        device="cpu",
    )
    encoder = write_encoder(tmp_path / "encoder", 0, embedding_size=64)
    task = Seq2Seq(max_length=8, max_target_length=8, tie_embeddings=True)
    result = finetune(task, str(encoder), tmp_path, tmp_path / "run", config, progress=False)
    scores = result["seeds"][0]["metrics"]["dev"]
    assert scores["exact_match"] >= 95
    assert scores["rouge_l"] >= 95
    opened = load_finetuned(tmp_path / "run")
    predicted = predict_examples(opened, [{"source": "ba go li"}, {"source": "me"}])
    assert predicted.predictions == [{"text": "ba go li"}, {"text": "me"}]
