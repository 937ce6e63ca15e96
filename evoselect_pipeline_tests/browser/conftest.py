"""A real browser, and a line whose rounds are short."""

import shutil

import pytest

from evoselect_pipeline_tests.integration.process import write_line

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def page():
    """A page of a headless Chromium with a fresh profile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip(f"no browser: found none of {', '.join(NAMES)} on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(QUIET))
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()


@pytest.fixture
def tiny_line(tmp_path, monkeypatch) -> None:
    """A line `tiny` of the user's own beside the playground."""
    write_line(tmp_path / "lines", "tiny")
    monkeypatch.setenv("EVOSELECT_LINES", str(tmp_path / "lines"))
