"""What a run knows of its ranks without starting any; `test_distributed*.py` start them."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.pretraining import distributed
from electra_fast.pretraining.accumulation import SharedLoader, count_predicted
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError, TrainingConfig
from electra_fast.pretraining.distributed import Ranks, open_ranks
from electra_fast.pretraining.run_folder import settings_of_all_ranks
from electra_fast.pretraining.runtime import deferred_signals

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


@pytest.fixture(autouse=True)
def no_ranks_of_this_test(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_a_process_by_itself_has_no_process_group():
    with open_ranks(TrainingConfig(device="cpu")) as ranks:
        assert not torch.distributed.is_initialized()
        assert (ranks.rank, ranks.world_size, ranks.is_first, ranks.is_grouped) == (0, 1, True, False)
        tensor = torch.ones(3)
        assert ranks.sum([tensor])[0] is tensor
        assert ranks.agree([]) is None
        assert ranks.agree(["SIGTERM"]) == "SIGTERM"
        made = object()  # which JSON could not hold
        assert ranks.from_first(lambda: made) is made
        assert ranks.most(7) == 7
        ranks.check_same({"anything": made})
        ranks.spread([tensor])
        ranks.wait()


@pytest.mark.parametrize(
    ("variables", "parallel", "expected"),
    [
        ({}, "auto", None),
        ({"WORLD_SIZE": "1"}, "fsdp", None),
        (TORCHRUN, "auto", (1, 4, 0)),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, "auto", None),  # torchrun --nproc-per-node 1
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, "fsdp", (0, 1, 0)),
    ],
)
def test_the_place_is_what_torchrun_says(variables, parallel, expected):
    assert distributed._place(variables, TrainingConfig(parallel=parallel)) == expected


def test_a_variable_that_is_missing_or_no_number_is_named():
    without = {name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4, but MASTER_PORT is not set: start the ranks with torchrun"):
        distributed._place(without, TrainingConfig())
    with pytest.raises(ConfigError, match="must be numbers"):
        distributed._place(TORCHRUN | {"RANK": "first"}, TrainingConfig())


def test_ranks_take_the_gpu_of_their_local_rank(monkeypatch):
    assert distributed._device("cpu", 3) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"training\.device is cuda:1, but each rank takes the GPU of its LOCAL_RANK"):
        distributed._device("cuda:1", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert distributed._device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="LOCAL_RANK is 2, but there are 2 GPUs here"):
        distributed._device("cuda", 2)


def test_what_a_library_says_of_a_lost_rank_is_told_without_its_source():
    said = (
        "Got the following error when running the callback: RuntimeError: [/a/gloo/transport/tcp/pair.cc:537] Read "
        "error [127.0.0.1]:1942: Connection reset by peer. This is typically caused by a remote worker hanging"
    )
    assert distributed._is_about_ranks(RuntimeError(said))
    assert distributed._line(RuntimeError(said)) == "Read error [127.0.0.1]:1942: Connection reset by peer"
    assert not distributed._is_about_ranks(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not distributed._is_about_ranks(ValueError("connection"))


@pytest.mark.parametrize("objective", ["joint", "electric"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_share_has_the_counts_of_the_whole(tmp_path, quick_config, corpus, rng_seed, objective, world_size):
    train = Corpus.open(corpus / "train")
    model = build_model(quick_config(tmp_path), train.meta)
    loader = BatchLoader(train, batch_size=11, max_length=24, seed=rng_seed)
    shared = SharedLoader(loader, lambda batch, name: count_predicted(model, batch, name, 5), [objective])
    whole = loader.batch(2)
    shares = [shared.batch(2, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([share.batch.input_ids for share in shares]), whole.input_ids)
    for share in shares:
        assert share.num_tokens == whole.num_tokens
        assert share.predicted == ({} if world_size == 1 else {objective: count_predicted(model, whole, objective, 5)})


def test_a_batch_too_small_for_its_ranks_is_an_error(corpus):
    train = Corpus.open(corpus / "train")
    loader = BatchLoader(train, batch_size=3, max_length=24)
    loader.check_world(3)
    with pytest.raises(ValueError, match="batch_size=3 is less than one sequence for each of 4 ranks"):
        loader.check_world(4)


def test_all_ranks_need_the_same_settings_but_for_places(tmp_path, quick_config):
    here, there = quick_config(tmp_path / "here"), quick_config(tmp_path / "there", **{"data.valid": None})
    assert settings_of_all_ranks(here) == settings_of_all_ranks(there)
    other = quick_config(tmp_path / "here", **{"data.batch_size": 9})
    assert settings_of_all_ranks(other) != settings_of_all_ranks(here)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no POSIX signals")
def test_signals_stay_deferred_until_an_error_is_told():
    before = signal.getsignal(signal.SIGTERM)
    try:
        for keeps in (False, True):
            with pytest.raises(ZeroDivisionError), deferred_signals(until_error_is_told=keeps) as received:
                raise ZeroDivisionError
            assert (signal.getsignal(signal.SIGTERM) is not before) == keeps
        signal.raise_signal(signal.SIGTERM)
        assert received == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"parallel": "dp"}, "training.parallel"), ({"timeout_seconds": 0}, "training.timeout_seconds")],
)
def test_settings_out_of_range(settings, key):
    with pytest.raises(ConfigError, match=key):
        TrainingConfig(**settings)


def test_the_first_rank_is_zero():
    assert Ranks(torch.device("cpu"), rank=0, world_size=2).is_first
    assert not Ranks(torch.device("cpu"), rank=1, world_size=2).is_first
