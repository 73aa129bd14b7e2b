"""1,000 damaged config files and 1,000 damaged corpora, 200 of each kind: a clean error or a right result, in time.

That many in `make test-all`; else 40 of each kind. What fails is kept in a folder that the failure names, with the seed
that makes it again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from electra_fast.cli import users_mistake
from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.pretraining.config import ModelConfig, PretrainConfig, recipe_path
from electra_fast.pretraining.config_file import read_config
from tests.fuzz.mutations import CONFIG_KINDS, FOLDER_KINDS, TEXT_KINDS
from tests.pretraining.faults import Ended, Machine
from tests.small import SETTINGS, TEXT, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
COUNT = 200 if ALL else 40  # of each kind
SECONDS = 60  # for one input; none needs a tenth of a second, and others may want the machine too


class TooSlow(BaseException):
    """Not an Exception, so that nothing that catches those can hide it."""


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raises TooSlow in the block after SECONDS; on Windows, which has no alarm, pytest's limit of the test stands."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _fails(kind: str, number: int, seed: int, damaged: Path, what: object) -> None:
    kept = Path(tempfile.mkdtemp(prefix="electra-fast-fuzz-")) / damaged.name
    shutil.copytree(damaged, kept) if damaged.is_dir() else shutil.copy(damaged, kept)
    pytest.fail(f"{kind} number {number}, seed {seed}, kept as {kept}: {what}")


def _check_message(error: Exception, named: str) -> None:
    message = users_mistake(error)
    if message is None:
        raise error
    assert named in message, f"{named!r} is not named: {message}"
    assert message.count("\n") < 5, message
    assert max(map(len, message.split("\n"))) <= 600, message


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("fuzz"))


def _configs() -> list[str]:
    return [recipe_path("tiny").read_text(), recipe_path("small++").read_text(), PretrainConfig().to_yaml()]


def _expected_config(content: bytes) -> dict[str, Any]:
    """What a config file says, by way of PyYAML alone, over the defaults."""

    def merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        assert set(given) <= set(base), f"unknown keys went through: {set(given) - set(base)}"
        return {
            key: merge(value, given.get(key) or {}) if isinstance(value, dict) else given.get(key, value)
            for key, value in base.items()
        }

    tree: dict[str, Any] = {}
    for key, value in (yaml.safe_load(content.decode()) or {}).items():
        *sections, leaf = key.split(".")  # a dotted key is as good as nested ones
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    defaults = asdict(PretrainConfig())
    sizes = defaults["model"] | {"generator": defaults["model"]["generator"] | {"embedding_size": None}}
    unset = asdict(ModelConfig())
    config = merge(defaults | {"model": unset}, tree)
    if any(config["init"][name] is not None for name in ("run", "discriminator", "generator")):
        return config  # null sizes are found there
    config["model"] = _without_null(config["model"], sizes)
    generator = config["model"]["generator"]
    if generator["embedding_size"] is None:
        generator["embedding_size"] = config["model"]["embedding_size"]
    return config


def _without_null(section: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_null(value, defaults[key])
        if isinstance(value, dict)
        else defaults[key]
        if value is None
        else value
        for key, value in section.items()
    }


def _same(given: Any, read: Any) -> bool:
    if isinstance(given, dict):
        return given.keys() == read.keys() and all(_same(value, read[key]) for key, value in given.items())
    if isinstance(read, float) and isinstance(given, (int, str)) and not isinstance(given, bool):
        return float(given) == read  # 1 and "1e-3", which YAML takes for text, are numbers too
    return given == read and isinstance(given, bool) == isinstance(read, bool)


@pytest.mark.parametrize("kind", CONFIG_KINDS)
def test_damaged_configs(kind: str, rng_seed: int, tmp_path: Path) -> None:
    g = np.random.default_rng(rng_seed)
    bases, path, refused = _configs(), tmp_path / "damaged.yaml", 0
    for number in range(COUNT):
        content = CONFIG_KINDS[kind](g, bases[number % len(bases)])
        path.write_bytes(content)
        try:
            with _time_limit():
                try:
                    config = read_config(path)
                except Exception as error:
                    _check_message(error, "")
                    refused += 1
                else:
                    assert _same(_expected_config(content), asdict(config)), "the config is not what the file says"
        except (Exception, TooSlow) as error:
            _fails(kind, number, rng_seed, path, repr(error))
    print(f"{kind}: {refused} of {COUNT} refused")
    assert refused > 0 or not ALL  # most of some kinds is harmless


@pytest.mark.parametrize("kind", FOLDER_KINDS)
def test_damaged_corpora(kind: str, rng_seed: int, small: Path, tmp_path: Path) -> None:
    g = np.random.default_rng(rng_seed)
    good, refused = _read(small / "corpus"), 0
    for number in range(COUNT):
        folder = tmp_path / str(number) / "corpus"
        shutil.copytree(small / "corpus", folder)
        named = FOLDER_KINDS[kind](g, folder)
        try:
            with _time_limit():
                try:
                    read = _read(folder)
                except Exception as error:
                    _check_message(error, str(folder))
                    refused += 1
                    continue
                assert read == good, f"damage of {named} was not noticed"
        except (Exception, TooSlow) as error:
            _fails(kind, number, rng_seed, folder, repr(error))
        finally:
            shutil.rmtree(folder)
    print(f"{kind}: {refused} of {COUNT} refused")
    assert refused > COUNT // 2 or not ALL


def _read(folder: Path) -> list[Any]:
    """All that a run takes from a corpus: its batches, its tokenizer's vocabulary, and the name of its content."""
    corpus = Corpus.open(folder, verify=True)
    loader = BatchLoader(corpus, batch_size=7, max_length=12, seed=3)
    batches = [loader.batch(step).input_ids.tolist() for step in range(int(loader.steps_per_epoch) + 1)]
    tokenizer = corpus.load_tokenizer()
    return [batches, tokenizer.get_vocab(), tokenizer("Zoë's [MASK] fox").input_ids, corpus.meta]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_damaged_text(kind: str, rng_seed: int, small: Path, tmp_path: Path) -> None:
    g = np.random.default_rng(rng_seed)
    tokenizer, path, refused = load_tokenizer(small / "tokenizer"), tmp_path / "damaged.txt", 0
    for number in range(COUNT):
        content = TEXT_KINDS[kind](g, TEXT[: int(g.integers(100, len(TEXT)))])
        path.write_bytes(content)
        try:
            with _time_limit():
                try:
                    prepare([path], tokenizer, tmp_path / "corpus", progress=False, overwrite=True, shard_tokens=500)
                except Exception as error:
                    _check_message(error, str(path))
                    _check_refusal(content, str(error), tokenizer)
                    refused += 1
                else:
                    corpus = Corpus.open(tmp_path / "corpus", verify=True)
                    tokens = [corpus.document(i).tolist() for i in range(corpus.num_documents)]
                    assert tokens == _expected_tokens(content, tokenizer)
        except (Exception, TooSlow) as error:
            _fails(kind, number, rng_seed, path, repr(error))
    print(f"{kind}: {refused} of {COUNT} refused")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["corpus", "damaged.txt"], ["damaged.txt"])


def _expected_tokens(content: bytes, tokenizer: Any) -> list[list[int]]:
    text = content.decode("utf-8-sig")
    # A blank line has nothing in it but what Python calls space. The last line may lack its end.
    documents = re.split(r"\n(?:\s*\n)+", "\n" + text + "\n\n")
    ids = (tokenizer(d, add_special_tokens=False, split_special_tokens=True).input_ids for d in documents if d.strip())
    return [tokens for tokens in ids if tokens]


def _check_refusal(content: bytes, message: str, tokenizer: Any) -> None:
    valid = content.decode(errors="surrogateescape")
    bad = next((place for place, character in enumerate(valid) if "\udc80" <= character <= "\udcff"), None)
    if bad is not None:
        before = valid[:bad].encode()
        where = f"line {before.count(10) + 1}: byte {content[len(before)]:#04x} at offset {len(before)} is not UTF-8"
        assert where in message
    else:
        assert "no document with a token" in message
        assert _expected_tokens(content, tokenizer) == []


@pytest.mark.timeout(900)
def test_through_the_command(rng_seed: int, small: Path, tmp_path: Path, machine: Machine) -> None:
    """As a user would meet them: two of each kind in `make test-all`, else one each of five kinds drawn anew."""
    g = np.random.default_rng(rng_seed)
    kinds = list((CONFIG_KINDS | TEXT_KINDS | FOLDER_KINDS).items())
    kinds = kinds * 2 if ALL else [kinds[i] for i in g.choice(len(kinds), 5, replace=False)]
    tiny = yaml.safe_dump(_tiny_config(), sort_keys=False)
    commands: dict[Path, list[str]] = {}
    for number, (kind, damage) in enumerate(kinds):
        place = tmp_path / f"{kind} {number}"
        place.mkdir()
        if kind in CONFIG_KINDS:
            (place / "my.yaml").write_bytes(damage(g, tiny))
            command = ["pretrain", "--config", "my.yaml", "--data.train", str(small / "corpus"), "--output", "run"]
            commands[place] = [*command, "--training.steps", "1", "--data.batch_size", "2"]
        elif kind in TEXT_KINDS:
            (place / "my.txt").write_bytes(damage(g, TEXT))
            commands[place] = ["prepare", "my.txt", "--tokenizer", str(small / "tokenizer"), "--output", "corpus"]
        else:
            shutil.copytree(small / "corpus", place / "corpus")
            damage(g, place / "corpus")
            settings = [f"--{key}={value}" for key, value in SETTINGS.items()]
            command = ["pretrain", "--config", "tiny", "--data.train", "corpus", "--output", "run", *settings]
            commands[place] = [*command, "--training.steps", "1"]
    for place, command in commands.items():
        ended = _run(machine, place, command)
        if (
            ended.code not in (0, 2)
            or "Traceback" in ended.err
            or (ended.code == 2) != ended.err.startswith("error: ")
            or ended.err.count("\n") > 5
            or (ended.code == 2 and {path.name for path in place.iterdir()} & {"run"})
        ):
            _fails("command", 0, rng_seed, place, f"{command}: {ended}")


def _tiny_config() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in SETTINGS.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _run(machine: Machine, place: Path, arguments: list[str]) -> Ended:
    return machine.run(arguments, setup=f"import os; os.chdir({str(place)!r})")
