"""The figures of a results file as SVG: in the page's own colours, or in fixed ones for the README."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from snippets.benchmark.breakdown import KINDS
from snippets.benchmark.contenders import CONTENDERS
from snippets.benchmark.formats import factor, percent, rate, seconds
from snippets.benchmark.ladder import summarize_ladder
from snippets.benchmark.stepwise import summarize_steps
from snippets.benchmark.summary import Spread
from snippets.benchmark.timeline import KINDS as SPANS
from snippets.benchmark.timeline import RUNS
from snippets.fundamentals.stepwise import STEPS
from snippets.optimization.ladder import RUNGS

WIDTH, MARGIN = 440, 8
INNER = WIDTH - 2 * MARGIN


@dataclass(frozen=True)
class Palette:
    """Colours as SVG takes them."""

    text: str
    paper: str
    line: str
    fill: str
    a: str
    b: str
    c: str
    d: str


# Page variables, with fall-backs for a page that lacks them.
PAGE = Palette(
    "var(--md-default-fg-color, #222)",
    "var(--md-default-bg-color, #fff)",
    "var(--figure-line, #70808c)",
    "var(--figure-fill, #eef3f7)",
    "var(--figure-a, #2b6a97)",
    "var(--figure-b, #c2571a)",
    "var(--figure-c, #7a8b3a)",
    "var(--figure-d, #7b5a94)",
)
# An image knows nothing of the page around it: tones that can be read on white and on near-black.
FIXED = Palette("#767676", "#fff", "#767676", "#ccc", "#3f82b5", "#cf6a30", "#7a8b3a", "#8b6aa4")


def draw_throughput(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return bars of the steady state, each with its lowest and highest round, and the higher bound as a tick."""
    found, bounds = results["summary"]["contenders"], results["summary"]["bound"]
    names = [name for name in found if found[name]["steady_rows_per_second"]]
    limit = {name: highest_bound(bounds[CONTENDERS[name].dtype]) for name in names}
    longest = [found[name]["steady_rows_per_second"]["max"] for name in names]
    scale = INNER / max([*longest, *limit.values(), 1e-9])
    shapes, said = [], []
    for row, name in enumerate(names):
        steady, y = found[name]["steady_rows_per_second"], 4 + 52 * row
        is_pool, title = CONTENDERS[name].is_pool, CONTENDERS[name].title
        speed = f"{rate(steady['median'])} images/s"
        shapes += _bar(y, title, speed, steady, scale, colours.a if is_pool else colours.b, colours)
        said.append(f"{title}: {speed}")
        if is_pool:
            shapes.append(_tick(_at(limit[name] * scale), y + 19, 24, colours))
            said[-1] += f", bound {rate(limit[name])}"
    y = 4 + 52 * len(names) + 12
    shapes += _bars_legend(y, "bound of the hardware", colours)
    return _svg("throughput", "Images per second in steady state", ". ".join(said) + ".", y + 16, shapes)


def draw_steps(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return a bar a step in steady state, with the rate of the step before as a tick, and the gain over it."""
    summary = summarize_steps(results)
    steady = {name: found["steady_rows_per_second"] for name, found in summary.items()}
    scale = INNER / max([1e-9, *(found["max"] for found in steady.values() if found)])
    shapes, said, before = [], [], None
    for row, (name, found) in enumerate(steady.items()):
        y, gain, title = 4 + 52 * row, summary[name]["gain"], STEPS[name].title
        speed = f"{rate(found['median'])} images/s" if found else "not measured"
        if gain:
            speed += f", \u00d7 {factor(gain['median'])}"
        has_lost = gain is not None and gain["median"] < 1
        fill = colours.line if name == "naive" else colours.b if has_lost else colours.a
        shapes += _bar(y, title, speed, found, scale, fill, colours)
        if before:
            shapes.append(_tick(_at(before["median"] * scale), y + 19, 24, colours))
        said.append(f"{title}: {speed}")
        before = found
    y = 4 + 52 * len(steady) + 12
    shapes += _bars_legend(y, "the step before", colours)
    title = "Images per second in steady state, change by change"
    return _svg("stepwise", title, ". ".join(said) + ".", y + 16, shapes)


def draw_ladder(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return a bar a rung in steady state, with the rung's own bound as a tick, and the ratio to naive."""
    summary = summarize_ladder(results)
    steady = {name: found["steady_rows_per_second"] for name, found in summary.items()}
    bounds = {name: found["bound"]["median"] for name, found in summary.items() if found["bound"]}
    scale = INNER / max([1e-9, *bounds.values(), *(found["max"] for found in steady.values() if found)])
    fills = {"float32": colours.a, "bfloat16": colours.d, "int8": colours.c}
    shapes, said = [], []
    for row, (name, found) in enumerate(steady.items()):
        y, rung = 4 + 52 * row, RUNGS[name]
        speed = f"{rate(found['median'])} images/s" if found else "not measured"
        if times := summary[name]["over_naive"]:
            speed += f", \u00d7 {factor(times['median'])}"
        fill = colours.line if name == "naive" else fills[rung.precision]
        shapes += _bar(y, rung.title, speed, found, scale, fill, colours)
        shapes.append(_tick(_at(bounds[name] * scale), y + 19, 24, colours))
        said.append(f"{rung.title}: {speed}, bound {rate(bounds[name])}")
    y = 4 + 52 * len(steady) + 12
    shapes += _bars_legend(y, "bound of its engine", colours)
    title = "Images per second in steady state, rung by rung"
    return _svg("ladder", title, ". ".join(said) + ".", y + 16, shapes)


def highest_bound(bounds: dict[str, dict[str, Any] | None]) -> float:
    """Return the highest of the medians: what the cores allow in the arrangement that suits them best."""
    return float(max(found["median"] for found in bounds.values() if found))


def draw_breakdown(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return one bar of the naive run's time, cut by kind, numbered, with a legend that gives the shares."""
    shares: dict[str, float] = results["summary"]["breakdown"]
    fills = dict(
        zip(
            KINDS,
            (colours.line, colours.d, colours.b, colours.c, colours.a, colours.fill, colours.fill),
            strict=True,
        )
    )
    shapes, said, x = [], [], float(MARGIN)
    for number, (kind, title) in enumerate(KINDS.items(), 1):
        width, y = shares[kind] * INNER, 66 + 24 * (number - 1)
        ink = colours.text if fills[kind] == colours.fill else colours.paper
        edge = f'fill="{fills[kind]}" stroke="{colours.line}" stroke-width="1"'
        middle = f'text-anchor="middle" fill="{ink}"'
        shapes.append(f'<rect x="{x:.1f}" y="8" width="{width:.1f}" height="36" {edge}/>')
        if width >= 14:
            shapes.append(f'<text x="{x + width / 2:.1f}" y="31" font-size="14" {middle}>{number}</text>')
        shapes += [
            f'<rect x="{MARGIN}" y="{y - 1}" width="20" height="18" {edge}/>',
            f'<text x="{MARGIN + 10}" y="{y + 13}" font-size="14" {middle}>{number}</text>',
            _text(MARGIN + 28, y + 13, title, colours),
            _text(WIDTH - MARGIN, y + 13, f"{percent(shares[kind])} %", colours, 'text-anchor="end"'),
        ]
        said.append(f"{title}: {percent(shares[kind])} %")
        x += width
    title = "Where the time of the naive run goes"
    return _svg("breakdown", title, ". ".join(said) + ".", 66 + 24 * len(KINDS), shapes)


def draw_timeline(timeline: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return a lane for each worker of both runs, on one scale of seconds, with a legend."""
    fills = dict(zip(SPANS, (colours.line, colours.d, colours.c, colours.a), strict=True))
    longest = max(run["seconds"] for run in timeline["runs"].values())
    scale = INNER / longest
    shapes, said, y = [], [], 0.0
    for name, run in timeline["runs"].items():
        title = f"{RUNS[name]}: {len(run['lanes'])} workers, {seconds(run['seconds'])} s"
        shapes.append(_text(MARGIN, y + 16, title, colours, 'font-weight="600"'))
        said.append(title)
        y += 24
        for lane in run["lanes"]:
            shapes.append(
                f'<rect x="{MARGIN}" y="{y:g}" width="{run["seconds"] * scale:.1f}" height="16" '
                f'fill="{colours.fill}"/>'
            )
            for kind, fill in fills.items():
                # One path a kind and lane: hundreds of spans would each cost an element.
                boxes = [
                    f"M{_at(span['start'] * scale)} {y:g}h{(span['end'] - span['start']) * scale:.2f}v16H"
                    f"{_at(span['start'] * scale)}z"
                    for span in lane
                    if span["kind"] == kind
                ]
                if boxes:
                    shapes.append(f'<path d="{"".join(boxes)}" fill="{fill}"/>')
            y += 20
        y += 12
    shapes.append(f'<path d="M{MARGIN} {y:g} h{INNER}" stroke="{colours.line}" stroke-width="1"/>')
    step = 5 if longest <= 40 else 20
    for tick in range(0, int(longest) + 1, step):
        shapes.append(f'<path d="M{_at(tick * scale)} {y:g} v5" stroke="{colours.line}" stroke-width="1"/>')
        end = ' text-anchor="end"' if (longest - tick) * scale < 20 else ""
        shapes.append(
            _text(float(_at(tick * scale)), y + 20, f"{tick} s" if tick == 0 else f"{tick}", colours, end.strip())
        )
    y += 36
    for index, (kind, title) in enumerate(SPANS.items()):
        x, row = MARGIN + 212 * (index % 2), y + 24 * (index // 2)
        shapes.append(f'<rect x="{x}" y="{row:g}" width="20" height="16" fill="{fills[kind]}"/>')
        shapes.append(_text(x + 28, row + 13, title, colours))
    title = "What each worker does when"
    return _svg("timeline", title, ". ".join(said) + ".", int(y + 50), shapes)


def as_figure(svg: str) -> str:
    """Return an SVG as a page includes it."""
    return f'<figure class="chart">{svg.rstrip()}</figure>\n'


def _bar(
    y: float, title: str, speed: str, found: Spread | None, scale: float, fill: str, colours: Palette
) -> list[str]:
    """Return a bar of a median with its lowest and highest round, below its title and its speed."""
    shapes = [
        _text(MARGIN, y + 14, title, colours),
        _text(WIDTH - MARGIN, y + 14, speed, colours, 'text-anchor="end" font-weight="600"'),
    ]
    if found:
        low, high = (_at(found[end] * scale) for end in ("min", "max"))
        shapes += [
            f'<rect x="{MARGIN}" y="{y + 21}" width="{found["median"] * scale:.1f}" height="18" fill="{fill}"/>',
            f'<path d="M{low} {y + 30} H{high} M{low} {y + 25} v10 M{high} {y + 25} v10" '
            f'stroke="{colours.text}" stroke-width="1.5" fill="none"/>',
        ]
    return shapes


def _bars_legend(y: float, tick: str, colours: Palette) -> list[str]:
    """Return what the marks on bars mean: the range of the rounds, and a tick."""
    return [
        f'<path d="M{MARGIN} {y} h22 M{MARGIN} {y - 5} v10 M{MARGIN + 22} {y - 5} v10" '
        f'stroke="{colours.text}" stroke-width="1.5" fill="none"/>',
        _text(MARGIN + 30, y + 5, "lowest to highest round", colours),
        _tick("240", y - 9, 18, colours),
        _text(250, y + 5, tick, colours),
    ]


def _svg(name: str, title: str, description: str, height: int, shapes: list[str]) -> str:
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" xmlns="http://www.w3.org/2000/svg" '
        'style="font-family: var(--md-text-font-family, system-ui), sans-serif">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
        *shapes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _at(length: float) -> str:
    return f"{MARGIN + length:.1f}"


def _text(x: float, y: float, words: str, colours: Palette, more: str = "") -> str:
    attributes = f" {more}" if more else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="14" fill="{colours.text}"{attributes}>{escape(words)}</text>'


def _tick(x: str, y: float, height: float, colours: Palette) -> str:
    return f'<path d="M{x} {y} v{height}" stroke="{colours.text}" stroke-width="2.5" stroke-dasharray="4 2"/>'
