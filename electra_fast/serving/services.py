"""What a model can be asked: predictions of a fine-tuned one, which tokens look replaced, vectors of texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from electra_fast.arguments import shown
from electra_fast.checkpoints import read_architectures
from electra_fast.finetuning.features import FeatureExtractor
from electra_fast.finetuning.heads import collate_packed
from electra_fast.finetuning.inference import infer
from electra_fast.finetuning.model import FineTuned, find_pretrained
from electra_fast.finetuning.predict import open_finetuned
from electra_fast.finetuning.task import TASK_FILE, Example, Feature, Output, num_tokens
from electra_fast.inspection import TokenizedText, load_discriminator, tokenize
from electra_fast.twins import choose_device

_DIGITS = 6  # of probabilities in a reply, as `predict` writes them
_VECTOR_DIGITS = 7


class Service(Protocol):
    """One route of the service.

    Attributes:
        route: its path is /route.
        asks, answers: keys of the request's list and of the reply's.
        about: what it does, for the page and the API's description.
    """

    route: str
    asks: str
    answers: str
    about: str

    def read(self, values: Sequence[Any]) -> list[Example]:
        """Examples of what a request lists. Raises ValueError about the one that is wrong, for its sender."""

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        """Features in the order of the examples; each says by "example" whose it is."""

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        """The model's output for each feature, in one batch."""

    def encode_again(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Feature]:
        """Features that depend on the outputs of the first, where there are any."""

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Mapping[str, Any]]:
        """What the reply says of each example, as JSON."""


class Predictions:
    """What `electra-fast predict` writes of each example, by a fine-tuned model."""

    route, asks, answers = "predict", "examples", "predictions"

    def __init__(self, finetuned: FineTuned) -> None:
        self.model, self.tokenizer, self.task = finetuned
        title = re.sub(r" \([A-Z, ]+\)$", "", self.task.title)  # without the kinds of files
        self.about = f"{title[:1].upper()}{title[1:]}."

    def read(self, values: Sequence[Any]) -> list[Example]:
        return self.task.from_objects(values)

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        return self.task.encode(examples, self.tokenizer, training=False)

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        return infer(self.model, self.tokenizer, self.task.head, features, batch_tokens=sum(map(num_tokens, features)))

    def encode_again(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Feature]:
        return self.task.encode_again(examples, features, outputs, self.tokenizer)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Mapping[str, Any]]:
        return self.task.decode(examples, features, outputs)


class _OfTexts:
    """A service whose examples are texts, read once."""

    asks = "texts"

    def read(self, values: Sequence[Any]) -> list[Example]:
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise ValueError(f"text {number:,}: expected text; got {shown(value)}")
        return [{"text": value} for value in values]

    def encode_again(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Feature]:
        return []


class Inspections(_OfTexts):
    """Which tokens of a text a discriminator takes for replaced, as `electra-fast inspect`."""

    route, answers = "inspect", "inspections"
    about = "The probability of each token of each text that it was replaced."

    def __init__(self, folder: Path, device: torch.device) -> None:
        model, self.tokenizer = load_discriminator(folder)
        self.model = model.to(device)
        self._collate = collate_packed(("input_ids",))

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        features = []
        for number, example in enumerate(examples):
            tokenized = tokenize(example["text"], self.tokenizer, self.model.config.max_position_embeddings)
            example["tokenized"] = tokenized
            features += [{"input_ids": ids, "example": number} for ids in tokenized.sequences(self.tokenizer)]
        return features

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        batch = self._collate(features, self.tokenizer)
        on_device = {k: v.to(self.model.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        with torch.inference_mode():
            probabilities = self.model(**on_device).logits[0].sigmoid().cpu()
        parts = probabilities.split([len(feature["input_ids"]) for feature in features])
        return [part[1:-1].tolist() for part in parts]

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Mapping[str, Any]]:
        probabilities: list[list[float]] = [[] for _ in examples]
        for feature, output in zip(features, outputs, strict=True):
            probabilities[feature["example"]] += output
        return [
            _inspection(example["tokenized"], found) for example, found in zip(examples, probabilities, strict=True)
        ]


def _inspection(tokenized: TokenizedText, probabilities: list[float]) -> dict[str, Any]:
    """`tokens` with their places in the text, in characters; `words` as tokens [first, last); `cuts` in characters."""
    inspected = tokenized.inspected(probabilities)
    columns = zip(inspected.tokens, inspected.offsets, inspected.probabilities, strict=True)
    return {
        "text": inspected.text,
        "tokens": [
            {"token": token, "start": start, "end": end, "probability": round(probability, _DIGITS)}
            for token, (start, end), probability in columns
        ],
        "words": [list(span) for span in inspected.word_spans()],
        "cuts": list(inspected.cuts),
    }


class Vectors(_OfTexts):
    """Vectors of texts, or of their tokens, as `electra-fast features`."""

    route, answers = "features", "features"

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.tokenizer = extractor.tokenizer
        self.of_tokens = extractor.pooling == "tokens"
        self.about = f"A vector of {extractor.dim:,} numbers for each {'token of each ' * self.of_tokens}text."

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        encoded = self.tokenizer(
            [example["text"] for example in examples], truncation=True, max_length=self.extractor.max_length
        )
        return [{"input_ids": ids, "example": number} for number, ids in enumerate(encoded["input_ids"])]

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        ids = [feature["input_ids"] for feature in features]
        with torch.inference_mode():
            vectors = self.extractor.packed(ids).float().cpu().double().numpy()
        vectors = np.round(vectors, _VECTOR_DIGITS)
        if not self.of_tokens:
            return list(vectors)
        return np.split(vectors, np.cumsum([len(row) for row in ids])[:-1])

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Mapping[str, Any]]:
        if not self.of_tokens:
            return [{"vector": vector.tolist()} for vector in outputs]
        tokens = [self.tokenizer.convert_ids_to_tokens(feature["input_ids"]) for feature in features]
        return [{"tokens": names, "vectors": vectors.tolist()} for names, vectors in zip(tokens, outputs, strict=True)]


def open_services(
    name: str,
    *,
    device: str = "auto",
    features: bool = False,
    layers: Sequence[int] = (-1,),
    pooling: str = "mean",
    max_length: int | None = None,
) -> list[Service]:
    """What the model in a folder can be asked: predictions of a fine-tuned one, inspections of a discriminator.

    Args:
        name: a folder of a model or run, or a model's name in the Hugging Face cache.
        device: cpu, cuda, or auto.
        features: vectors too, by another copy of the encoder; of a model with no other use there are always vectors.
        layers, pooling, max_length: of the vectors, as of `FeatureExtractor`.

    Raises:
        ValueError: there is no such model, or it is damaged.
    """
    folder, chosen = find_pretrained(name), choose_device(device)
    services: list[Service] = []
    if (folder / TASK_FILE).is_file():
        services.append(Predictions(open_finetuned(folder, device)))
    elif "ElectraForPreTraining" in read_architectures(folder):
        services.append(Inspections(folder, chosen))
    if features or not services:
        extractor = FeatureExtractor(folder, layers=layers, pooling=pooling, max_length=max_length)
        services.append(Vectors(extractor.to(chosen)))
    return services
