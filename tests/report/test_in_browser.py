"""The page in a real browser: headless Chromium, without a network."""

import html
import re
import shutil
import subprocess

import pytest

from fedma_flwr.report import read_run, write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt install chromium, or Google Chrome"
)


def browse(tmp_path, *options):
    """Start the browser for one page; return what it says on its two streams."""
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--proxy-server=127.0.0.1:9",  # nothing is there: a page that asks for anything fails
        f"--user-data-dir={tmp_path / 'profile'}",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


def measured(page):
    """The page with a script of the test's own, which writes into it what the browser has made."""
    script = """<script>
const all = [...document.querySelectorAll("body *")];
const wide = all.filter(e => !e.closest(".table") && !e.closest("svg")
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
const shown = [...document.querySelectorAll("svg")].filter(e => !e.closest("details"))
  .map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height]);
const out = document.createElement("pre");
out.id = "measured";
out.textContent = JSON.stringify({wide, shown, page: document.documentElement.scrollWidth,
  width: innerWidth, colours: [getComputedStyle(document.body).backgroundColor,
  getComputedStyle(document.querySelector("svg text")).fill]});
document.body.append(out);
</script></body>"""
    page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    return page.replace("</body>", script)


def read_back(dom):
    import json

    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def page(folder):
    return write_report([folder], folder / "browser.html")


@needs_chromium
def test_the_browser_shows_the_figures_of_the_records(page, folder, tmp_path):
    dom, console = browse(tmp_path, "--dump-dom", page.as_uri())
    assert console == []
    ends = re.search(r'<table id="ends">.*?</table>', dom, re.DOTALL)[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in ends.split("</tr>")[1:-1]]
    for name, row in zip(("fedavg", "fedma"), cells, strict=True):
        run = read_run(folder / name)
        assert row[0] == name
        assert float(row[1]) == pytest.approx(run.curve("accuracy")[-1], abs=6e-4)
        assert int(row[6]) == run.costs("exchanges")[-1]
    assert "alert('you')" in html.unescape(dom)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_fits_and_is_readable(page, tmp_path, dark, width):
    copy = tmp_path / "measured.html"
    copy.write_text(measured(page.read_text(encoding="utf-8")), encoding="utf-8")
    # Chromium's windows are 500 wide at least: a frame of a phone's width stands for one.
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    size = f"--window-size={width},900"
    dom, console = browse(tmp_path, *scheme, size, "--dump-dom", copy.as_uri())
    found = read_back(dom)
    assert console == []
    assert found["wide"] == []
    assert found["page"] <= found["width"]
    assert all(w > 100 and h > 40 for w, h in found["shown"])
    assert len(found["shown"]) >= 12
    paper, ink = (sum(map(int, re.findall(r"\d+", c)[:3])) for c in found["colours"])
    assert (paper < ink) if dark else (paper > ink)


@needs_chromium
def test_a_phone_shows_no_page_wider_than_itself(page, tmp_path):
    copy = tmp_path / "measured.html"
    copy.write_text(measured(page.read_text(encoding="utf-8")), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<iframe src="measured.html" width=390 height=800 style="border:0"></iframe><script>'
        'addEventListener("load", () => { document.body.append(Object.assign('
        'document.createElement("pre"), {id: "measured", textContent: '
        'frames[0].document.getElementById("measured").textContent})); });</script>'
    )
    options = ["--allow-file-access-from-files", "--dump-dom"]
    dom, console = browse(tmp_path, *options, frame.as_uri())
    found = read_back(dom)
    assert console == []
    assert (found["width"], found["wide"]) == (390, [])
    assert found["page"] <= 390


@needs_chromium
def test_a_screenshot_can_be_taken(page, tmp_path):
    picture = tmp_path / "page.png"
    browse(tmp_path, "--window-size=1280,3000", f"--screenshot={picture}", page.as_uri())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
