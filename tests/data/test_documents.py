from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data.documents import check_inputs, read_documents


def random_paragraphs(g: np.random.Generator) -> list[list[str]]:
    alphabet = list("abc éß漢😀\t\u2028\x0b.")  # U+2028 and VT end no line here, though str.splitlines says so
    return [
        ["x" + "".join(g.choice(alphabet, g.integers(0, 30))) for _ in range(g.integers(1, 4))]
        for _ in range(g.integers(1, 20))
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_text_round_trip(tmp_path: Path, rng_seed: int, newline: str, bom: str) -> None:
    g = np.random.default_rng(rng_seed)
    documents = random_paragraphs(g)
    gaps = [newline * int(n) for n in g.integers(2, 5, len(documents))]
    text = bom + "".join(newline.join(d) + gap for d, gap in zip(documents, gaps, strict=True))
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    read: list[int] = []
    assert list(read_documents(path, progress=read.append)) == ["\n".join(d) for d in documents]
    assert sum(read) == path.stat().st_size


def test_jsonl_round_trip(tmp_path: Path, rng_seed: int) -> None:
    documents = ["\n".join(d) for d in random_paragraphs(np.random.default_rng(rng_seed))]
    lines = [json.dumps({"id": i, "body": d}, ensure_ascii=i % 2 == 0) for i, d in enumerate(documents)]
    lines += ['{"body": " \\n"}', ""]  # without text: left out
    for name, format in (("a.jsonl", "auto"), ("a.NDJSON", "auto"), ("a.txt", "jsonl")):
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        assert list(read_documents(path, format=format, text_field="body")) == documents


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line", [1, 2, 5])
def test_bytes_that_are_not_utf8_are_named_with_line_and_offset(tmp_path: Path, line: int, bom: bytes) -> None:
    good = "é line\n".encode()
    path = tmp_path / "bad.txt"
    path.write_bytes(bom + good * (line - 1) + b"ok \xff\n" + good)
    offset = len(bom) + len(good) * (line - 1) + 3
    with pytest.raises(ValueError, match=rf"bad\.txt, line {line}: byte 0xff at offset {offset} is not UTF-8"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "string field 'text'"),
        ('{"body": "x"}', "string field 'text'"),
        ('["text"]', "string field 'text'"),
        ('{"text": ', "not JSON"),
        (r'{"text": "\ud800"}', "lone surrogate"),
    ],
)
def test_bad_json_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{message}"):
        list(read_documents(path))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be"):
        read_documents(tmp_path / "a.txt", format="csv")
    with pytest.raises(ValueError, match="is a folder"):
        check_inputs([tmp_path])
    with pytest.raises(ValueError, match="not there"):
        check_inputs(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="empty"):
        check_inputs([])
