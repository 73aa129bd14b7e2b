"""Corpora behind URLs: downloaded once into a cache, since they are memory-mapped; or written here, then uploaded."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock

from electra_fast.data.checksum import file_sha256
from electra_fast.data.corpus import META_FILE, Corpus, CorpusFile, CorpusMeta
from electra_fast.data.corpus_writer import PartialFolder
from electra_fast.data.progress import ReadingProgress
from electra_fast.data.remote import RemoteFile, connect, explained
from electra_fast.files import flush

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
BLOCK = 1 << 20  # bytes

# What `prepare` names its files, meta.json aside.
_PREPARED = re.compile(r"tokens-\d{5,}\.bin|offsets\.bin|starts-\w+\.bin|tokenizer/[\w.-]+", re.ASCII)


def cache_folder() -> Path:
    """$ELECTRA_FAST_CACHE, else electra-fast in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("ELECTRA_FAST_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "electra-fast"


def local_copy(url: str) -> Path:
    """The folder of a corpus behind a URL: a copy in `corpora` of `cache_folder()`, made where there is none yet.

    A copy is named by the sha256 of meta.json, which is read each time: where the corpus changed, it is another copy.
    Every file is compared with its checksum as it arrives, and the folder gets its name when all of it is there; a
    download that broke off goes on at the file it broke off in. Of several processes one downloads, the others wait.

    Raises ValueError for what can't be read, is no corpus, or has another checksum.
    """
    fs, path = connect(url)
    url, path = url.rstrip("/"), path.rstrip("/")
    with explained(f"{url}/{META_FILE}", "read"):
        content = fs.cat_file(f"{path}/{META_FILE}")
    meta = CorpusMeta.parse(content, f"{url}/{META_FILE}")
    folder = cache_folder() / "corpora" / hashlib.sha256(content).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.parent / f".{folder.name}.partial"
            _download(fs, path, url, meta, partial)
            (partial / META_FILE).write_bytes(content)
            Corpus.open(partial).load_tokenizer()  # raises for one of another tokenizer
            for file in (*partial.rglob("*"), partial):
                flush(file)
            partial.rename(folder)
    return folder


def _download(fs: AbstractFileSystem, path: str, url: str, meta: CorpusMeta, folder: Path) -> None:
    """Only to names that `CorpusMeta.parse` let pass, which lead out of no folder, and to those of a tokenizer."""
    (folder / meta.tokenizer).mkdir(parents=True, exist_ok=True)
    files = meta.files()
    with ReadingProgress(f"download {url}", sum(file.size for file in files)) as progress:
        for file in files:
            target = folder / file.name
            if _is_whole(target, file):
                progress.advance(file.size)
            else:
                _copy(RemoteFile(fs, f"{path}/{file.name}", f"{url}/{file.name}"), target, progress.advance, file)
    for name in TOKENIZER_FILES:
        source = f"{meta.tokenizer}/{name}"
        _copy(RemoteFile(fs, f"{path}/{source}", f"{url}/{source}"), folder / source, lambda _: None)


def _is_whole(path: Path, file: CorpusFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and file_sha256(path) == file.sha256


def _copy(
    source: RemoteFile, target: Path, advance: Callable[[int], object], expected: CorpusFile | None = None
) -> None:
    digest, size = hashlib.sha256(), 0
    with source.open() as content, target.open("wb") as copy:
        while block := content.read(BLOCK):
            copy.write(block)
            digest.update(block)
            size += len(block)
            advance(len(block))
            if expected is not None and size > expected.size:
                break
    if expected is not None and (size, digest.hexdigest()) != (expected.size, expected.sha256):
        raise ValueError(
            f"{source} is damaged: {size:,} bytes or more, and its sha256 is not the one in {META_FILE} (of "
            f"{expected.size:,} bytes); upload the corpus again"
        )


class UploadedFolder(PartialFolder):
    """A folder for a corpus in `uploads` of `cache_folder()`, uploaded to `url` when the block ends well.

    meta.json goes last, and first when a corpus is replaced: half an upload never looks whole. Where uploading fails,
    the folder stays and the error says where.
    """

    def __init__(self, url: str) -> None:
        super().__init__(cache_folder() / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16])
        self.url = url.rstrip("/")
        self._fs, path = connect(url)
        self._path = path.rstrip("/")

    def check(self, *, overwrite: bool) -> None:
        """Raises ValueError where a corpus can't be written to the URL, or may not."""
        files = self._files()
        if META_FILE in files:
            if not overwrite:
                raise ValueError(
                    f"output {self.url} exists; choose another or overwrite it (overwrite=True, --overwrite)"
                )
            with explained(f"{self.url}/{META_FILE}", "read"):
                content = self._fs.cat_file(f"{self._path}/{META_FILE}")
            CorpusMeta.parse(content, f"{self.url}/{META_FILE}")
        elif others := [name for name in files if not _PREPARED.fullmatch(name)]:  # else: half an upload
            raise ValueError(f"output {self.url} holds other files, {others[0]!r} among them: choose another")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is not None:
            return
        try:
            self._upload()
        except ValueError as failure:
            raise ValueError(
                f"{failure}; the whole corpus lies in {self.output}: copy it from there, {META_FILE} last"
            ) from failure
        shutil.rmtree(self.output)

    def _files(self) -> list[str]:
        with explained(self.url, "written to"):
            self._fs.invalidate_cache()
            found = self._fs.find(self._path)
        return [name[len(self._fs._strip_protocol(self._path)) :].lstrip("/") for name in found]

    def _upload(self) -> None:
        names = sorted(path.relative_to(self.output).as_posix() for path in self.output.rglob("*") if path.is_file())
        names.remove(META_FILE)
        old = self._files()
        with explained(self.url, "written to"):
            if META_FILE in old:
                self._fs.rm(f"{self._path}/{META_FILE}")
            for name in old:
                if _PREPARED.fullmatch(name) and name not in names:
                    self._fs.rm(f"{self._path}/{name}")
        sizes = {name: (self.output / name).stat().st_size for name in names}
        with ReadingProgress(f"upload {self.url}", sum(sizes.values())) as progress:
            for name, size in sizes.items():
                self._put(name)
                progress.advance(size)
        self._put(META_FILE)

    def _put(self, name: str) -> None:
        remote, size = f"{self._path}/{name}", (self.output / name).stat().st_size
        with explained(f"{self.url}/{name}", "written"):
            self._fs.put_file(str(self.output / name), remote)
            self._fs.invalidate_cache()
            there = self._fs.info(remote)["size"]
        if there != size:
            raise ValueError(f"{self.url}/{name} has {there:,} bytes after uploading {size:,}")
