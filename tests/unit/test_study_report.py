"""Finished parts of a study are kept: a stopped run goes on, and two that run at a time add up."""

import pytest

from latent_clip.studies import report


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CACHE", tmp_path)
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return lambda protocol=("one",): report.Kept("study", protocol)


def never():
    raise AssertionError("computed again")


def stop():
    raise KeyboardInterrupt


def test_a_stopped_run_goes_on(kept):
    first = kept()
    assert first.get("a", lambda: 1) == 1
    with pytest.raises(KeyboardInterrupt):
        first.get("b", stop)
    again = kept()
    assert again.get("a", never) == 1 and again.get("b", lambda: 2) == 2


def test_two_that_run_at_a_time_add_up(kept):
    one, two = kept(), kept()
    one.get("a", lambda: 1)
    two.get("b", lambda: 2)
    one.get("c", lambda: 3)
    third = kept()
    assert [third.get(name, never) for name in "abc"] == [1, 2, 3]
    assert [path.name for path in third.path.parent.iterdir()] == [third.path.name]


def test_another_protocol_knows_nothing(kept):
    kept().get("a", lambda: 1)
    assert kept(("two",)).get("a", lambda: 2) == 2 and kept().get("a", never) == 1
