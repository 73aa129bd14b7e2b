"""Questions from JSON files in SQuAD's form, with errors that name the file and the question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_fast.arguments import shown
from electra_fast.finetuning.tables import Row, error_at, read_rows
from electra_fast.finetuning.task import Example


@dataclass
class SquadReader:
    """Reads `{"version", "data": [{"paragraphs": [{"context", "qas": [...]}]}]}`, or JSON lines.

    A question of "qas" has "id", "question", "answers", a list of {"text", "answer_start"}, and in SQuAD 2.0
    "is_impossible". A line of .jsonl is such a question with its "context"; its "id" may be left out.

    Attributes:
        file: the file, UTF-8; None: questions come as rows.
        is_labelled: every question must have answers, or be marked as impossible.
        is_training: answers must also stand in the context, where `answer_start` says.
        search_answers: take the nearest place where the answer stands instead, if it is not where it should.
    """

    file: Path | None
    is_labelled: bool
    is_training: bool
    search_answers: bool = False
    _is_version_2: bool = False  # every question must say whether it is impossible

    def read(self, rows: Iterable[Row] | None = None) -> list[Example]:
        """An example for each question: "id", "question", "context", "answers" and "is_impossible".

        "answers" is a list of {"text", "answer_start"}, absent where the file has none and need not. For training the
        first is the one that counts, so its place is checked.

        Args:
            rows: questions with their contexts, as lines of .jsonl hold them; None: those of the file.

        Raises:
            ValueError: about the first mistake.
        """
        examples: list[Example] = []
        seen: dict[str, str] = {}
        if rows is None and self.file.suffix == ".jsonl":
            rows = read_rows(self.file)
        for question, context, place in self._questions() if rows is None else self._of_rows(rows):
            example = self._example(question, context, place)
            if example["id"] in seen:
                raise self._error(place, f"id {example['id']!r} is also that of {seen[example['id']]}")
            seen[example["id"]] = place
            examples.append(example)
        if not examples:
            raise ValueError(f"{self.file} holds no question")
        return examples

    def _of_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Any, str, str]]:
        for row in rows:
            yield {"id": row.number, **row.values}, self._text(row.values, "context", row.place), row.place

    def _questions(self) -> Iterator[tuple[Any, str, str]]:
        content = self._load()
        self._is_version_2 = str(content.get("version", "")).removeprefix("v").startswith("2")
        for a, article in enumerate(self._items(content, "data", "the file"), start=1):
            for p, paragraph in enumerate(self._items(article, "paragraphs", f"article {a}"), start=1):
                place = f"article {a}, paragraph {p}"
                context = self._text(paragraph, "context", place)
                for q, question in enumerate(self._items(paragraph, "qas", place), start=1):
                    yield question, context, f"{place}, question {q}"

    def _load(self) -> dict[str, Any]:
        try:
            text = self.file.read_text(encoding="utf-8-sig")
            content = json.loads(text) if text.strip() else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: not UTF-8 ({error.reason}): convert the file") from error
        except json.JSONDecodeError as error:
            where = f"row {error.lineno:,}"
            raise self._error(where, f"broken JSON: {error.msg} at character {error.colno:,}") from error
        if content is None:
            raise ValueError(f"{self.file} is empty")
        if not isinstance(content, dict):
            raise self._error("the file", f"expected an object with 'data', as SQuAD has it; got {shown(content)}")
        return content

    def _example(self, question: Any, context: str, place: str) -> Example:
        identifier = self._get(question, "id", place)
        if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
            raise self._error(place, f"id must be text; got {shown(identifier)}")
        place = f"{place} (id {str(identifier)!r})"
        example = {"id": str(identifier), "question": self._question(question, place), "context": context}
        is_impossible = question.get("is_impossible")
        if is_impossible is None and self._is_version_2 and self.is_labelled:
            raise self._error(place, "no 'is_impossible', which a file of version 2 must have")
        if is_impossible is not None and not isinstance(is_impossible, bool):
            raise self._error(place, f"is_impossible must be true or false; got {shown(is_impossible)}")
        if self.is_labelled or question.get("answers") or is_impossible:
            answers = [self._answer(answer, place) for answer in self._items(question, "answers", place)]
            if answers and is_impossible:
                raise self._error(place, "is_impossible is true, but there are answers")
            if self.is_labelled and not answers and not is_impossible:
                raise self._error(place, "no answers: expected one at least, or is_impossible: true")
            if self.is_training:
                answers[:1] = [self._placed(answer, context, place) for answer in answers[:1]]
            example |= {"answers": answers, "is_impossible": not answers}
        return example

    def _question(self, question: Any, place: str) -> str:
        text = self._get(question, "question", place)
        if not isinstance(text, str):  # an empty one is in CMRC2018
            raise self._error(place, f"question must be text; got {shown(text)}")
        return text

    def _answer(self, answer: Any, place: str) -> dict[str, Any]:
        text = self._text(answer, "text", f"{place}, an answer")
        start = self._get(answer, "answer_start", f"{place}, an answer") if self.is_training else None
        if start is not None and type(start) is not int:
            raise self._error(place, f"answer_start must be a whole number; got {shown(start)}")
        return {"text": text, "answer_start": start} if self.is_training else {"text": text}

    def _placed(self, answer: dict[str, Any], context: str, place: str) -> dict[str, Any]:
        text, start = answer["text"], answer["answer_start"]
        there = context[start : start + len(text)] if start >= 0 else ""
        if there == text:
            return answer
        if text not in context:
            raise self._error(place, f"the answer {shown(text)} does not occur in the context")
        if not self.search_answers:
            raise self._error(
                place,
                f"at answer_start {start} stands {shown(there)}, not the answer {shown(text)}: correct it, or take the "
                "nearest place where it stands by --search_answers true",
            )
        places = [index for index in range(len(context)) if context.startswith(text, index)]
        return {"text": text, "answer_start": min(places, key=lambda index: abs(index - start))}

    def _items(self, parent: Any, key: str, place: str) -> list[Any]:
        items = self._get(parent, key, place)
        if not isinstance(items, list):
            raise self._error(place, f"{key} must be a list; got {shown(items)}")
        return items

    def _text(self, parent: Any, key: str, place: str) -> str:
        text = self._get(parent, key, place)
        if not isinstance(text, str):
            raise self._error(place, f"{key} must be text; got {shown(text)}")
        if not text.strip():
            raise self._error(place, f"{key} is empty")
        return text

    def _get(self, parent: Any, key: str, place: str) -> Any:
        if not isinstance(parent, dict):
            raise self._error(place, f"expected an object with {key!r}; got {shown(parent)}")
        if key not in parent:
            raise self._error(place, f"no {key!r} (it has: {', '.join(parent) or 'nothing'})")
        return parent[key]

    def _error(self, place: str, what: str) -> ValueError:
        return error_at(self.file, place, what)
