"""The collective words with one rank, and with others pretended: nothing waits, and a failure is everyone's."""

import os

import pytest
import torch

from distill_system import distributed
from distill_system.distributed import RankFailed


def test_alone_every_word_is_the_identity():
    assert (distributed.rank(), distributed.world(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.is_main()
    assert distributed.everyone(3) == [3]
    assert distributed.from_main("x") == "x"
    assert distributed.main_only(lambda: 5) == 5
    assert distributed.main_first(lambda: 6) == 6
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.sum_over_ranks(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    distributed.barrier()
    distributed.stop()


def test_ranks_come_from_the_environment(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.world(), distributed.local_rank()) == (3, 4, 1)
    assert not distributed.is_main()


def test_a_failure_on_rank_0_is_its_own_there(monkeypatch):
    def fails():
        raise OSError(28, "No space left on device")

    for word in (distributed.main_only, distributed.main_first):
        with pytest.raises(OSError, match="No space") as raised:
            word(fails)
        assert raised.value.errno == 28


def test_and_ends_the_others_with_its_story(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "from_main", lambda _: (None, "No space left on device"))
    called = []
    for word in (distributed.main_only, distributed.main_first):
        with pytest.raises(RankFailed, match="rank 0 failed: No space left"):
            word(lambda: called.append(1))
    assert called == []


def test_an_empty_story_is_a_failure_too(monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "from_main", lambda value=None: told.append(value) or value)

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        distributed.main_only(fails)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "from_main", lambda value=None: told[0])
    with pytest.raises(RankFailed):
        distributed.main_only(lambda: None)


def test_other_ranks_take_what_rank_0_has(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(distributed, "from_main", lambda _: ("of rank 0", None))
    assert distributed.main_only(lambda: "mine") == "of rank 0"
    assert distributed.main_first(lambda: "mine") == "mine"  # but each builds its own


def test_one_rank_gets_a_group_and_gives_it_back(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back after the test
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    distributed.start(torch.device("cpu"), threads=threads)
    assert torch.distributed.is_initialized()
    assert torch.distributed.get_world_size() == 1
    assert os.environ["MASTER_PORT"].isdecimal()
    assert distributed.everyone("x") == ["x"]
    distributed.start(torch.device("cpu"))  # twice is once
    distributed.stop()
    assert not torch.distributed.is_initialized()
    distributed.stop()


def test_the_device_is_the_cpu_where_it_is_asked_for_or_nothing_else_is_there(monkeypatch):
    assert distributed.device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.device_of("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert distributed.device_of("auto") == torch.device("cuda", 2)
    assert distributed.device_of("cpu") == torch.device("cpu")


def test_free_ports_are_free():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", distributed.free_port()))
