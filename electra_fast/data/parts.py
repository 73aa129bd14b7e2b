"""Parts of a corpus: what each task of a cluster encoded, for one process to join in the order of the sources.

00007.bin   encoded documents, chunk after chunk
00007.json  who wrote them and which bytes are of which source, with checksums; written last: the task is done
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from electra_fast.data.checksum import sealed, unsealed
from electra_fast.data.corpus import TOKEN_DTYPES
from electra_fast.data.deduplication import KEY_DTYPE
from electra_fast.data.encoding import Chunk, Encoder
from electra_fast.data.meta_checks import checked

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

FORMAT = "electra-fast-part"
VERSION = 1
COUNT_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class Stretch:
    """Documents of one source (a file's path): the bytes start..start + size of a task's file."""

    source: str
    start: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """What 00007.json says: whose part it is, how its documents were encoded, and where they are.

    `units` are joined by commas.
    """

    task: int
    tasks: int
    tokenizer_sha256: str
    deduplicate: bool
    units: str
    segmenter: str
    stretches: tuple[Stretch, ...]
    format: str = FORMAT
    version: int = VERSION

    @property
    def encoding(self) -> tuple[str, bool, str, str]:
        """What all parts of a corpus have in common."""
        return self.tokenizer_sha256, self.deduplicate, self.units, self.segmenter


class PartWriter:
    """Writes the part of one of `tasks` tasks into `folder`; until the block ended well it doesn't count as done."""

    def __init__(self, folder: AbstractFileSystem, task: int, tasks: int, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._task, self._tasks = task, tasks
        self._stretches: list[Stretch] = []
        self._source: str | None = None

    def __enter__(self) -> PartWriter:
        if self._folder.exists(_json_name(self._task)):  # of an earlier run: no longer true
            self._folder.rm_file(_json_name(self._task))
        self._file = self._folder.open(_data_name(self._task), "wb")
        self._start = self._size = 0
        return self

    def write(self, source: str, chunk: Chunk) -> None:
        """Documents of a source, after those that were written before."""
        if source != self._source:
            self._end_stretch()
            self._source, self._digest = source, hashlib.sha256()
        content = _to_bytes(chunk)
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)

    def _end_stretch(self) -> None:
        if self._source is not None:
            self._stretches.append(Stretch(self._source, self._start, self._size, self._digest.hexdigest()))
        self._start, self._size = self._start + self._size, 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None:
            return
        self._end_stretch()
        units = self._encoder.units
        part = Part(
            task=self._task,
            tasks=self._tasks,
            tokenizer_sha256=self._encoder.tokenizer_sha256,
            deduplicate=self._encoder.deduplicate,
            units=",".join(units.kinds),
            segmenter=units.segmenter,
            stretches=tuple(self._stretches),
        )
        with self._folder.open(_json_name(self._task), "wb") as file:
            file.write(json.dumps(sealed(asdict(part)), indent=1).encode())


def read_parts(folder: AbstractFileSystem, name: str) -> list[Part]:
    """The parts of all tasks in a folder called `name`.

    Raises ValueError where there are none, where one is missing or damaged, where not all are of one run, and for a
    source that more than one task read: which of its documents come first then depends on the number of tasks.
    """
    folder.invalidate_cache()
    parts = [_read_part(folder, file, name) for file in sorted(folder.glob("*.json"))]
    if not parts:
        raise ValueError(f"{name} holds no parts of a corpus: tasks with the step CorpusTokenizer write them")
    tasks = parts[0].tasks
    if any(part.tasks != tasks or part.task >= tasks for part in parts):
        raise ValueError(f"{name} holds parts of runs with different numbers of tasks: empty it and run one of them")
    if any(part.encoding != parts[0].encoding for part in parts):
        raise ValueError(
            f"{name} holds parts of different tokenizers or options: empty it and run all tasks with the same"
        )
    if missing := sorted(set(range(tasks)) - {part.task for part in parts}):
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"{name}: {len(missing):,} of {tasks:,} tasks are not done ({some}): run them, then merge")
    readers: dict[str, int] = {}
    for part in parts:
        for stretch in part.stretches:
            if readers.setdefault(stretch.source, part.task) != part.task:
                raise ValueError(
                    f"documents of {stretch.source} are in the parts of tasks {readers[stretch.source]} and "
                    f"{part.task}, so that their order is not known: let one task read all of a file, or give "
                    "CorpusTokenizer the key of what each task reads whole as file_key"
                )
    return parts


def read_chunks(
    folder: AbstractFileSystem, parts: Sequence[Part], encoder: Encoder, advance: Callable[[int], object]
) -> Iterator[Chunk]:
    """All documents: those of a source in the order in which its task wrote them, sources by name.

    `advance` is called with the number of bytes read since its last call. Raises ValueError naming the file that is
    damaged and the task to run again.
    """
    stretches = [(stretch.source, stretch.start, part.task, stretch) for part in parts for stretch in part.stretches]
    for *_, task, stretch in sorted(stretches, key=lambda entry: entry[:3]):
        with folder.open(_data_name(task), "rb") as file:
            file.seek(stretch.start)
            content = _Stretch(file, stretch, f"{_data_name(task)} is damaged or was cut short: run task {task} again")
            while content.left:
                left = content.left
                yield _from_bytes(content, encoder)
                advance(left - content.left)
            content.check(content.sha256() == stretch.sha256)


def _read_part(folder: AbstractFileSystem, file: str, name: str) -> Part:
    try:
        content = unsealed(json.loads(folder.cat_file(file)))
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"it does not describe a part of version {VERSION}")
        part = checked(Part, content)
        if _json_name(part.task) != file:
            raise ValueError(f"it is of task {part.task}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}/{file} is damaged: {error}; run its task again, or empty the folder") from error
    return part


def _json_name(task: int) -> str:
    return f"{task:05d}.json"


def _data_name(task: int) -> str:
    return f"{task:05d}.bin"


def _to_bytes(chunk: Chunk) -> bytes:
    columns = [np.array([len(chunk.lengths), len(chunk.ids)], COUNT_DTYPE)]
    columns += [chunk.lengths.astype(COUNT_DTYPE), chunk.text_bytes.astype(COUNT_DTYPE), chunk.ids]
    columns += [] if chunk.keys is None else [chunk.keys]
    columns += [np.packbits(starts, bitorder="little") for starts in chunk.starts.values()]
    return b"".join(column.tobytes() for column in columns)


def _from_bytes(content: _Stretch, encoder: Encoder) -> Chunk:
    documents, tokens = content.take(COUNT_DTYPE, 2).tolist()
    lengths = content.take(COUNT_DTYPE, documents)
    content.check(bool((lengths >= 0).all()) and lengths.sum() == tokens)
    return Chunk(
        lengths=lengths,
        text_bytes=content.take(COUNT_DTYPE, documents),
        ids=content.take(TOKEN_DTYPES[encoder.dtype], tokens),
        keys=content.take(KEY_DTYPE, documents) if encoder.deduplicate else None,
        starts={
            kind: np.unpackbits(content.take(np.dtype("u1"), -(-tokens // 8)), count=tokens, bitorder="little") == 1
            for kind in encoder.units.kinds
        },
    )


class _Stretch:
    """The bytes of a stretch, taken one array after another; `damaged` is the error where they can't be right."""

    def __init__(self, file: BinaryIO, stretch: Stretch, damaged: str) -> None:
        self.left = stretch.size
        self._file = file
        self._digest = hashlib.sha256()
        self._damaged = damaged

    def take(self, dtype: np.dtype, count: int) -> np.ndarray:
        size = count * dtype.itemsize
        self.check(0 <= size <= self.left)
        content = self._file.read(size)
        self.check(len(content) == size)
        self._digest.update(content)
        self.left -= size
        return np.frombuffer(content, dtype)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def check(self, right: bool) -> None:
        if not right:
            raise ValueError(self._damaged)
