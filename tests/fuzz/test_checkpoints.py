"""2,000 damaged and forged checkpoints and corpora, 200 of each of ten kinds: a clean error or a right result, in time;
nothing is unpickled, and nothing outside of the folder is opened or changed.

That many, and 20 through the command, in `make test-all` (about 8 minutes of one core); else a few of each.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from electra_fast.cli import main
from electra_fast.pretraining import train
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.finite import NonFiniteLoss
from tests.fuzz.mutations import BAIT, CORPUS_KINDS, RUN_KINDS, newest
from tests.fuzz.test_fuzz import TooSlow, _check_message, _fails, _read, _run, _time_limit
from tests.pretraining.faults import Machine
from tests.small import SETTINGS, folder_bytes, pretrain_arguments, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
RUNS = 200 if ALL else 4  # of each kind
CORPORA = 200 if ALL else 25  # a kind is refused in 63% at least: one of 25 is, but once in 10^10 runs
EVERY = {"training.save_every": 2, "training.keep_checkpoints": 3, "training.log_every": 1, "training.eval_batches": 1}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes among files nor links for everyone")

# What an audit hook saw; one can't be taken out again, so it is put in once and listens only while a test asks.
_heard: list[str] | None = None
_guarded = ""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if event == "pickle.find_class":
        _heard.append(f"unpickled {arguments[0]}.{arguments[1]}")
    elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(_guarded):
            _heard.append(f"opened {path}")


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_listen)


@contextmanager
def _nothing_goes_wrong(bait: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block no pickle is read, and nothing is opened in `bait`; after it, `bait` is as it was."""
    global _heard, _guarded

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is unpickled")

    before = folder_bytes(bait)
    with monkeypatch.context() as patch:
        for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, refuse)
        _heard, _guarded = [], str(bait.resolve())
        try:
            yield
            assert _heard == []
        finally:
            _heard = None
    assert folder_bytes(bait) == before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus`; `whole`, a run of 6 steps; `run`, the same as it was after 4, saved after 2 and 4; and `bait`."""
    folder = write_small(tmp_path_factory.mktemp("fuzz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "plot_curves", _no_picture)
        train.pretrain(_config(folder, folder / "whole"), progress=False)
    shutil.copytree(folder / "whole", folder / "run")
    shutil.copytree(newest(folder / "run"), folder / BAIT / "checkpoint")
    shutil.rmtree(newest(folder / "run"))
    for name in ("discriminator", "generator"):
        shutil.rmtree(folder / "run" / name)
    for name in ("electra_fast.json", "curves.png"):
        (folder / "run" / name).unlink()
    (folder / BAIT / "file").write_text("untouched")
    shutil.copytree(folder / "corpus", folder / BAIT / "corpus")
    return folder


def _no_picture(_: Path, picture: Path) -> None:
    """Drawing takes longer than all the rest."""
    picture.write_bytes(b"a picture")


def _config(folder: Path, output: Path) -> Any:
    corpus = str(folder / "corpus")
    given = {"data.train": corpus, "data.valid": corpus, "output": str(output), "training.steps": 6}
    return read_config("tiny", SETTINGS | EVERY | given)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", RUN_KINDS)
def test_damaged_and_forged_runs(
    kind: str, rng_seed: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "plot_curves", _no_picture)
    monkeypatch.chdir(tmp_path)
    g = np.random.default_rng(rng_seed)
    whole, refused = _weights(made / "whole"), 0
    shutil.copytree(made / BAIT, tmp_path / BAIT)
    for number in range(RUNS):
        run = tmp_path / "run"
        shutil.copytree(made / "run", run)
        named = RUN_KINDS[kind](g, run)
        before, checkpoints = _files(run), _files(run / "checkpoints")
        try:
            with _nothing_goes_wrong(tmp_path / BAIT, monkeypatch), _time_limit(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    train.pretrain(_config(made, run), resume=True, progress=False)
                except NonFiniteLoss as error:  # weights or moments that no one could tell from others: it begins
                    _check_message(error, "step")
                    assert kind == "forged_tensors"
                    assert _files(run / "checkpoints") == checkpoints
                    refused += 1
                except Exception as error:
                    _check_message(error, str(run))
                    assert _files(run) == before, f"damage of {named}: refused, and yet something is overwritten"
                    refused += 1
                else:
                    same = all(torch.equal(tensor, whole[name]) for name, tensor in _weights(run).items())
                    assert same or kind.startswith("forged"), f"damage of {named} was not noticed"
            assert sorted(path.name for path in tmp_path.iterdir()) == [BAIT, "run"]
        except (Exception, TooSlow) as error:
            _fails(kind, number, rng_seed, run, f"{named}: {error!r}")
        finally:
            shutil.rmtree(run)
    print(f"{kind}: {refused} of {RUNS} refused")


def _files(run: Path) -> dict[str, bytes | str]:
    """Every file of a run but its log, which may lose lines; of links, where they lead."""
    return {
        path.relative_to(run).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_symlink() or (path.is_file() and path.name != "metrics.jsonl")
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", CORPUS_KINDS)
def test_forged_corpora(kind: str, rng_seed: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    g = np.random.default_rng(rng_seed)
    shutil.copytree(made / BAIT, tmp_path / BAIT)
    refused = 0
    for number in range(CORPORA):
        folder = tmp_path / "corpus"
        shutil.copytree(made / "corpus", folder)
        named = CORPUS_KINDS[kind](g, folder)
        try:
            with _nothing_goes_wrong(tmp_path / BAIT, monkeypatch), _time_limit():
                try:
                    batches, vocabulary, *_ = _read(folder)
                except Exception as error:
                    _check_message(error, str(folder))
                    refused += 1
                else:
                    assert max(map(max, batches)) < len(vocabulary), f"{named}: an id that is out of range"
            assert sorted(path.name for path in tmp_path.iterdir()) == [BAIT, "corpus"]
        except (Exception, TooSlow) as error:
            _fails(kind, number, rng_seed, folder, f"{named}: {error!r}")
        finally:
            shutil.rmtree(folder)
    print(f"{kind}: {refused} of {CORPORA} refused")
    assert refused > 0


@pytest.mark.timeout(900)
def test_through_the_command(rng_seed: int, made: Path, tmp_path: Path, machine: Machine) -> None:
    """As a user would meet them: two of each kind in `make test-all`, else three drawn anew."""
    g = np.random.default_rng(rng_seed)
    kinds = list((RUN_KINDS | CORPUS_KINDS).items())
    kinds = kinds * 2 if ALL else [kinds[i] for i in g.choice(len(kinds), 3, replace=False)]
    for number, (kind, damage) in enumerate(kinds):
        place = tmp_path / f"{kind} {number}"
        for name in ("run", "corpus", BAIT):
            shutil.copytree(made / name, place / name)
        damage(g, place / ("run" if kind in RUN_KINDS else "corpus"))
        bait = folder_bytes(place / BAIT)
        given = pretrain_arguments("corpus", "run", 6, **EVERY | {"data.valid": str(made / "corpus")})
        ended = _run(machine, place, [*given, "--resume"])
        if (
            ended.code not in (0, 2)
            or "Traceback" in ended.err
            or ended.err.count("\n") > 5
            or (ended.code == 2 and "error: " not in ended.err)
            or folder_bytes(place / BAIT) != bait
            or sorted(path.name for path in place.iterdir()) != [BAIT, "corpus", "run"]
        ):
            _fails(kind, number, rng_seed, place, str(ended))


def test_nothing_is_unpickled_from_text_to_model(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """prepare, pretrain, resume, inspect and from_pretrained of a run."""
    from electra_fast import ElectraForJointPreTraining, ElectraForMaskedLM, ElectraForPreTraining

    corpus, run = tmp_path / "corpus", tmp_path / "run"
    with _nothing_goes_wrong(made / BAIT, monkeypatch):
        prepare = ["prepare", str(made / "text.txt"), "--tokenizer", str(made / "tokenizer"), "--output", str(corpus)]
        assert main(prepare) == 0, capsys.readouterr()
        given = pretrain_arguments(corpus, run, 4, **{"data.valid": corpus} | EVERY)
        assert main(given) == 0, capsys.readouterr()
        shutil.rmtree(run / "checkpoints" / "step-00000004")
        assert main([*given, "--resume"]) == 0, capsys.readouterr()
        assert main(["inspect", str(run), "the lazy dog"]) == 0, capsys.readouterr()
        ElectraForJointPreTraining.from_pretrained(run)
        ElectraForPreTraining.from_pretrained(run / "discriminator")
        ElectraForMaskedLM.from_pretrained(run / "generator")


def test_the_alarm_rings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above notice what they are there for."""
    whole = pickle.dumps(pickle.PickleError)
    load = pickle.loads
    with pytest.raises(AssertionError, match="unpickled"), _nothing_goes_wrong(made / BAIT, monkeypatch):
        load(whole)
    with pytest.raises(AssertionError, match="is unpickled"), _nothing_goes_wrong(made / BAIT, monkeypatch):
        pickle.loads(whole)
    with pytest.raises(AssertionError, match="opened"), _nothing_goes_wrong(made / BAIT, monkeypatch):
        (made / BAIT / "file").read_text()
