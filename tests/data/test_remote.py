"""Inputs, corpora and outputs behind URLs: in memory, on this disk, and from a web server on this machine."""

from __future__ import annotations

import gzip
import http.server
import importlib.util
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.registry import known_implementations

from electra_fast.cli import main
from electra_fast.data.checksum import sealed
from electra_fast.data.corpus import Corpus
from electra_fast.data.documents import open_inputs, read_documents
from electra_fast.data.prepare import prepare
from electra_fast.data.remote import RemoteFile, is_url
from electra_fast.data.tokenizer import train_wordpiece
from tests import small
from tests.data.texts import random_documents, write_text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELECTRA_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """The file system of memory://, which a process has one of, empty."""
    store, folders = dict(MemoryFileSystem.store), list(MemoryFileSystem.pseudo_dirs)
    MemoryFileSystem.store.clear()
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.store.update(store)
    MemoryFileSystem.pseudo_dirs[:] = folders


@pytest.fixture
def corpus(tmp_path: Path, tokenizer, rng_seed: int) -> Path:
    """A corpus of three shards with words."""
    source = write_text(tmp_path / "corpus.txt", random_documents(np.random.default_rng(rng_seed), 40))
    prepare(source, tokenizer, tmp_path / "corpus", shard_tokens=400, units=["word"], progress=False)
    return tmp_path / "corpus"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _Streaming(_Quiet):
    """As of a page that is made while it is sent: nobody knows how long it will be."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length":
            super().send_header(keyword, value)


@pytest.fixture
def web(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server, of a port that the system chose."""
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("fsspec's http:// needs aiohttp")
    (tmp_path / "web").mkdir()
    handler = partial(getattr(request, "param", _Quiet), directory=tmp_path / "web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "web"
    server.shutdown()
    server.server_close()
    thread.join(10)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in small.folder_bytes(folder).items() if content is not None}


def memory_bytes(memory: MemoryFileSystem, url: str) -> dict[str, bytes]:
    root = url.removeprefix("memory:/") + "/"
    return {name.removeprefix(root): memory.cat_file(name) for name in memory.find(root)}


def upload(memory: MemoryFileSystem, folder: Path, path: str) -> None:
    for name, content in folder_bytes(folder).items():
        memory.pipe_file(f"{path}/{name}", content)


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://b/a", "file:///a", "hf://datasets/a/b/c", "simplecache::s3://b/a")))
    assert not any(map(is_url, ("a/b", "C://b", "C:\\b", "/a://b", "", "notes::old", Path("s3://b"), "a b://c")))


def test_the_same_bytes_from_every_place(
    tmp_path: Path, tokenizer, rng_seed: int, memory: MemoryFileSystem, web: tuple[str, Path]
) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 90)
    parts = [documents[:30], documents[30:60], documents[60:]]
    texts = [write_text(tmp_path / "part.txt", part).read_bytes() for part in parts]
    lines = [json.dumps({"text": document}).encode() + b"\n" for document in parts[2]]
    pyarrow.parquet.write_table(pyarrow.table({"text": parts[1]}), tmp_path / "part.parquet", row_group_size=7)
    contents = {
        "1.txt.gz": gzip.compress(texts[0]),
        "2.txt": texts[1],
        "3.jsonl.zst": zstandard.compress(b"".join(lines)),
    }
    for name, content in contents.items():
        memory.pipe_file(f"/texts/deep/{name}", content)
        (web[1] / name).write_bytes(content)
    memory.pipe_file("/texts/b.parquet", (tmp_path / "part.parquet").read_bytes())
    (web[1] / "b.parquet").write_bytes((tmp_path / "part.parquet").read_bytes())
    everywhere = [
        "memory://texts/deep/*",
        "memory://texts/**/[123].*",
        [f"memory://texts/deep/{name}" for name in contents],
        ["memory://texts/deep/1.txt.gz", "memory://texts/b.parquet", "memory://texts/deep/3.jsonl.zst"],
        f"file://{web[1]}/[1-3]*",
        [f"file://{web[1]}/1.txt.gz", *(web[1] / name for name in ("2.txt", "3.jsonl.zst"))],
        [f"{web[0]}/{name}" for name in contents],
        [f"{web[0]}/1.txt.gz?download=1", f"{web[0]}/[23].*"],
        [f"{web[0]}/{name}" for name in ("1.txt.gz", "b.parquet", "3.jsonl.zst")],
    ]
    prepare([web[1] / name for name in contents], tokenizer, tmp_path / "expected", progress=False)
    expected = folder_bytes(tmp_path / "expected")
    for number, inputs in enumerate(everywhere):
        prepare(inputs, tokenizer, tmp_path / str(number), progress=False)
        assert folder_bytes(tmp_path / str(number)) == expected, inputs
    told: list[int] = []
    assert list(read_documents("memory://texts/deep/1.txt.gz", progress=told.append)) == documents[:30]
    assert sum(told) == len(contents["1.txt.gz"]) == open_inputs("memory://texts/deep/1.txt.gz")[0].size

    here = train_wordpiece([web[1] / "1.txt.gz", web[1] / "2.txt"], None, vocab_size=200)
    assert train_wordpiece(["memory://texts/deep/[12]*"], None, vocab_size=200).get_vocab() == here.get_vocab()


@pytest.mark.parametrize("web", [_Streaming], indirect=True)
def test_files_that_a_server_only_streams(web: tuple[str, Path]) -> None:
    write_text(web[1] / "a.txt", ["a text", "b"])
    assert list(read_documents(f"{web[0]}/a.txt")) == ["a text", "b"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a text"] * 10}), web[1] / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet can't be read at any place, as its format asks for"):
        open_inputs(f"{web[0]}/a.parquet")


def test_inputs_that_are_not_there(
    tmp_path: Path, memory: MemoryFileSystem, web: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/texts/a.txt", b"words")
    missing = {"class": "no_such_library.FileSystem", "err": "Install no_such_library to access it"}
    monkeypatch.setitem(known_implementations, "shelf", missing)
    for url, message in (
        ("memory://texts/b.txt", r"memory://texts/b\.txt is not there"),
        (f"file://{tmp_path}/b.txt", r"b\.txt is not there"),
        (f"{web[0]}/b.txt", r"b\.txt is not there"),
        ("memory://texts/*.jsonl", "no file has such a name"),
        (f"{web[0]}/*.jsonl", "no file has such a name"),
        ("memory://texts", r"is a folder: name the files in it, e\.g\. memory://texts/\*\.parquet"),
        ("shelf://a", "shelf://a can't be opened: Install no_such_library to access it"),
        ("nonsense://a", "nonsense://a can't be opened: Protocol not known: nonsense"),
    ):
        with pytest.raises(ValueError, match=message):
            read_documents(url)


def test_reading_that_breaks_off_names_the_file(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.txt", b"words and words\n\n" * 100_000)
    read, reads = MemoryFile.read, iter(range(100))

    def failing(self: MemoryFile, *arguments: int) -> bytes:
        if next(reads) == 3:
            raise RuntimeError("the line is dead")
        return read(self, *arguments)

    documents = read_documents("memory://a.txt", format="text")
    monkeypatch.setattr(MemoryFile, "read", failing)
    with pytest.raises(ValueError, match=r"memory:/+a\.txt can't be read to its end: the line is dead"):
        list(documents)


def test_a_corpus_is_copied_once(
    corpus: Path, cache: Path, memory: MemoryFileSystem, web: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(memory, corpus, "/corpora/a")
    upload_to = web[1] / "a"
    corpus_bytes = folder_bytes(corpus)
    for name, content in corpus_bytes.items():
        (upload_to / name).parent.mkdir(parents=True, exist_ok=True)
        (upload_to / name).write_bytes(content)
    assert Corpus.open(f"file://{corpus}", verify=True).folder == corpus  # is here already

    copied: list[str] = []
    opening = RemoteFile.open
    monkeypatch.setattr(RemoteFile, "open", lambda self, *a: (copied.append(str(self)), opening(self, *a))[1])
    threads = [threading.Thread(target=Corpus.open, args=["memory://corpora/a"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    copy = Corpus.open("memory://corpora/a/", verify=True)
    assert len(copied) == len(corpus_bytes) - 1  # all but meta.json
    assert folder_bytes(copy.folder) == corpus_bytes
    assert copy.folder.is_relative_to(cache)
    assert Corpus.open(f"{web[0]}/a").folder == copy.folder  # the same corpus elsewhere
    assert len(copied) == len(corpus_bytes) - 1

    (copy.folder / "tokens-00000.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged: .* or delete .*, a copy of memory://corpora/a"):
        Corpus.open("memory://corpora/a")


def test_a_corpus_that_changed_is_another_copy(
    corpus: Path, tmp_path: Path, tokenizer, memory: MemoryFileSystem
) -> None:
    upload(memory, corpus, "/a")
    first = Corpus.open("memory://a").folder
    prepare(write_text(tmp_path / "b.txt", ["ba de ki"]), tokenizer, "memory://a", progress=False, overwrite=True)
    assert Corpus.open("memory://a", verify=True).num_documents == 1
    assert Corpus.open("memory://a").folder != first
    assert folder_bytes(first) == folder_bytes(corpus)


def test_a_damaged_upload_is_never_taken(corpus: Path, cache: Path, rng_seed: int, memory: MemoryFileSystem) -> None:
    g = np.random.default_rng(rng_seed)
    files = folder_bytes(corpus)
    for name, content in files.items():
        place = int(g.integers(len(content)))
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        damaged = {"flipped": flipped, "cut": content[:-3], "longer": content + b"\1", "empty": b"", "gone": None}
        if name.startswith("tokenizer"):  # without a checksum of the file: compared is what it makes of text, and ids
            damaged = {"gone": None}
        for changed in damaged.values():
            shutil.rmtree(cache, ignore_errors=True)  # what an earlier download left whole would not be asked for again
            upload(memory, corpus, "/a")
            if changed is None:
                memory.rm_file(f"/a/{name}")
            else:
                memory.pipe_file(f"/a/{name}", changed)
            with pytest.raises(ValueError, match=rf"memory://a/{name}"):
                Corpus.open("memory://a")
    upload(memory, corpus, "/a")
    other = json.loads(files["tokenizer/tokenizer.json"])
    other["model"]["vocab"]["[UNK]"], other["model"]["vocab"]["ba"] = 77, 1
    memory.pipe_file("/a/tokenizer/tokenizer.json", json.dumps(other).encode())
    with pytest.raises(ValueError, match="is not the tokenizer that"):
        Corpus.open("memory://a")
    assert [path for path in (cache / "corpora").iterdir() if path.is_dir() and not path.name.startswith(".")] == []
    upload(memory, corpus, "/a")
    assert folder_bytes(Corpus.open("memory://a", verify=True).folder) == files


def test_a_download_that_broke_off_goes_on(
    corpus: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(memory, corpus, "/a")
    memory.rm_file("/a/tokens-00002.bin")
    with pytest.raises(ValueError, match=r"memory://a/tokens-00002\.bin is not there"):
        Corpus.open("memory://a")
    upload(memory, corpus, "/a")
    copied: list[str] = []
    opening = RemoteFile.open
    monkeypatch.setattr(RemoteFile, "open", lambda self, *a: (copied.append(self.name), opening(self, *a))[1])
    assert folder_bytes(Corpus.open("memory://a", verify=True).folder) == folder_bytes(corpus)
    assert copied[0] == "tokens-00002.bin"


@pytest.mark.parametrize(
    "name", ["../evil.bin", "..", "/tmp/evil.bin", "a/b", "..\\evil", "C:\\evil", ".meta", "", "a\0", "a" * 256]
)
def test_no_name_leads_out_of_the_copy(corpus: Path, cache: Path, memory: MemoryFileSystem, name: str) -> None:
    meta = json.loads((corpus / "meta.json").read_text())
    del meta["sha256"]
    for key, number in (("shards", 0), ("units", 0), ("tokenizer", None)):
        changed = json.loads(json.dumps(meta))
        if number is None:
            changed[key] = name
        else:
            changed[key][number]["file"] = name
        upload(memory, corpus, "/deep/a")
        memory.pipe_file("/deep/a/meta.json", json.dumps(sealed(changed)).encode())
        memory.pipe_file("/deep/evil.bin", b"evil")
        with pytest.raises(ValueError, match=r"memory://deep/a/meta\.json is damaged: (file|tokenizer) is "):
            Corpus.open("memory://deep/a")
    assert not cache.exists() or list(cache.rglob("*")) == []


def test_what_is_no_corpus(memory: MemoryFileSystem) -> None:
    for content, message in (
        (None, "is not there"),
        (b"{", "is damaged"),
        (b"{}", "does not describe a prepared corpus"),
    ):
        if content is not None:
            memory.pipe_file("/a/meta.json", content)
        with pytest.raises(ValueError, match=rf"memory://a/meta\.json {message}"):
            Corpus.open("memory://a")


def test_prepare_uploads_with_meta_json_last(
    tmp_path: Path, tokenizer, cache: Path, rng_seed: int, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = np.random.default_rng(rng_seed)
    source = write_text(tmp_path / "a.txt", random_documents(g, 30))
    put, names = MemoryFileSystem.put_file, []

    def recording(self: MemoryFileSystem, here: str, there: str, **options: object) -> None:
        names.append(there.rpartition("/a/")[2])
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", recording)
    make = partial(prepare, source, tokenizer, progress=False, shard_tokens=300)
    make(tmp_path / "here")
    expected = folder_bytes(tmp_path / "here")
    make(f"file://{tmp_path}/by_url")
    assert folder_bytes(tmp_path / "by_url") == expected
    make("memory://corpora/a")
    assert memory_bytes(memory, "memory://corpora/a") == expected
    assert sorted(names) == sorted(expected)
    assert names[-1] == "meta.json"
    assert list((cache / "uploads").iterdir()) == []

    with pytest.raises(ValueError, match="output memory://corpora/a exists; choose another or overwrite"):
        make("memory://corpora/a")
    small = write_text(tmp_path / "small.txt", ["ba de"])
    prepare(small, tokenizer, tmp_path / "small", progress=False)
    prepare(small, tokenizer, "memory://corpora/a/", progress=False, overwrite=True)  # with fewer shards
    assert memory_bytes(memory, "memory://corpora/a") == folder_bytes(tmp_path / "small")
    memory.pipe_file("/home/letter.txt", b"dear")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"output memory://home holds other files, 'letter\.txt' among them"):
            prepare(small, tokenizer, "memory://home", progress=False, overwrite=overwrite)
    memory.pipe_file("/home/meta.json", b"{}")
    with pytest.raises(ValueError, match="does not describe a prepared corpus"):
        prepare(small, tokenizer, "memory://home", progress=False, overwrite=True)
    assert memory.cat_file("/home/letter.txt") == b"dear"


def _breaking_at(failing: int) -> Callable[..., None]:
    """`put_file` that breaks off in its call number `failing`, of a storage that keeps what came until then."""
    put, calls = MemoryFileSystem.put_file, itertools.count()

    def breaking(self: MemoryFileSystem, here: str, there: str, **options: object) -> None:
        if next(calls) == failing:
            self.pipe_file(there, Path(here).read_bytes()[: Path(here).stat().st_size // 2])
            raise RuntimeError("the line is dead")
        put(self, here, there, **options)

    return breaking


def test_an_upload_that_breaks_off_never_looks_whole(
    tmp_path: Path, tokenizer, cache: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_text(tmp_path / "a.txt", ["ba de ki lo", "mu na"])
    prepare(source, tokenizer, tmp_path / "expected", progress=False)
    expected = folder_bytes(tmp_path / "expected")
    put = MemoryFileSystem.put_file
    for failing in range(len(expected)):
        for overwrite in (False, True):  # to a new place, and over a corpus
            if overwrite:
                monkeypatch.setattr(MemoryFileSystem, "put_file", put)
                prepare(source, tokenizer, "memory://a", progress=False)
            monkeypatch.setattr(MemoryFileSystem, "put_file", _breaking_at(failing))
            with pytest.raises(
                ValueError, match=r"written: the line is dead; the whole corpus lies in .*uploads"
            ) as error:
                prepare(source, tokenizer, "memory://a", progress=False, overwrite=overwrite)
            assert str(cache) in str(error.value)
            (kept,) = (cache / "uploads").iterdir()
            assert folder_bytes(kept) == expected
            with pytest.raises(ValueError, match=r"meta\.json is (not there|damaged)"):
                Corpus.open("memory://a")
            memory.rm("/a", recursive=True)
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    upload(memory, tmp_path / "expected", "/a")
    memory.rm_file("/a/meta.json")  # half an upload: no need to overwrite
    prepare(source, tokenizer, "memory://a", progress=False)
    assert memory_bytes(memory, "memory://a") == expected
    assert list((cache / "uploads").iterdir()) == []


def test_commands_with_urls(
    tmp_path: Path, corpus: Path, memory: MemoryFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(memory, corpus, "/a")
    assert main(["data", "stats", "memory://a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 40
    tokenizer = str(corpus / "tokenizer")
    memory.pipe_file("/texts/1.txt", (tmp_path / "corpus.txt").read_bytes())
    assert main(["prepare", "memory://texts/*.txt", "--tokenizer", tokenizer, "--output", "memory://b"]) == 0
    assert "data stats memory://b" in capsys.readouterr().out
    assert memory.isfile("/b/meta.json")
    for arguments, message in (
        (["tokenizer", "memory://texts/*.txt", "--output", "memory://tok"], "--output memory://tok is a URL"),
        (["demo", "--output", "s3://demo"], "--output s3://demo is a URL"),
        (["pretrain", "--config", "tiny", "--output", "s3://run"], "output must be a folder on this machine"),
        (["prepare", "memory://texts/1.txt", "--tokenizer", "s3://t", "--output", "x"], "tokenizer s3://t is a URL"),
        (["prepare", "memory://no.txt", "--tokenizer", tokenizer, "--output", "x"], "memory://no.txt is not there"),
        (["data", "stats", "memory://no"], "memory://no/meta.json is not there"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error, arguments
        assert error.count("\n") <= 3
