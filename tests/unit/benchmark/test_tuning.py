"""What the tuners found is written, read back, tabulated and drawn; the tuners themselves are tested elsewhere."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from snippets.benchmark import tuning
from snippets.benchmark.tuning import CURVES, draw_tuning, load_tuning, measure_tuning, tuning_sections
from snippets.optimization.trial import OUT_OF_MEMORY, Outcome, Tuning, choose, is_flat
from tests.unit.benchmark.test_harness import provenance

BY_BATCH = (
    Outcome(1, (10.0, 11.0, 12.0), 400_000_000),
    Outcome(2, (20.0, 21.0, 22.0), 500_000_000),
    Outcome(4, failure=OUT_OF_MEMORY),
)
BY_POOL = (Outcome(1, (20.0, 20.0, 20.0), 500_000_000), Outcome(2, (39.0, 40.0, 41.0), 900_000_000))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the tuners were asked, which answer at once."""
    asked: list[Any] = []

    def found(outcomes: tuple[Outcome, ...], stopped: str) -> Tuning:
        choice = choose(list(outcomes))
        return Tuning(choice, {"batch_size": choice.best}, outcomes, stopped)

    def by_batch(model: str, sizes: Any, **named: Any) -> Tuning:
        asked.append(("batch_size", model, sizes, named["cache"]))
        return found(BY_BATCH, "a candidate failed")

    def by_pool(model: str, batch_size: int, **named: Any) -> Tuning:
        asked.append(("actors", model, batch_size, named["cache"]))
        return found(BY_POOL, "all candidates tried")

    monkeypatch.setattr(tuning, "tune_batch_size", by_batch)
    monkeypatch.setattr(tuning, "tune_pool", by_pool)
    monkeypatch.setattr(ray, "init", lambda **_: asked.append("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append("shutdown"))
    return asked


@pytest.fixture
def results(tmp_path: Path, asked: list[Any]) -> dict[str, Any]:
    """The results of both searches."""
    return measure_tuning("model", (1, 2, 4), tuning.QUICK, provenance(), tmp_path / "tuning.json")


def test_the_pool_is_searched_with_the_batch_size_that_was_found_and_nothing_is_remembered(
    asked: list[Any], results: dict[str, Any]
) -> None:
    assert asked == ["init", ("batch_size", "model", (1, 2, 4), None), ("actors", "model", 2, None), "shutdown"]


def test_the_file_is_read_back_tabulated_and_drawn(tmp_path: Path, results: dict[str, Any]) -> None:
    read = load_tuning(tmp_path / "tuning.json")
    assert read == json.loads(json.dumps(results))
    sections = tuning_sections(read)
    rows = sections["batch_size"].splitlines()[2:]
    assert rows[1:] == ["| 2 | 21.0 (20.0\u201322.0) | 500 |", f"| 4 | {OUT_OF_MEMORY} |  |"]
    assert (sections["batch_size-best"], sections["actors-best"]) == ("2", "2")
    for name, title in CURVES.items():
        assert title in draw_tuning(name, read)
    assert draw_tuning("batch_size", read).count("<rect") == 2


@pytest.mark.parametrize("name", CURVES)
def test_a_search_without_outcomes_is_refused(tmp_path: Path, results: dict[str, Any], name: str) -> None:
    results[name]["outcomes"] = []
    (tmp_path / "tuning.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"has no {name}\.outcomes\.$"):
        load_tuning(tmp_path / "tuning.json")


@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_bad_input_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path))
    monkeypatch.setenv("MODEL", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit, match="2"):
        tuning.main(options)
    said = "--quick needs --output" if options else f"There is no checkpoint folder {tmp_path}/nothing."
    assert said in capsys.readouterr().err


def test_the_published_pools_are_what_the_page_says_of_them() -> None:
    results = load_tuning()
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    one, two = results["actors"]["outcomes"]
    assert (one["candidate"], two["candidate"]) == (1, 2)
    assert 0.9 < statistics.median(one["rates"]) / statistics.median(two["rates"]) < 1
    assert one["peak_bytes"] / two["peak_bytes"] == pytest.approx(0.5, rel=0.05)


def test_the_published_search_came_near_to_an_early_end() -> None:
    tried = [Outcome(**outcome) for outcome in load_tuning()["batch_size"]["outcomes"]]
    *_, eight, sixteen = tried[: [outcome.candidate for outcome in tried].index(16) + 1]
    assert eight.candidate == 8
    assert statistics.median(sixteen.rates) > 1.4 * statistics.median(eight.rates)
    until_eight = [outcome for outcome in tried if outcome.candidate <= 8]
    assert not is_flat(until_eight, 0.05)
    slower = replace(eight, rates=tuple(0.98 * rate for rate in eight.rates))
    assert is_flat([*until_eight[:-1], slower], 0.05)
