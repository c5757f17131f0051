"""The curve of a search as a figure: rate and peak memory of each candidate, and what was chosen."""

from __future__ import annotations

from snippets.optimization.trial import Tuning

# isort: split
# --8<-- [start:imports]
import statistics
from xml.sax.saxutils import escape

# --8<-- [end:imports]


# --8<-- [start:draw_curve]
def draw_curve(tuning: Tuning, title: str) -> str:
    """Return an SVG with a bar a candidate: its median rate, lowest and highest repeat, and peak memory.

    The choice is set in bold; of a candidate that failed there is the reason. Colours are those of the page.
    """
    fastest = max(max(each.rates, default=0) for each in tuning.outcomes) or 1
    scale, left, step = 250 / fastest, 60, 34
    shapes, said = [], []
    for row, each in enumerate(tuning.outcomes):
        y = 40 + step * row
        chosen = each.candidate == tuning.choice.best
        text = each.failure
        if each.rates and not text:
            rate, low, high = (of(each.rates) for of in (statistics.median, min, max))
            text = f"{rate:.3g} images/s, {each.peak_bytes / 1e6:.0f} MB"
            shapes += [
                f'<rect x="{left}" y="{y - 12}" width="{rate * scale:.1f}" height="8" '
                'fill="var(--figure-a, #2b6a97)"/>',
                f'<path d="M{left + low * scale:.1f} {y - 8}H{left + high * scale:.1f}" '
                'stroke="var(--figure-b, #c2571a)" stroke-width="2"/>',
            ]
        weight = ' font-weight="bold"' if chosen else ""
        shapes.append(f'<text x="{left - 8}" y="{y - 2}" text-anchor="end"{weight}>{each.candidate}</text>')
        shapes.append(f'<text x="{left}" y="{y + 10}"{weight}>{escape(text)}</text>')
        said.append(f"{each.candidate}: {text}" + (", chosen" if chosen else ""))
    height = 40 + step * len(tuning.outcomes)
    style = 'font-family="sans-serif" font-size="12" fill="var(--md-default-fg-color, #222)"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 {height}" width="400" role="img" {style}>'
        f"<title>{escape(title)}</title><desc>{escape('. '.join(said))}.</desc>"
        f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>{"".join(shapes)}</svg>\n'
    )


# --8<-- [end:draw_curve]
