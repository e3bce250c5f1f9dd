"""A real headless Chromium that opens a file and fetches nothing; tests skip with the reason where there is none."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)


def missing() -> str:
    """Why there is no browser to test with; empty when there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} missing (Debian: apt-get install chromium chromium-driver)" if absent else ""


@contextmanager
def chromium(width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """A browser with a profile of its own that logs its console and its requests."""
    if why := missing():
        pytest.skip(why)
    from selenium import webdriver

    profile = tempfile.mkdtemp(prefix="cai-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    try:
        with warnings.catch_warnings():
            # selenium leaves the driver's pipes to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            driver = webdriver.Chrome(options=options, service=service)
            driver.set_script_timeout(60)
            try:
                yield driver
            finally:
                driver.quit()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def resize(driver: Any, width: int, height: int = 900) -> None:
    """Show pages at a width that windows may be too wide for."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(driver: Any, scheme: str) -> None:
    """Say that the system is ``light`` or ``dark``, and wants no motion: clicks then hit what stands still."""
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_file(driver: Any, path: Path) -> None:
    """Open a page afresh, with empty logs."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(path.as_uri())


def complaints(driver: Any) -> list[str]:
    """What the console says: errors, violations of the policy, warnings."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requested(driver: Any) -> list[str]:
    """The address of everything that the page asked for since it was opened."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            found.append(message["params"]["url"])
    return found
