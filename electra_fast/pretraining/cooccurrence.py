"""Word embeddings that start from counts: which tokens stand near which in the training data.

A table of pointwise mutual information, and its largest singular vectors: what word2vec's skip-gram approaches step by
step (Levy and Goldberg, 2014), here in closed form, in a minute on one core. A model that trains for minutes only would
spend them on learning that "boring" and "dull" are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.corpus import Corpus
from electra_fast.extras import require
from electra_fast.models.joint import ElectraForJointPreTraining

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WINDOW = 5  # tokens to each side; one at distance d counts d**-0.5
SMOOTHING = 0.75  # of the contexts' frequencies, so that rare ones do not stand out (Levy, Goldberg and Dagan, 2015)
MAX_TOKENS = 32_000_000  # read; of larger corpora evenly spaced stretches
_STRETCH = 4_000_000
_PURPOSE = "Embeddings from co-occurrences"


def start_embeddings(model: ElectraForJointPreTraining, corpora: Sequence[Corpus], *, seed: int) -> list[str]:
    """Let the word embeddings of a fresh model start from counts over `corpora`, in place; their mean length stays.

    Tokens without neighbours there, special ones among them, stay as they are.

    Args:
        corpora: of the model's vocabulary.
        seed: of the first guess at the singular vectors.

    Returns:
        What to print.

    Raises:
        ValueError: scikit-learn is not installed, or there are fewer different tokens than an embedding has numbers.
    """
    tables = [table for name, table in model.named_parameters() if name.endswith("word_embeddings.weight")]
    vectors = embeddings(corpora, max(table.shape[1] for table in tables), seed=seed)
    with torch.no_grad():
        for table in tables:
            rows = vectors[:, : table.shape[1]].to(table)
            lengths = rows.norm(dim=1, keepdim=True)
            known = lengths[:, 0] > 0
            table[: len(rows)][known] = rows[known] / lengths[known] * table.norm(dim=1).mean()
    tokens = sum(min(corpus.num_tokens, _share(corpus, corpora)) for corpus in corpora)
    return [f"embeddings: {int(known.sum()):,} of {len(table):,} start from their neighbours in {tokens:,} tokens"]


def embeddings(corpora: Sequence[Corpus], size: int, *, seed: int = 0) -> Tensor:
    """Singular vectors of the tokens' positive pointwise mutual information, times the roots of the singular values.

    Returns:
        float32 [V, size], the most important number first; zeros for tokens without neighbours.
    """
    extmath = require("sklearn.utils.extmath", extra="finetune", purpose=_PURPOSE)
    information = positive_information(count_neighbours(corpora))
    found = np.asarray(information.sum(axis=1)).ravel() > 0
    if found.sum() <= size:
        raise ValueError(
            f"init.embeddings: the training data holds {found.sum()} different tokens with neighbours, too few for "
            f"embeddings of {size} numbers: leave it at random, or give more text"
        )
    vectors, values, _ = extmath.randomized_svd(information, size, n_iter=2, random_state=seed % 2**32)
    vectors[~found] = 0  # but for rounding
    return torch.from_numpy((vectors * np.sqrt(values)).astype(np.float32))


def count_neighbours(corpora: Sequence[Corpus]) -> csr_array:
    """How often each token stands near each, by nearness: symmetric, [V, V]. Only tokens of one document are near."""
    sparse = require("scipy.sparse", extra="finetune", purpose=_PURPOSE)
    size = max(corpus.meta.vocab_size for corpus in corpora)
    counts = sparse.csr_array((size, size), dtype=np.float32)
    for ids, document in _stretches(corpora):
        rows, columns, weights = [], [], []
        for distance in range(1, WINDOW + 1):
            near = document[distance:] == document[:-distance]
            rows.append(ids[:-distance][near])
            columns.append(ids[distance:][near])
            weights.append(np.full(len(rows[-1]), distance**-0.5, np.float32))
        pairs = np.concatenate(rows), np.concatenate(columns)
        counts += sparse.coo_array((np.concatenate(weights), pairs), shape=counts.shape).tocsr()
    return counts + counts.T


def positive_information(counts: csr_array) -> csr_array:
    """max(0, log(p(a, b) / (p(a) p(b)))), with the smoothed frequency of contexts for p(b); absent where it is 0."""
    tokens = np.asarray(counts.sum(axis=1)).ravel()
    contexts = tokens**SMOOTHING
    pairs = counts.tocoo()
    rows, columns = pairs.coords
    pairs.data = np.maximum(np.log(pairs.data * (contexts.sum() / (tokens[rows] * contexts[columns]))), 0)
    information = pairs.tocsr()
    information.eliminate_zeros()
    return information


def _stretches(corpora: Sequence[Corpus]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens that stand together, and the document of each: int32 [n] twice."""
    for corpus in corpora:
        wanted = min(_share(corpus, corpora), corpus.num_tokens)
        parts = -(-wanted // _STRETCH)
        for part in range(parts):
            start = part * corpus.num_tokens // parts
            stop = min(start + -(-wanted // parts), corpus.num_tokens)
            document = np.searchsorted(corpus.offsets, np.arange(start, stop), side="right")
            yield corpus.read(start, stop).astype(np.int32), document.astype(np.int32)


def _share(corpus: Corpus, corpora: Sequence[Corpus]) -> int:
    """Tokens read of a corpus where all together hold more than `MAX_TOKENS`."""
    total = sum(other.num_tokens for other in corpora)
    return corpus.num_tokens if total <= MAX_TOKENS else max(1, MAX_TOKENS * corpus.num_tokens // total)
