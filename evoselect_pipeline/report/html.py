"""A page as one HTML file that needs nothing else and may come from anywhere."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping

TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --faint: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #17191c; --line: #3a3d42; --faint: #202327; }
}
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
img { display: block; width: min(100%, 46rem); height: auto; background: #fff; border-radius: 6px; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; min-width: 4.5rem; }
/* What holds prompts and reasons: a phone scrolls sideways rather than breaking every word. */
td:nth-child(2):nth-last-child(3), td:nth-child(3):nth-last-child(3), td:nth-child(5) {
  min-width: 12rem; }
th { background: var(--faint); }
code { font-size: 0.85em; overflow-wrap: normal; white-space: nowrap; }
"""
# No script, and nothing from elsewhere, whatever a row should smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def data_uri(name: str, content: bytes) -> str:
    """A figure as an address that carries it."""
    kind = TYPES[name[name.rindex(".") :]]
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def to_html(markdown: str, title: str, figures: Mapping[str, bytes]) -> str:
    """Render a page whose images are named like the figures, which are put into it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for name, content in figures.items():
        # Rows cannot name a figure: a quote in their text is an entity here.
        body = body.replace(f'src="{name}"', f'src="{data_uri(name, content)}"')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )
