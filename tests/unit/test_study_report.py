"""Study reports: pages agree with their results; finished parts are kept, so that a stopped run goes on."""

import importlib
import json

import pytest

from latent_clip.studies import report


@pytest.mark.parametrize("name", ["burning", "reno", "safety", "search"])
def test_page_agrees_with_the_stored_results(name):
    """A page that was edited by hand, or results without their page, would differ."""
    study = importlib.import_module(f"latent_clip.studies.{name}.study")
    text = study.report if hasattr(study, "report") else importlib.import_module(f"latent_clip.studies.{name}.report").report
    assert report.measured(study.DOCUMENT) == text(json.loads(study.RESULTS.read_text(encoding="utf-8")))


@pytest.mark.parametrize("value", [{}, [], [1, 2.5], {"a": [{"b": 1}] * 40, "c": list(range(200)), "d": ["ü" * 90] * 3}, "x" * 300])
def test_compact_json_is_the_same_data_in_short_lines(value):
    text = report.compact_json(value)
    assert json.loads(text) == value
    if value != "x" * 300:
        assert max(map(len, text.splitlines())) <= report.COLUMNS + 2


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CACHE", tmp_path)
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return lambda protocol=("one",): report.Kept("study", protocol)


def never():
    raise AssertionError("computed again")


def stop():
    raise KeyboardInterrupt


def test_stopped_run_goes_on(kept):
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
