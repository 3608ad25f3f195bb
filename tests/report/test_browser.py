"""Pages in a real browser, wide and narrow: no console errors, every picture there, no request that leaves the page."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp
import pytest

from e2ray.records.comparison import Lane
from e2ray.report.compare.page import write_comparison
from e2ray.report.run_folder import open_runs
from e2ray.report.runs import write_report
from e2ray.report.study.page import write_study
from e2ray.testing.runs import asked, begun, evaluated
from e2ray.testing.studies import made_up

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = os.environ.get("E2RAY_REPORT")  # another page to look at, e.g. a real study's
LOOK = """JSON.stringify({
    pictures: [...document.images].map(i => [i.complete, i.naturalWidth, i.alt]),
    loaded: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    scripts: document.scripts.length, title: document.title, wide: document.documentElement.scrollWidth})"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH"),
]


async def seen(page, folder, width):
    """Open a page in a headless browser and return what it looks like, what the console said, what was asked for."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--no-first-run",
        "--disable-extensions",
        "--disable-component-update",
        "--disable-background-networking",
    ]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        announced, end = Path(folder) / "DevToolsActivePort", time.monotonic() + 60
        while not announced.exists() or len(announced.read_text().splitlines()) < 2:
            assert time.monotonic() < end and process.poll() is None, (Path(folder) / "log").read_text()
            await asyncio.sleep(0.1)
        port = announced.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(tab for tab in await answer.json(content_type=None) if tab["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                return await looked_at(socket, page, width)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def looked_at(socket, page, width):
    said, asked, loaded = [], [], asyncio.Event()
    answers = {}

    async def listen():
        async for message in socket:
            event = json.loads(message.data)
            match event.get("method"):
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                    said.append(event["params"])
                case "Network.requestWillBeSent":
                    asked.append(event["params"]["request"]["url"])
                case "Page.loadEventFired":
                    loaded.set()
            if event.get("id") in answers:
                answers.pop(event["id"]).set_result(event)

    async def call(number, method, **params):
        answers[number] = asyncio.get_running_loop().create_future()
        await socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(answers[number], 60)

    listener = asyncio.create_task(listen())
    for number, domain in enumerate(("Runtime", "Log", "Network", "Page"), 1):
        await call(number, f"{domain}.enable")
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    await call(7, "Emulation.setDeviceMetricsOverride", **screen)
    await call(5, "Page.navigate", url=page.as_uri())
    await asyncio.wait_for(loaded.wait(), 60)
    await asyncio.sleep(1)  # what a page asks for when it is idle
    answer = await call(6, "Runtime.evaluate", expression=LOOK)
    listener.cancel()
    return json.loads(answer["result"]["result"]["value"]), said, asked


def study_page(folder):
    from matplotlib.figure import Figure

    return write_study(folder, made_up(45), coverage={"a": Figure()}, journal_command="x")


def runs_page(folder):
    """The page of two runs, one of a hostile name, and one without an evaluation."""
    one = evaluated(folder, "one", retrieval=asked()).rename(folder / "<img src=http:x onerror=alert(1)>")
    write_report(folder / "report.html", open_runs([one, evaluated(folder, "other"), begun(folder, "bare")]))
    return folder / "report.html"


def comparison_page(folder):
    """The page of many lanes, one of a hostile name, and one that failed."""
    lanes = {"base": 4.0, "yarn": 3.5, "e2llm": 3.4, "<b>own $x$</b>": 3.3} | {f"own {n}": 3.6 + n for n in range(20)}
    jobs = []
    for lane, nll in lanes.items():
        sums = [
            {"window": w, "scale": w / 128, "served": True, "nll": [nll * 90.0, nll * 110.0], "tokens": [90, 110]}
            for w in (128, 256, 512)
        ]
        trained = {"tokens": 4096, "train_s": 50.0, "steps": 10} if lane not in ("base", "yarn") else {}
        job = {"lane": lane, "seed": 0, "tokens": 0, "train_s": 0.0, "steps": 0, "peak_mib": None, "sums": sums}
        jobs.append(job | {"retrieval": [], "missing": []} | trained)
    jobs[-1] |= {"sums": [], "failed": "it does not fit into memory"}
    write_comparison(folder, [Lane.model_validate(job) for job in jobs], 128, (128, 256, 512), stride=32)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize(("make", "pictures"), [(study_page, 8), (runs_page, 4), (comparison_page, 1)])
def test_the_report_opens_whole_and_offline(tmp_path, make, pictures, width):
    page = Path(PAGE) if PAGE else make(tmp_path)
    folder = tempfile.mkdtemp(prefix="browser-")
    try:
        found, said, asked = asyncio.run(seen(page, folder, width))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert said == [], said
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert found["wide"] <= width  # only tables and pictures scroll sideways, each in its own box
    assert found["loaded"] == [] and found["scripts"] == 0 and found["title"]
    assert len(found["pictures"]) >= (1 if PAGE else pictures)
    for complete, width, alt in found["pictures"]:
        assert complete and width > 100 and alt
