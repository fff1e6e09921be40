"""The documentation's site: it builds without a warning, and needs nobody else's host."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload"}
AT_LEAST = 20  # pages


class Page(HTMLParser):
    """What a page names: its own anchors, what it loads, and where it links to."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.loads, self.links = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if values.get(LOADED.get(tag)):
            self.loads.add(values[LOADED[tag]])
        if tag == "link" and LOADED_LINKS & set((values.get("rel") or "").split()):
            self.loads.add(values["href"])
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])


def pages(site):
    """By path: what each page of a site names."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def foreign(site):
    """What pages load from other hosts, style sheets included."""
    loads = [(path.name, url) for path, page in pages(site).items() for url in page.loads]
    found = {(name, url) for name, url in loads if urlsplit(url).netloc}
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8").replace(" ", "").replace('"', "").replace("'", "")
        found |= {(path.name, w) for w in ("url(http", "url(//", "@importhttp") if w in text}
    return found


def dead(site):
    """Links and loads within a site that lead nowhere, anchors included."""
    found = pages(site)
    wrong = set()
    for path, page in found.items():
        if path.name == "404.html":  # its links begin at the host, wherever that is
            continue
        for url in page.loads | page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = found[target].anchors if target in found else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                wrong.add((path.name, url))
    return wrong


def test_the_site_builds_without_a_warning_and_needs_no_other_host(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(pages(tmp_path)) > AT_LEAST
    assert foreign(tmp_path) == set()
    assert dead(tmp_path) == set()
    api = (tmp_path / "strategy.html").read_text(encoding="utf-8")
    assert "server_learning_rate" in api[api.index('id="fedma_flwr.strategy.FedMA"') :]


@pytest.mark.parametrize(
    "line",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://example.org/badge.svg">',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(line, tmp_path):
    (tmp_path / "a.html").write_text(line)
    assert len(foreign(tmp_path)) == 1


def test_fonts_from_elsewhere_are_found(tmp_path):
    (tmp_path / "a.css").write_text('@font-face { src: url("https://fonts.example/a.woff2"); }')
    assert len(foreign(tmp_path)) == 1


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here"></h1><a href="#here">.</a><a href="b.html#there">.</a>'
        '<a href="b.html#gone">.</a><a href="c.html">.</a><a href="https://example.org/">.</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>')
    assert dead(tmp_path) == {("a.html", "b.html#gone"), ("a.html", "c.html")}
