"""The speeches: the real ones out of the package (fetched once into the cache)."""

from distill_system.data.speeches import Speeches


def test_the_last_speeches_are_the_test():
    splits = Speeches().read()
    assert sum(map(len, splits.values())) == 249
    assert len(splits["test"]) == 20
    assert splits["test"].ids[-1] == "2026-Trump-1"
    assert splits["train"].ids[0] == "1790-Washington-1"
    assert 3 <= len(splits["validation"]) <= 25
    assert splits["train"].texts[0].startswith("Fellow")


def test_checks_need_no_download(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert Speeches().problems() == []
    assert [p.key for p in Speeches(holdout=240, block_size=1).problems("d")] == ["d.block_size", "d.holdout"]
    assert list(tmp_path.iterdir()) == []
