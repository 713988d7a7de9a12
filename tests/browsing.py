"""A real browser for tests: headless Chromium, driven by Playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def contrast(one: str, other: str) -> float:
    """Of two colours as a style names them, after WCAG; 4.5 is what small text needs."""

    def luminance(colour: str) -> float:
        parts = (
            [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            if colour.startswith("#")
            else [int(part) for part in re.findall(r"\d+", colour)[:3]]
        )
        linear = [
            part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
            for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


class Opened:
    """A page that was opened from a file, and all that the browser had to say."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda line: self.said.append(line.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def found(self) -> list[int]:
        """The rows in the list of pairs."""
        rows = self.page.locator("#found button")
        return [int(rows.nth(i).get_attribute("data-row")) for i in range(rows.count())]

    def until(self, text: str) -> None:
        """Wait until the count of what was found says so."""
        self.page.locator("#count", has_text=text).wait_for(timeout=20_000)

    def charts(self) -> int:
        """How many charts the page has; all of them must have been drawn."""
        drawn = self.page.locator(".plotly-graph-div.js-plotly-plot").count()
        assert drawn == self.page.locator(".plotly-graph-div").count()
        return int(drawn)
