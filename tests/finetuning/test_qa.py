"""Question answering: files, windows of tokens and back to characters, learning, and real data where it is at hand."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from electra_fast.finetuning.heads import HEADS, choose_head
from electra_fast.finetuning.inference import infer
from electra_fast.finetuning.model import load_finetuned, load_with_head, save_finetuned
from electra_fast.finetuning.tasks.qa import CMRC2018, QuestionAnswering

# Letters, and characters that tokenizers drop, change or part: ligature, emoji, combining and precomposed accents,
# full-width, Chinese, Hangul, a soft hyphen, a zero-width space, other blanks, a control character.
LETTERS = "abcdexyz"
STRANGE = "ﬁ🦊é\u0301\u0323İßＡ１。三国志한글\u00ad\u200b\u00a0\u3000\t\n\u0007-.,'"  # noqa: RUF001


def _tokenizer(tmp_path: Path, *, lower: bool) -> PreTrainedTokenizerBase:
    known = [*LETTERS, *"éßＡ１。三国-.,'", "ab", "abc"]  # noqa: RUF001
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known, *(f"##{piece}" for piece in known)]
    words += ["what", "is", "the", "number", *(f"word{n}" for n in range(20)), *(f"{n}" for n in range(10, 30))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lower)


@pytest.fixture(params=[True, False], ids=["uncased", "cased"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    return _tokenizer(tmp_path, lower=request.param)


def _squad(*questions: dict[str, Any], context: str = "the red fox", version: str = "1.1") -> dict[str, Any]:
    qas = [{"id": f"q{number}", "question": "what"} | question for number, question in enumerate(questions)]
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}


def _write(folder: Path, content: Any, name: str = "train.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


RED = {"answers": [{"text": "red", "answer_start": 4}]}


def test_reading(tmp_path: Path) -> None:
    task = QuestionAnswering()
    content = _squad(RED | {"is_impossible": False}, {"answers": [], "is_impossible": True}, version="v2.0")
    examples = task.read(_write(tmp_path, content), "train")
    base = {"question": "what", "context": "the red fox"}
    assert examples == [
        {"id": "q0", **base, "answers": RED["answers"], "is_impossible": False},
        {"id": "q1", **base, "answers": [], "is_impossible": True},
    ]
    task.fit(examples)
    assert task.no_answer is True
    # Without labels neither answers nor is_impossible are needed; the places of answers count in training only.
    assert task.read(_write(tmp_path, _squad({}, version="v2.0")), "predict") == [{"id": "q0", **base}]
    wrong_place = _squad({"answers": [{"text": "red", "answer_start": -1}]})
    assert task.read(_write(tmp_path, wrong_place), "dev")[0]["answers"] == [{"text": "red"}]
    nearest = QuestionAnswering(search_answers=True).read(
        _write(tmp_path, _squad({"answers": [{"text": "a", "answer_start": 6}]}, context="a b c a d a")), "train"
    )
    assert nearest[0]["answers"] == [{"text": "a", "answer_start": 6}]
    moved = _squad({"answers": [{"text": "a", "answer_start": 9}]}, context="a b c a d a")
    assert CMRC2018().read(_write(tmp_path, moved), "train")[0]["answers"][0]["answer_start"] == 10
    lines = json.dumps(base | RED) + "\n\n" + json.dumps(base | {"id": "x"} | RED) + "\n"
    assert [example["id"] for example in task.read(_write(tmp_path, lines, "a.jsonl"), "dev")] == ["1", "x"]


def _changed(path: str, value: Any) -> dict[str, Any]:
    """A good file with another value, or (None) without the key, at a dotted path."""
    content = copy.deepcopy(_squad(RED, RED))
    parent: Any = content
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        parent = parent[key]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return content


QUESTION = "data.0.paragraphs.0.qas.1"
PLACE = r"article 1, paragraph 1, question 2 \(id 'q1'\)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty$"),
        ('{"data": [\n {"paragraphs": oops}]}', r", row 2: broken JSON: Expecting value at character 17$"),
        ([1], r", the file: expected an object with 'data'"),
        (_changed("data", None), r", the file: no 'data' \(it has: version\)$"),
        (_changed("data", []), "holds no question$"),
        (_changed("data.0.paragraphs", None), r", article 1: no 'paragraphs'"),
        (_changed("data.0.paragraphs.0.context", None), r", article 1, paragraph 1: no 'context'"),
        (_changed("data.0.paragraphs.0.context", "  "), r", article 1, paragraph 1: context is empty"),
        (_changed("data.0.paragraphs.0.qas", {}), r", article 1, paragraph 1: qas must be a list"),
        (_changed(QUESTION, 7), r", article 1, paragraph 1, question 2: expected an object"),
        (_changed(f"{QUESTION}.id", None), r", article 1, paragraph 1, question 2: no 'id'"),
        (_changed(f"{QUESTION}.id", "q0"), rf", {PLACE[:34]}: id 'q0' is also that of article 1.*question 1$"),
        (_changed(f"{QUESTION}.question", 3), rf", {PLACE}: question must be text; got 3$"),
        (_changed(f"{QUESTION}.answers", None), rf", {PLACE}: no 'answers'"),
        (
            _changed(f"{QUESTION}.answers", []),
            rf", {PLACE}: no answers: expected one at least, or is_impossible: true$",
        ),
        (_changed(f"{QUESTION}.answers.0.text", ""), rf", {PLACE}, an answer: text is empty$"),
        (_changed(f"{QUESTION}.answers.0.answer_start", None), rf", {PLACE}, an answer: no 'answer_start'"),
        (_changed(f"{QUESTION}.answers.0.answer_start", "4"), rf", {PLACE}: answer_start must be a whole number"),
        (_changed(f"{QUESTION}.answers.0.answer_start", 5), rf", {PLACE}: at answer_start 5 stands 'ed ', not .*'red'"),
        (_changed(f"{QUESTION}.answers.0.text", "blue"), rf", {PLACE}: the answer 'blue' does not occur"),
        (_changed(f"{QUESTION}.is_impossible", "no"), rf", {PLACE}: is_impossible must be true or false; got 'no'$"),
        (_changed(f"{QUESTION}.is_impossible", True), rf", {PLACE}: is_impossible is true, but there are answers$"),
        (
            _changed("version", "v2.0"),
            r"question 1 \(id 'q0'\): no 'is_impossible', which a file of version 2 must have$",
        ),
    ],
)
def test_mistakes_are_one_line_with_file_and_place(tmp_path: Path, content: Any, message: str) -> None:
    file = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        QuestionAnswering().read(file, "train")
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_other_mistakes(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        QuestionAnswering().read(tmp_path / "train.json", "train")
    with pytest.raises(ValueError, match="row 1: no 'context'"):
        QuestionAnswering().read(_write(tmp_path, '{"question": "x"}\n', "a.jsonl"), "predict")
    for options, message in (
        ({"doc_stride": 0}, "doc_stride must be at least 1; got 0"),
        ({"max_length": 67}, "leaves no room for the context"),
        ({"metrics": "rouge"}, "metrics must be squad or cmrc2018"),
    ):
        with pytest.raises(ValueError, match=message):
            QuestionAnswering(**options)


def test_files_by_the_names_they_are_known_by(tmp_path: Path) -> None:
    def files(*names: str) -> dict[str, str]:
        folder = tmp_path / str(random.random())
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        return {split: file.name for split, file in QuestionAnswering().files(folder).items()}

    assert files("train-v1.1.json", "dev-v1.1.json") == {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}
    assert files("xquad.en.json", "xquad.zh.json") == {"dev_en": "xquad.en.json", "dev_zh": "xquad.zh.json"}
    both = ("cmrc2018_trial.json", "cmrc2018_dev.json")
    assert files(*both) == {"train": both[0], "dev": both[1]}
    assert files(*both, "cmrc2018_train.json")["train"] == "cmrc2018_train.json"
    assert files("test.json", "predictions.json", "train.txt", "valid.jsonl") == {
        "test": "test.json",
        "dev": "valid.jsonl",
    }
    with pytest.raises(ValueError, match=r"holds dev-v1.1.json and dev-v2.0.json: leave one of them for dev"):
        files("dev-v1.1.json", "dev-v2.0.json")
    with pytest.raises(ValueError, match="holds no data of qa: expected files such as train-v1.1.json"):
        files("other.json")
    with pytest.raises(ValueError, match="is no folder"):
        QuestionAnswering().files(tmp_path / "absent")


def _example(context: str, start: int, text: str, question: str = "what is") -> dict[str, Any]:
    answers = [{"text": text, "answer_start": start}]
    return {"id": "q", "question": question, "context": context, "answers": answers, "is_impossible": False}


def _sure(features: list[dict[str, Any]], trained: list[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits of a model that is sure of the answers that `trained` features of the same windows hold."""
    outputs = []
    for feature, label in zip(features, trained, strict=True):
        start, end = np.zeros((2, len(feature["input_ids"])), dtype=np.float32)
        start[label["start_positions"]] = end[label["end_positions"]] = 9
        outputs.append((start, end))
    return outputs


def test_random_answers_are_found_again_or_the_feature_says_so(
    tokenizer: PreTrainedTokenizerBase, rng_seed: int
) -> None:
    rng = random.Random(rng_seed)
    task = QuestionAnswering(max_length=30, query_length=5, doc_stride=20, max_answer_tokens=30)
    exact = wider = absent = 0
    for _ in range(400):
        context = "".join(rng.choices(LETTERS * 3 + "  " * 4 + STRANGE, k=rng.randrange(1, 12)))
        start = rng.randrange(len(context))
        text = context[start : rng.randrange(start + 1, len(context) + 1)]
        if not text.strip():
            continue
        examples = [_example(context, start, text)]
        trained = task.encode(examples, tokenizer, training=True)
        if not trained:  # nothing of it is left by the tokenizer
            assert tokenizer.tokenize(text) == []
            absent += 1
            continue
        features = task.encode(examples, tokenizer, training=False)
        assert [feature["input_ids"] for feature in features] == [feature["input_ids"] for feature in trained]
        [prediction] = task.decode(examples, features, _sure(features, trained))
        found = prediction["text"]
        assert context[prediction["start"] :].startswith(found)
        assert trained[0]["is_exact"] == (found == text.strip())
        exact += trained[0]["is_exact"]
        wider += not trained[0]["is_exact"]
    assert exact > 0 and wider > 0
    print(f"exact {exact}, wider or narrower {wider}, no token {absent}")


def test_whole_words_are_always_found_exactly(tokenizer: PreTrainedTokenizerBase, rng_seed: int) -> None:
    """In long contexts, through several windows; a word's first and last character is one that tokenizers keep."""
    rng = random.Random(rng_seed)
    task = QuestionAnswering(max_length=40, query_length=6, doc_stride=9, max_answer_tokens=40)
    ends = [*LETTERS, "ﬁ", "🦊", "é", "Ａ", "三", "e\u0301", "한", "-"]
    for _ in range(100):
        words = []
        for _ in range(rng.randrange(1, 60)):
            inner = "".join(
                rng.choices(LETTERS + STRANGE.replace("\u00a0", "").replace("\u3000", ""), k=rng.randrange(4))
            )
            words.append(rng.choice(ends) + inner.replace("\t", "").replace("\n", "") + rng.choice(ends))
        first = rng.randrange(len(words))
        last = min(len(words) - 1, first + rng.randrange(2))
        start = len(" ".join(words[:first])) + (first > 0)
        examples = [_example(" ".join(words), start, " ".join(words[first : last + 1]), "what is the number " * 3)]
        trained = task.encode(examples, tokenizer, training=True)
        features = task.encode(examples, tokenizer, training=False)
        assert all(feature["is_exact"] for feature in trained)
        assert all(len(feature["input_ids"]) <= 40 for feature in features)
        assert all(feature["input_ids"][7] == tokenizer.sep_token_id for feature in features)  # the question is cut
        [prediction] = task.decode(examples, features, _sure(features, trained))
        if any(feature["start_positions"] for feature in trained):
            assert prediction["text"] == " ".join(words[first : last + 1])
            assert prediction["start"] == start


def test_features_hold_question_and_context_as_the_original_has_them(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, lower=True)
    context = " ".join(f"word{n}" for n in range(20))  # a token each
    task = QuestionAnswering(max_length=15, query_length=2, doc_stride=8)  # windows of 10 tokens
    start = context.index("word9")
    examples = [
        _example(context, start, "word9 word10"),
        _example(context, 0, "word0") | {"answers": [], "is_impossible": True},
    ]
    features = task.encode(examples, tokenizer, training=True)
    assert tokenizer.convert_ids_to_tokens(features[1]["input_ids"]) == [
        "[CLS]", "what", "is", "[SEP]", *(f"word{n}" for n in range(8, 18)), "[SEP]"
    ]  # fmt: skip
    assert features[1]["token_type_ids"] == [0] * 4 + [1] * 11
    labels = [
        tuple(feature[name] for name in ("example", "start_positions", "end_positions", "is_impossible"))
        for feature in features
    ]
    # Of the three windows from 0, 8 and 16 only the second holds the answer.
    assert labels == [(0, 0, 0, 0), (0, 5, 6, 0), (0, 0, 0, 0), (1, 0, 0, 1), (1, 0, 0, 1), (1, 0, 0, 1)]
    kept = QuestionAnswering(max_length=15, query_length=2, doc_stride=8, skip_empty_windows=True)
    assert [feature["example"] for feature in kept.encode(examples, tokenizer, training=True)] == [0, 1, 1, 1]
    assert task.encode([], tokenizer, training=True) == []


def test_a_context_without_tokens_gives_no_answer(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, lower=True)
    task = QuestionAnswering(no_answer=True)
    examples = [{"id": "q", "question": "what", "context": "\u200b"}]
    [feature] = task.encode(examples, tokenizer, training=False)
    width = len(feature["input_ids"])
    [prediction] = task.decode(examples, [feature], [(np.zeros(width, "f4"), np.zeros(width, "f4"))])
    assert (prediction["text"], prediction["n_best"]) == ("", [])


def test_null_odds_and_threshold(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, lower=True)
    examples = [{"id": "q", "question": "what", "context": "word1 word2 word3", "answers": [{"text": "word2"}]}]
    task = QuestionAnswering(no_answer=True, n_best=2)
    [feature] = task.encode(examples, tokenizer, training=False)
    start = np.array([3, 0, 0, 1, 2, 0, 0], dtype=np.float32)  # [CLS] what [SEP] word1 word2 word3 [SEP]
    end = np.array([3.5, 0, 0, 0, 4, 0, 0], dtype=np.float32)
    [prediction] = task.decode(examples, [feature], [(start, end)])
    # No answer: 3 + 3.5. Best: word2, 2 + 4. Then word1 word2, 1 + 4.
    odds = prediction.pop("null_odds")
    assert odds == pytest.approx(0.5)
    near = round(1 / (1 + np.exp(-1)), 6)
    n_best = [
        {"text": "word2", "start": 6, "probability": near},
        {"text": "word1 word2", "start": 0, "probability": round(1 - near, 6)},
    ]
    assert prediction == {"id": "q", "text": "", "start": None, "probability": near, "n_best": n_best}
    above = QuestionAnswering(no_answer=True, n_best=2, threshold=0.6)
    predictions = above.decode(examples, [feature], [(start, end)])
    assert predictions[0]["text"] == "word2"
    assert above.score(examples, predictions)["f1"] == 100
    assert task.score(examples, [prediction | {"null_odds": odds}]) == {
        "exact": 0.0, "HasAns_exact": 0.0, "best_exact": 100.0, "best_exact_thresh": odds,
        "f1": 0.0, "HasAns_f1": 0.0, "best_f1": 100.0, "best_f1_thresh": odds,
    }  # fmt: skip
    plain = QuestionAnswering(n_best=2)
    assert "null_odds" not in plain.decode(examples, [feature], [(start, end)])[0]
    # A model for questions that all have an answer, on some that don't.
    assert plain.score([{"answers": []}], [{"text": "word2"}])["NoAns_exact"] == 0


@pytest.mark.parametrize("head", ["transformers", "original"])
def test_made_up_questions_are_learned(tmp_path: Path, head: str) -> None:
    """The answer is the only number of a context, and there is none where the context has none."""
    tokenizer = _tokenizer(tmp_path, lower=True)
    torch.manual_seed(0)  # what is learned must not depend on luck
    rng = random.Random(0)
    shape = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer), intermediate_size=64, max_position_embeddings=64, **shape
    )
    transformers.ElectraForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    examples = []
    for number in range(96):
        words = [f"word{rng.randrange(20)}" for _ in range(rng.randrange(8, 40))]
        answer = None if number % 4 == 0 else str(rng.randrange(10, 30))
        if answer is not None:
            words.insert(rng.randrange(len(words)), answer)
        context = " ".join(words)
        example = _example(
            context,
            0 if answer is None else context.index(f" {answer} ") + 1 if f" {answer} " in context else 0,
            answer or "x",
        )
        if answer is None:
            example |= {"answers": [], "is_impossible": True}
        examples.append(example | {"id": str(number)})
    train, dev = examples[:64], examples[64:]
    task = QuestionAnswering(max_length=40, query_length=8, doc_stride=16)
    choose_head(task, head)
    task.fit(train)
    assert task.no_answer is True
    model = load_with_head(
        tmp_path / "pretrained", task, seed=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    features = task.encode(train, tokenizer, training=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        rng.shuffle(features)
        for first in range(0, len(features), 8):
            optimizer.zero_grad()
            model(**HEADS[task.head].collate(features[first : first + 8], tokenizer)).loss.backward()
            optimizer.step()
    save_finetuned(model, tokenizer, task, tmp_path / "model")
    opened = load_finetuned(tmp_path / "model")
    assert opened.task == task and opened.task.head == task.head
    dev_features = task.encode(dev, tokenizer, training=False)
    predictions = [
        task.decode(dev, dev_features, infer(one, tokenizer, task.head, dev_features)) for one in (model, opened.model)
    ]
    assert predictions[0] == predictions[1]
    metrics = task.score(dev, predictions[1])
    assert metrics["best_f1"] >= 95 and metrics["f1"] >= 90
    name, text = task.submission("dev", predictions[1])
    assert json.loads(text) == {prediction["id"]: prediction["text"] for prediction in predictions[1]}


# Real data.


@pytest.mark.parametrize(
    ("task", "name", "count"),
    [
        (QuestionAnswering(no_answer=False), "qa/squad_v1.1/dev-v1.1.json", 10_570),
        (QuestionAnswering(no_answer=True), "qa/squad_v2.0/dev-half.json", 6_078),
        (QuestionAnswering(no_answer=False), "qa/xquad/xquad.zh.json", 1_190),
        (CMRC2018(no_answer=False), "qa/cmrc2018/cmrc2018_trial.json", 1_002),
    ],
    ids=lambda value: Path(value).stem if isinstance(value, str) else None,
)
def test_right_answers_to_real_questions_score_100(
    shared_data: Callable[[str], Path], task: QuestionAnswering, name: str, count: int
) -> None:
    examples = task.read(shared_data(name), "dev")
    assert len(examples) == count
    predictions = []
    for example in examples:
        # The longest: a right answer such as "." has no words, and SQuAD 1.1's F1 of it is 0.
        text = max((answer["text"] for answer in example["answers"]), key=len, default="")
        odds = float(not example["answers"])
        predictions.append({"text": text, "null_odds": odds, "n_best": [{"text": text or "something"}]})
    metrics = task.score(examples, predictions)
    assert {value for key, value in metrics.items() if not key.endswith("thresh")} == {100.0}


def test_answers_of_real_training_questions(shared_data: Callable[[str], Path]) -> None:
    """Nearly all of SQuAD's are whole tokens; in CMRC2018 five stand beside their place."""
    vocabulary = shared_data("vocab/bert-base-uncased.vocab.txt")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    task = QuestionAnswering()
    examples = task.read(shared_data("qa/squad_v1.1/train-subset.json"), "train")[:500]
    features = task.encode(examples, tokenizer, training=True)
    assert {feature["example"] for feature in features} == set(range(500))
    assert sum(feature["is_exact"] for feature in features) >= 0.98 * len(features)
    trial = shared_data("qa/cmrc2018/cmrc2018_trial.json")
    with pytest.raises(ValueError, match=r"cmrc2018_trial.json, article \d+, .*\(id 'TRIAL_.*--search_answers true"):
        task.read(trial, "train")
    assert len(CMRC2018().read(trial, "train")) == 1_002
