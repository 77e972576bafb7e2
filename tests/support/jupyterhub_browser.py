"""Debian's chromium, driven by selenium, with what a person does in the hub and in JupyterLab."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from support.programs import give_up

ARTEFACTS = Path(__file__).parents[2] / "artefacts/jupyterhub"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
PATIENCE = 240
"""Seconds for a page on a busy machine."""


class Browser:
    """One window; screenshots go to `artefacts/jupyterhub/<name>`, numbered."""

    def __init__(self, driver: webdriver.Chrome, name: str) -> None:
        self.driver = driver
        self._folder = ARTEFACTS / name
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._shots = 0

    def shot(self, name: str) -> None:
        """Keep what is shown now."""
        self._shots += 1
        self.driver.save_screenshot(str(self._folder / f"{self._shots:02}-{name}.png"))

    def until(self, look: Callable[[webdriver.Chrome], Any], what: str) -> Any:
        """Wait for a truthy result; on time-out there is a screenshot of what was there instead."""
        try:
            return WebDriverWait(self.driver, PATIENCE, 0.3, [StaleElementReferenceException]).until(look, what)
        except WebDriverException:
            self.shot(f"not-{what.replace(' ', '-')}"[:80])
            raise

    def find(self, css: str) -> WebElement:
        """The first element that is shown."""

        def shown(driver: webdriver.Chrome) -> WebElement | None:
            return next((one for one in driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()), None)

        found: WebElement = self.until(shown, css)
        return found

    def click(self, css: str) -> None:
        """Click it."""

        def clicked(_: webdriver.Chrome) -> bool:
            with contextlib.suppress(WebDriverException):
                self.find(css).click()
                return True
            return False

        self.until(clicked, f"click {css}")

    def text(self, css: str, wanted: str) -> str:
        """Wait for a text in an element; returns all of the element's."""

        def there(driver: webdriver.Chrome) -> str | None:
            texts = (one.text for one in driver.find_elements(By.CSS_SELECTOR, css))
            return next((text for text in texts if wanted in text), None)

        found: str = self.until(there, f"{wanted} in {css}")
        return found

    def log_in(self, url: str, user: str, password: str) -> None:
        """Through the issuer's page."""
        self.driver.get(url)
        self.click("a.btn[href*='oauth_login']")
        self.find("#username").send_keys(user)
        self.find("#password").send_keys(password)
        self.shot("issuer")
        self.click("button[value='allow']")

    def run_cell(self, source: str, number: int, wanted: str) -> str:
        """Type into the notebook's last cell, run it, wait for its output."""
        editor = self.driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell .cm-content")[-1]
        ActionChains(self.driver).click(editor).send_keys(source).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
            Keys.SHIFT
        ).perform()
        self.text(".jp-InputPrompt", f"[{number}]:")
        return self.text(".jp-OutputArea-output", wanted)


@contextlib.contextmanager
def open_browser(name: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; skipped by name where chromium is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        give_up("the browser run needs chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver, env={**os.environ, "HOME": str(profile)})
    chrome = webdriver.Chrome(options=options, service=service)
    chrome.set_page_load_timeout(PATIENCE)
    try:
        yield Browser(chrome, name)
    finally:
        chrome.quit()
