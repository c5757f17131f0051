"""Take pictures of a real Dashboard after a run of each pipeline: `python -m tests.dashboard_picture` writes them.

Beside them it writes what the run showed, as JSON and as the Markdown that the page includes.
"""

import importlib.metadata
import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page

from tests.page_rendering import ROOT
from tests.ray_cluster import RayCluster
from tests.site.browser import chromium

ASSETS = ROOT / "docs" / "assets"
WIDTH, HEIGHT, SCALE = 1000, 2400, 2  # in CSS pixels, so high that nothing scrolls, and the pixels of one
LIMIT_BYTES = 60_000  # of a picture
POOL = {"limit": 64, "batch_size": 8, "actors": 2}
CLASSIFIER = "MapWorker(MapBatches(Classifier))"
PICTURES = {
    "data": "Ray Data Overview of the job: the optimized dataset with the operators MapBatches(decode) and "
    "MapBatches(Classifier), the naive one with ReadImage and MapBatches(classify_batch), each with its blocks; "
    "the rows of all are 0",
    "core": "Ray Core Overview of the job: its tasks by name, each with a bar and a count of those finished, "
    "and the actors of the pool",
}
CAPTIONS = {
    "data": "Ray Data Overview on the job's page, after both runs.",
    "core": "Ray Core Overview on the same page: the job's tasks by name.",
}


def run_pipelines(images: str, model: str) -> dict[str, dict[str, int]]:
    """Run the naive and the optimized pipeline, and return what Ray says about each, and the loads counted."""
    import ray

    from snippets.fundamentals import naive, watching
    from snippets.fundamentals.actor_pool import classify
    from snippets.fundamentals.dataset import read_images

    tally = watching.start_tally()
    original, naive.classify_batch = naive.classify_batch, watching.tallied(naive.classify_batch, tally)
    naively = naive.classify_naively(read_images(images, 32), model)
    naive.classify_batch = original
    pool = classify(images, model, **POOL)  # type: ignore[arg-type]
    naively.set_name("naive")
    pool.set_name("optimized")
    by_naive = naively.materialize()
    by_pool, looks = watching.watch(pool, watching.count_actors)
    actors = max(look[CLASSIFIER, "ALIVE"] for look in looks)

    def facts(executed: Any, last: str) -> dict[str, int]:
        stats = {row["operator"]: row for row in watching.operator_stats(executed)}
        return {"images": stats[last]["rows"], "operators": len(stats), "tasks of the last": stats[last]["tasks"]}

    return {
        "naive": {
            **facts(by_naive, "MapBatches(classify_batch)"),
            "actors alive at once": 0,
            "loads, counted": ray.get(tally.total.remote()),
        },
        "optimized": {
            **facts(by_pool, "MapBatches(Classifier)"),
            "actors alive at once": actors,
            "loads, counted": watching.count_tasks()[f"{CLASSIFIER}.__init__"],
        },
    }


def open_job(page: Page, url: str, job: str) -> None:
    """Open a job's page and unfold its two datasets and its tasks by name."""
    page.goto(f"{url}/#/jobs/{job}")
    page.get_by_text("Ray Data Overview").click()
    for name in ("naive", "optimized"):
        page.locator("tr").filter(has_text=f"{name}_").locator("svg").first.click()
    page.get_by_text("MapBatches(classify_batch)", exact=True).first.wait_for()
    tasks = section(page, "Ray Core Overview")
    tasks.get_by_test_id("progress-bar-segment").first.locator("xpath=../preceding-sibling::*").click()
    tasks.get_by_text(CLASSIFIER).wait_for()


def section(page: Page, heading: str) -> Locator:
    """Return the part of a job's page below a heading, with it."""
    return page.locator("div", has=page.locator("> div > h4", has_text=heading)).last


def picture(page: Page, left: Locator, right: Locator | None = None) -> bytes:
    """Return what lies over the height of `left`, as far as where `right` begins, as WebP."""
    box = left.bounding_box()
    end = right.bounding_box() if right else None
    assert box and (end or not right)
    clip = {**box, "width": end["x"] - box["x"]} if end else box
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip)))
    encoded = io.BytesIO()
    shot.convert("RGB").save(encoded, "WEBP", quality=70, method=6)
    assert encoded.tell() <= LIMIT_BYTES, f"a picture of {encoded.tell()} bytes"
    return encoded.getvalue()


def figure(name: str, encoded: bytes, source: str) -> str:
    """Return the Markdown of a picture with its caption, for a page in a folder below `docs`."""
    width, height = Image.open(io.BytesIO(encoded)).size
    size = f'width="{width // SCALE}" height="{height // SCALE}" loading="lazy"'
    image = f"![{PICTURES[name]}](../assets/figures/dashboard-{name}.webp){{ {size} }}"
    return f'<figure markdown="span">\n{image}\n<figcaption>{CAPTIONS[name]} {source}</figcaption>\n</figure>'


def table(facts: dict[str, dict[str, int]]) -> str:
    """Return what the runs showed, a row a fact and a column a pipeline."""
    lines = ["| in a run | " + " | ".join(facts) + " |", "| --- |" + " ---: |" * len(facts)]
    for name in next(iter(facts.values())):
        lines.append(f"| {name} | " + " | ".join(str(each[name]) for each in facts.values()) + " |")
    return "\n".join(lines)


def write(assets: Path, pictures: dict[str, bytes], facts: dict[str, dict[str, int]], date: str) -> None:
    """Write the pictures to `figures`; what the runs showed, and the Markdown of both, to `results`."""
    ray_version = importlib.metadata.version("ray")
    source = f"Ray {ray_version}, {date}."
    for name in ("figures", "results"):
        (assets / name).mkdir(exist_ok=True)
    sections = {name: figure(name, encoded, source) for name, encoded in pictures.items()}
    sections |= {"facts": table(facts), "source": f"One run of each, with Ray {ray_version}, on {date}."}
    for name, encoded in pictures.items():
        (assets / "figures" / f"dashboard-{name}.webp").write_bytes(encoded)
    found = {"date": date, "ray": ray_version, "runs": facts}
    (assets / "results" / "dashboard.json").write_text(json.dumps(found) + "\n")
    (assets / "results" / "dashboard.md").write_text(
        "\n\n".join(
            f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->"
            for name, text in sections.items()
        )
        + "\n"
    )


def take(images: str, model: str) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
    """Run both pipelines on a cluster of this machine; return pictures of its Dashboard, and what it showed."""
    with RayCluster(gpus_per_worker=0, dashboard=True) as cluster:
        os.environ.update(cluster.client_environment)
        import ray

        from snippets.fundamentals.setup import configure_data_context
        from snippets.fundamentals.watching import dashboard_url

        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        configure_data_context(progress_bars=False)
        try:
            facts = run_pipelines(images, model)
            with chromium() as browser:
                context = browser.new_context(
                    viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, reduced_motion="reduce"
                )
                page = context.new_page()
                open_job(page, dashboard_url(), ray.get_runtime_context().get_job_id())
                pictures = {
                    "data": picture(
                        page, section(page, "Ray Data Overview"), page.locator("th", has_text="Memory Usage")
                    ),
                    "core": picture(page, section(page, "Ray Core Overview")),
                }
                context.close()
        finally:
            ray.shutdown()
    return pictures, facts


if __name__ == "__main__":
    assets = Path(sys.argv[1]) if sys.argv[1:] else ASSETS
    write(assets, *take(os.environ["IMAGES"], os.environ["MODEL"]), datetime.now(UTC).date().isoformat())
