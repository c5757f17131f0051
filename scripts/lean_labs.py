"""A hook of MkDocs: a notebook's page without what nothing on it uses, half of what a reader would load.

mkdocs-jupyter brings the whole style sheet of JupyterLab, with its icons, and each cell's code a second time,
hidden, for the button that copies it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import tinycss2
from tinycss2.ast import AtRule, QualifiedRule

STYLE = re.compile(r"(<style[^>]*>)(.*?)(</style>)", re.S)
CLASSES = re.compile(r'\bclass="([^"]*)"')
COPIED = re.compile(
    r'<pre>((?:(?!<pre>).)*?</pre></div>\s*)<div class="clipboard-copy-txt" id="([^"]+)">.*?</div>', re.S
)
CLASS, PARENTHESES = re.compile(r"\.([A-Za-z_][\w-]*)"), re.compile(r"\([^()]*\)")
ICON = re.compile(r"--jp-icon-[\w-]+: *url\([^)]*\);?")


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Return the HTML of a notebook's page made lean, and that of any other as it is."""
    return make_lean(html) if page.file.src_uri.endswith(".ipynb") else html


def make_lean(html: str) -> str:
    """Return HTML whose copy buttons copy the code that is shown, with those rules of its styles that it uses."""
    html = COPIED.sub(r'<pre id="\2">\1', html)
    used = {name for names in CLASSES.findall(html) for name in names.split()}
    return STYLE.sub(lambda style: style[1] + ICON.sub("", "".join(kept_rules(style[2], used))) + style[3], html)


def kept_rules(css: str | Iterable[Any], used: set[str]) -> Iterator[str]:
    """Yield the rules that have a selector without a class that is not used; what browsers skip is left out."""
    for rule in tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True):
        if isinstance(rule, QualifiedRule):
            selectors = tinycss2.serialize(rule.prelude)
            # A class in parentheses may be one that an element must not have.
            listed = [selectors] if "(" in selectors else selectors.split(",")
            kept = [each for each in listed if set(CLASS.findall(PARENTHESES.sub("", each))) <= used]
            if kept:
                yield f"{','.join(kept)}{{{tinycss2.serialize(rule.content)}}}"
        elif isinstance(rule, AtRule) and rule.lower_at_keyword in ("media", "supports"):
            within = "".join(kept_rules(rule.content, used))
            yield f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{within}}}"
        elif rule.type != "error":
            yield tinycss2.serialize([rule])
