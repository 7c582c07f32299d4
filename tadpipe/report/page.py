"""The report as one HTML file: style, scripts, charts and data inside, nothing fetched.

Everything that comes from files (names, labels, messages) travels as JSON and reaches the page as
text, never as markup. The content security policy lets the page run only the scripts whose hashes
it states, and connect to nothing; videos may be played from beside the page. The chart library
stands in it as text and is run with the first chart, when the table and the viewer are drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from tadpipe import __version__
from tadpipe.report.chart import Chart

SCRIPTS = ("format.js", "charts.js", "timeline.js", "viewer.js", "page.js")
POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
    "media-src 'self' file: blob:; base-uri 'none'; form-action 'none'"
)


def page_html(
    *,
    title: str,
    systems: Sequence[Mapping[str, Any]],
    tious: Sequence[float],
    about: Sequence[str],
    charts: Sequence[Chart],
    viewer: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        systems: rows of the first table, `System.to_mapping`.
        about: what was scored, in sentences.
        viewer: `viewer_mapping`.
    """
    document = {
        "systems": systems,
        "tious": list(tious),
        "about": list(about),
        "charts": [chart.to_mapping() for chart in charts],
        "viewer": viewer,
    }
    own = "\n".join(asset(name) for name in SCRIPTS)
    parts = {
        "POLICY": POLICY.format(hashes=" ".join(map(_hash, (chart_library(), own)))),
        "TITLE": escape(title),
        "VERSION": escape(__version__),
        "STYLE": asset("page.css"),
        "DATA": embedded_json(document),
        "LIBRARY": chart_library(),
        "SCRIPT": own,
    }
    pieces = re.split(r"<!--([A-Z]+)-->", asset("page.html"))  # text, name, text, name, ...
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embedded_json(document: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: it holds no markup and no line separator."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")


def asset(name: str) -> str:
    """A file of the page, from the package."""
    return files("tadpipe.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and their embedding as one script, which vl-convert ships."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub knows no default
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
