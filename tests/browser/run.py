"""Try `fastdiff demo` in a browser: Debian's chromium, driven by Playwright. Run by ``make browser``.

It starts the command in a folder with a run of a VAE, opens the page, clicks, moves sliders, checks that the pictures
are those of the copied call, and that no request leaves this machine. With ``--out FOLDER`` it writes screenshots.
Where there is no chromium or no Playwright it says so and is skipped.
"""

import argparse
import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300_000  # milliseconds: CI's machine may be busy
BROKEN = "broken"
DRAWN = re.compile(r"\d+ images?.* s$")


def main() -> int:
    """Run the checks that the arguments name, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of screenshots")
    parser.add_argument("--runs", type=Path, help="folder with a run to take instead of an untrained VAE")
    parser.add_argument("--only", default="", help="run the checks alone whose names hold this text")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("browser: skipped, since there is no chromium (apt-get install chromium)\n0 passed, 0 failed, 1 skipped")
        return 0
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("browser: skipped, since there is no playwright (pip install playwright)\n0 passed, 0 failed, 1 skipped")
        return 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        prepare(Path(folder), options.runs)
        server = Server(Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            passed = run_checks(browser, server, Path(folder), options.out, options.only)
        finally:
            ended = server.end()  # while the page is open
            browser.close()
    passed.append(check("Ctrl-C ends the command silently, with a page open", lambda: ended == (0, ""), ended))
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return int(not all(passed))


def prepare(folder: Path, runs: Path | None) -> None:
    """Put a run of a VAE, and a damaged one, into ``runs/`` of the folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import small_vae

    if runs is not None:
        shutil.copytree(runs, folder / "runs")
    else:
        small_vae(depth=1).save(folder / "runs" / "shallow", {"train": {"data": "digits"}})
    broken = small_vae(depth=1).save(folder / "runs" / BROKEN)
    (broken / "model.safetensors").write_bytes(b"nothing")


class Server:
    """`fastdiff demo` as a process."""

    def __init__(self, folder: Path) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastdiff", "demo", "--port", "0", "--device", "cpu"], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"no address: {line!r} {self.process.communicate(timeout=60)}"
        self.address = found[0]

    def end(self) -> tuple[int, str]:
        """Send SIGINT; return the exit code and stderr."""
        self.process.send_signal(signal.SIGINT)
        err = self.process.communicate(timeout=60)[1]
        return self.process.returncode, err


class Visit:
    """The page in a browser, with what it asked for and said."""

    def __init__(self, browser, address: str, scheme: str = "light") -> None:
        self.address, self.requests, self.problems = address, [], []
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": 1240, "height": 1120})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.goto(address)
        self.settle("")

    def settle(self, before: str, call: str = "") -> None:
        """Wait until a drawing is done that is not ``before``, the HTML of pictures, and whose call holds a text."""
        self.page.wait_for_function(
            "([before, call]) => { const [sheet, busy, python] = ['.sheet', '.busy.on', '[data-call=python] pre'].map("
            "each => document.querySelector(each)); return sheet && sheet.outerHTML !== before && !busy"
            " && python && python.innerText.includes(call); }",
            arg=[before, call],
        )
        assert DRAWN.search(self.status()), self.status()

    def change(self, action, call: str = "") -> None:
        """Do something, and wait for new pictures, of a call that holds a text."""
        before = self.page.eval_on_selector(".sheet", "sheet => sheet.outerHTML")
        action()
        self.settle(before, call)

    def status(self) -> str:
        return self.page.inner_text("[role=status]")

    def pictures(self) -> np.ndarray:
        """The pictures that are shown, uint8 [n, H, W]."""
        sources = self.page.eval_on_selector_all(".sheet img", "images => images.map(image => image.src)")
        return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(each.split(",")[1])))) for each in sources])

    def copied(self, name: str) -> str:
        """What the copy button of a call puts into the clipboard."""
        self.page.click(f"button[aria-label='Copy {name}']")
        return self.page.evaluate("navigator.clipboard.readText()")

    def choose(self, name: str, option: str) -> None:
        """Choose an option of a list."""
        self.page.click(f".q-select:has(.q-field__label:text-is('{name}'))")
        if name == "Class":  # of many options a list shows some
            self.page.keyboard.type(option)
        self.page.get_by_role("option", name=option, exact=True).click()

    def nudge(self, slider: str, times: int = 1) -> None:
        """Move a slider by the keyboard."""
        self.page.focus(f".named:has([aria-label='{slider}']) .q-slider__track-container")
        for _ in range(times):
            self.page.keyboard.press("ArrowRight")


def images_of(python: str, folder: Path) -> np.ndarray:
    """The images that a copied Python call draws, uint8 [n, H, W]."""
    values: dict = {}
    there = os.getcwd()
    os.chdir(folder)
    try:
        exec(python, values)
    finally:
        os.chdir(there)
    return values["images"][:, 0].numpy()


def check(name: str, holds, shown: object = "") -> bool:
    """Print whether something holds, and return it."""
    try:
        passed = bool(holds())
    except Exception as error:
        passed, shown = False, f"{type(error).__name__}: {error}"
    print(f"browser: {'passed' if passed else 'FAILED'}: {name}" + ("" if passed else f": {shown}"), flush=True)
    return passed


def run_checks(browser, server: Server, folder: Path, out: Path | None, only: str = "") -> list[bool]:
    """Run the checks whose names hold a text; return whether each holds."""
    torch.set_num_threads(1)
    visit = Visit(browser, server.address)
    done = [check(name, lambda each=each: each(visit, folder)) for name, each in CHECKS.items() if only in name]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        screenshots(browser, server.address, folder, out)
    outside = [url for url in visit.requests if not re.match(r"(https?|wss?)://127\.0\.0\.1:|data:|blob:", url)]
    done.append(check("no request leaves 127.0.0.1", lambda: len(visit.requests) > 5 and not outside, outside))
    done.append(check("no error in the browser", lambda: not visit.problems, visit.problems))
    return done


def same_as_call(visit: Visit, folder: Path) -> bool:
    return np.array_equal(visit.pictures(), images_of(visit.copied("Python"), folder))


def click(visit: Visit, folder: Path) -> bool:
    """A click on "Next seed": other pictures, those of the call with seed 1."""
    before = visit.pictures()
    visit.change(lambda: visit.page.click("button:has-text('Next seed')"))
    assert 'sample("letters", 16, steps=10, sampler="unipc", seed=1)' in visit.copied("Python")
    assert visit.copied("Shell").startswith("fastdiff sample letters -n 16 --sampler unipc --steps 10 --seed 1 --out")
    return before.shape == visit.pictures().shape and (before != visit.pictures()).any()


def picture(visit: Visit, folder: Path) -> bool:
    """A click on a picture shows its denoising, z_t and x_hat after each of ten calls, which ends with the picture."""
    visit.page.click(".sheet img[data-index='5']")
    visit.page.wait_for_selector("text=How image 5 was denoised")
    images = visit.page.locator(".strip img")
    chosen = visit.page.get_attribute(".sheet img[data-index='5']", "src")
    return images.count() == 20 and images.last.get_attribute("src") == chosen


def classes(visit: Visit, folder: Path) -> bool:
    """A class by its name, and guidance."""
    visit.change(lambda: visit.choose("Class", "Q"), 'labels="Q"')
    visit.change(lambda: visit.nudge("Guidance", 4), "guidance=2")
    return "--label Q --guidance 2 --out" in visit.copied("Shell")


def calls(visit: Visit, folder: Path) -> bool:
    """The slider of calls."""
    visit.change(lambda: visit.nudge("Calls of the network", 2), "steps=12")
    return "12 calls" in visit.status() or "24 calls" in visit.status()


def latent(visit: Visit, folder: Path) -> bool:
    """The sliders of the latent of a VAE, found in runs/."""
    name = next(run.name for run in (folder / "runs").iterdir() if run.name != BROKEN)
    visit.change(lambda: visit.choose("Model", f"runs/{name}"), f'"runs/{name}"')
    before = visit.pictures()
    slider = visit.page.locator("[aria-label^='z[']").first.get_attribute("aria-label")
    visit.change(lambda: visit.nudge(slider, 15), "+= 1.5")
    return (before != visit.pictures()).any()


def back(visit: Visit, folder: Path) -> bool:
    """Reset brings the pictures of the seed back."""
    visit.change(lambda: visit.page.click("button:has-text('Reset')"))
    return "z[" not in visit.copied("Python")


def damaged(visit: Visit, folder: Path) -> bool:
    """A model that cannot be loaded is an error in the page, and another one can be chosen after it."""
    visit.choose("Model", f"runs/{BROKEN}")
    visit.page.wait_for_selector("[role=status].error")
    error = visit.status()
    visit.choose("Model", "letters")
    visit.page.wait_for_selector("[role=status]:not(.error)")
    visit.settle("", '"letters"')
    return f"runs/{BROKEN}" in error


CHECKS = {
    "the first pictures are those of the copied call": same_as_call,
    "a click draws the next seed": click,
    "they are those of the copied call": same_as_call,
    "a click on a picture shows its denoising": picture,
    "a class and guidance by slider": classes,
    "the pictures of a class are those of the copied call": same_as_call,
    "calls by slider": calls,
    "a latent by slider": latent,
    "the pictures of the latent are those of the copied call": same_as_call,
    "reset": back,
    "the pictures of the VAE are those of the copied call": same_as_call,
    "a damaged model is an error in the page": damaged,
}


def screenshots(browser, address: str, folder: Path, out: Path) -> None:
    """Write pictures of the page, light and dark, of a VAE, and in a narrow window."""
    for scheme in ("light", "dark"):
        other = Visit(browser, address, scheme)
        other.page.screenshot(path=out / f"{scheme}.png", full_page=True)
        if scheme == "dark":
            other.page.set_viewport_size({"width": 420, "height": 1500})
            other.page.screenshot(path=out / "narrow.png")
        else:
            latent(other, folder)
            other.page.screenshot(path=out / "vae.png", full_page=True)
        other.context.close()


if __name__ == "__main__":
    sys.exit(main())
