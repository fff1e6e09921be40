"""The page: text that is harmless, tables, sections, and the style of it all."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_LONGEST = 300
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --soft: #5b6675;
  --lines: #d5dae1; --card: #f5f7fa; --s0: #0072b2; --s1: #d55e00; --s2: #008a64; --s3: #b8558f;
  --s4: #2b95cf; --s5: #b97800; --s6: #7b3294; --s7: #666666; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181e; --ink: #e4e9f0; --soft: #9aa6b5;
  --lines: #39424e; --card: #1d232b; --s0: #4da8ee; --s1: #ff8b52; --s2: #3fd3a0; --s3: #f096cb;
  --s4: #8ed3ff; --s5: #f5bd4a; --s6: #c79bff; --s7: #b5b5b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.4rem; border-bottom: 1px solid var(--lines); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.3rem; }
p { margin: 0.3rem 0 0.7rem; max-width: 46rem; } .soft { color: var(--soft); }
svg { display: block; width: 100%; height: auto; } svg image { image-rendering: pixelated; }
.panels { display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.four { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-size: 0.88rem; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 0.7rem; margin: 0.7rem 0; }
.tile { background: var(--card); border: 1px solid var(--lines); border-radius: 0.5rem;
  padding: 0.45rem 0.9rem; } .tile b { display: block; font-size: 1.25rem; }
.tile span { font-size: 0.85rem; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; margin: 0.5rem 0;
  list-style: none; } .legend i { display: inline-block; width: 1.1rem; height: 0.3rem;
  vertical-align: middle; margin-right: 0.4rem; border-radius: 2px; }
.table { overflow-x: auto; margin: 0.5rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.88rem; } td, th { text-align: left;
  padding: 0.25rem 0.7rem 0.25rem 0; border-bottom: 1px solid var(--lines); vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
td { max-width: 34rem; overflow-wrap: break-word; } td.long { min-width: 14rem; }
details { margin: 0.6rem 0; } summary { cursor: pointer; font-weight: 600; }
nav a { margin-right: 1rem; } a { color: var(--s0); } footer { margin-top: 3rem; }
"""


def text(value: object, longest: int = _LONGEST) -> str:
    """Any text as HTML that says it and does nothing; what cannot be printed is replaced."""
    printable = plain(value, longest)
    return html.escape(printable, quote=True)


def plain(value: object, longest: int = _LONGEST) -> str:
    """Any text without what cannot be printed, and not too long: for labels of a drawing."""
    words = str(value)
    cut = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = True, name: str = ""
) -> str:
    """A table; all columns but the first are numbers, or none is.

    Parameters
    ----------
    head : sequence of str
        Of the columns.
    rows : iterable of sequence
        Values are escaped here.
    numbers : bool (default: True)
        Whether columns are set as numbers.
    name : str
        Its id in the page.
    """

    def cells(tag: str, values: Sequence[object]) -> str:
        kinds = [" class=number" if numbers and place else "" for place in range(len(values))]
        if not numbers:
            kinds[-1] = " class=long"
        pairs = zip(kinds, values, strict=True)
        return "".join(f"<{tag}{kind}>{text(value)}</{tag}>" for kind, value in pairs)

    own = f' id="{text(name)}"' if name else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    top = f"<thead><tr>{cells('th', head)}</tr></thead>"
    return f"<div class=table><table{own}>{top}<tbody>{body}</tbody></table></div>"


def panel(svg: str, caption: str) -> str:
    """A drawing with what is to be seen in it; the caption is HTML."""
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def panels(made: Iterable[str], kind: str = "") -> str:
    """Drawings beside one another, as many as the screen is wide; ``"four"``: narrower ones."""
    inner = "\n".join(made)
    return f'<div class="panels {kind}">{inner}</div>' if inner else ""


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large figures, each with what it is."""
    inner = "".join(
        f"<div class=tile><b>{text(value)}</b><span>{text(label)}</span></div>"
        for label, value in values
    )
    return f"<div class=tiles>{inner}</div>"


def whole(title: str, body: str) -> str:
    """The page; its policy lets it load and run nothing."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
