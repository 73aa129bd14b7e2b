from __future__ import annotations

import bz2
import json
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from electra_fast.data.corpus import Corpus
from electra_fast.data.documents import read_documents
from electra_fast.data.prepare import prepare
from electra_fast.data.readers.base import plain_text
from electra_fast.data.readers.wikipedia import WikipediaDump
from electra_fast.data.readers.wikitext import to_text, to_text_and_links
from tests.small import folder_bytes

ARTICLE = """{{Infobox person
| name = {{lang|de|Anna}} [[no text]]
| image = [[File:Anna.jpg|thumb]]
}}
[[Datei:Anna.jpg|thumb|A ''caption'' with a [[link]] and {{a template}}]]
'''Anna Berg''' (German: {{lang|de|Anna}}; born {{birth date|1970|1|2}}) is a ''writer'' from [[Berlin|the city of \
Berlin]], [[Germany]].<ref name="a">{{cite web|url=http://a.example|title=[[X]]}} No prose.</ref><ref name="a" />
She wrote 3&nbsp;books &amp; [http://a.example some ''plays''], see [http://b.example].<!-- a comment
of two lines -->  It is H<sub>2</sub>O<br />in [[:Datei:Anna.jpg]].

== Life ==
=== Early life ===
{| class="wikitable" style="color: red"
! year !! event
|-
| 1990 || [[School]] {{nested|{{deeper}}}}
|}
:Indented '''''words''''' at [[Hamburg#Port]].

=== Later life ===
* first item
# second [[Item|item]]s
<gallery>
File:A.jpg|no prose
</gallery>
<math>x^2</math> and <nowiki>[[not a link]]</nowiki>.

== References ==
{{reflist}}
<references />

[[Kategorie:Writer]]
[[category:Writer]]
__NOTOC__
{{DEFAULTSORT:Berg}}
"""
TEXT = """Anna Berg (German; born) is a writer from the city of Berlin, Germany.
She wrote 3 books & some plays, see . It is H2O in Datei:Anna.jpg.
Life
Early life
Indented words at Hamburg.
Later life
first item
second items
and [[not a link]]."""


def page(title: str, text: str, ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{ns}</ns>
    <id>1</id>{more}
    <revision>
      <id>2</id>
      <contributor><username>title</username></contributor>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="1" xml:space="preserve">{escape(text)}</text>
    </revision>
  </page>
"""


DUMP = f"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
{page("Anna & Berg", ARTICLE)}
{page("A. Berg", "#REDIRECT [[Anna Berg]]", more='<redirect title="Anna Berg" />')}
{page("Diskussion:Anna", "A talk page.", ns=1)}
{page("Module", "return {}", model="Scribunto")}
{page("Only a template", "{{stub}}")}
{page("", "")}
{page("漢字", "'''漢字'''是[[文字]]。")}
</mediawiki>
"""


def test_articles_of_a_dump(tmp_path: Path, tokenizer) -> None:
    documents = [f"Anna & Berg\n{TEXT}", "漢字\n漢字是文字。"]
    (tmp_path / "pages-articles.xml").write_text(DUMP, encoding="utf-8")
    (tmp_path / "pages-articles.xml.bz2").write_bytes(bz2.compress(DUMP.encode()))
    for name in ("pages-articles.xml", "pages-articles.xml.bz2"):
        told: list[int] = []
        assert list(read_documents(tmp_path / name, progress=told.append)) == documents
        assert sum(told) == (tmp_path / name).stat().st_size
    # Workers convert: the same corpus as from the text itself.
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    made = []
    for name, workers in (("a.txt", 1), ("pages-articles.xml", 1), ("pages-articles.xml.bz2", 2)):
        prepare(tmp_path / name, tokenizer, tmp_path / "corpus", workers=workers, progress=False, overwrite=True)
        made.append(folder_bytes(tmp_path / "corpus"))
    assert made[0] == made[1] == made[2]
    assert Corpus.open(tmp_path / "corpus").num_documents == 2


def test_links_name_entities(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(DUMP, encoding="utf-8")
    page, *_ = WikipediaDump(tmp_path / "a.xml", "text").documents(lambda _: None)
    text, links = page.text_and_links()
    assert text == plain_text(page)
    assert [text[start:end] for start, end in links] == [
        "the city of Berlin",
        "Germany",
        "Datei:Anna.jpg",
        "Hamburg",
        "item",
    ]
    assert page.entities == links
    assert to_text_and_links("") == ("", [])


def test_links_of_a_dump_are_masked_whole(tmp_path: Path, tokenizer) -> None:
    """The same corpus as from JSON lines that name the same spans."""
    (tmp_path / "a.xml").write_text(DUMP, encoding="utf-8")
    pages = WikipediaDump(tmp_path / "a.xml", "text").documents(lambda _: None)
    rows = [dict(zip(("text", "entities"), page.text_and_links(), strict=True)) for page in pages]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["text"]), encoding="utf-8")
    made = []
    for name, units in (("a.xml", ("entity",)), ("a.jsonl", ("entity",)), ("a.xml", ("word",))):
        prepare(tmp_path / name, tokenizer, tmp_path / "corpus", units=units, progress=False, overwrite=True)
        made.append(folder_bytes(tmp_path / "corpus"))
    assert made[0] == made[1]
    assert made[0]["starts-entity.bin"] != made[2]["starts-word.bin"]


def test_a_dump_that_is_no_xml_or_cut_short_is_named(tmp_path: Path) -> None:
    for content, message in (
        (DUMP[:-200], r"pages\.xml is damaged, or no dump of a wiki: no element found"),
        ("<mediawiki><page></mediawiki>", r"pages\.xml is damaged, or no dump of a wiki: mismatched tag: line 1"),
    ):
        (tmp_path / "pages.xml").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            list(read_documents(tmp_path / "pages.xml"))
    (tmp_path / "pages.xml.bz2").write_bytes(bz2.compress(DUMP.encode())[:-10])
    with pytest.raises(ValueError, match=r"pages\.xml\.bz2 is damaged"):
        list(read_documents(tmp_path / "pages.xml.bz2"))


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    import tracemalloc

    pages = page("A", "word " * 10_000) * 200  # 10 MB
    (tmp_path / "a.xml").write_text(f"<mediawiki>{pages}</mediawiki>", encoding="utf-8")
    tracemalloc.start()
    try:
        assert sum(1 for _ in WikipediaDump(tmp_path / "a.xml", "text").documents(lambda _: None)) == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("''a'' '''b''' '''''c'''''", "a b c"),
        ("'''unbalanced {{template|{{x}}}} ''quotes", "unbalanced quotes"),
        ("{{open template without end [[a]]", "{{open template without end a"),
        ("[[a|b]]s [[c]] [[d|]]", "bs c"),
        ("a [[File:x.png|b]] [[Image:y.png]] [[image:z.png]] c", "a c"),
        ("== Empty ==\n== Also ==\n=== Deep ===\ntext", "Also\nDeep\ntext"),
        ("== H ==\n{|\n|a\n|}", ""),
        ("( ; ) a (, b ) c\uff08\uff0c\uff09 (d: ; e, , f)", "a (b) c (d; e, f)"),
        (
            "使用-{zh-hans:计算机; zh-hant:電腦;}-和-{T|zh:甲;zh-hans:乙}-的-{H|丙}-人在-{台}-湾",
            "使用计算机和的人在台湾",
        ),
        ("-{zh-tw:only}- -{a:b}-", "only a:b"),
        ("...\n----\n|", ""),
    ],
)
def test_wikitext(wikitext: str, text: str) -> None:
    assert to_text(wikitext, {"file", "image"}) == text
