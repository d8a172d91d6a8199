"""The written page in a browser, as wide as a laptop's and a phone's: nothing is wider, and all figures are drawn.

Chromium makes no window narrower than 500 pixels, so the page is opened in frames, whose width is what its style and
its scripts see.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_helpers import in_study, lottery_record, study, write_curve

from smallnets.report.collect import collect
from smallnets.report.write import Asked, write_report

CHROMIUM = shutil.which("chromium")
LAPTOP, PHONE, HEIGHT = 1366, 390, 1600
# In a frame: waits until all figures are drawn, at most ten seconds, and tells the page around it what is there.
MEASURE = """<script>
let waited = 0;
const timer = setInterval(() => {
  const charts = document.querySelectorAll('.chart'), page = document.documentElement;
  const drawn = [...charts].filter(chart => {
    const svg = chart.querySelector('svg.marks');
    return svg && svg.clientHeight > 100 && svg.querySelectorAll('path').length > 10;
  });
  if (drawn.length < charts.length && (waited += 100) < 10000) return;
  clearInterval(timer);
  parent.postMessage({name: window.name, width: window.innerWidth, client: page.clientWidth, scroll: page.scrollWidth,
    charts: charts.length, drawn: drawn.length, wide: drawn.filter(c => c.scrollWidth > c.clientWidth).length}, '*');
}, 100);
</script>"""
AROUND = """<!doctype html><body style="margin: 0; white-space: nowrap"><pre id="told" hidden></pre><script>
addEventListener('message', ({data}) => {
  document.getElementById('told').textContent += JSON.stringify(data) + '\\n';
});
</script>"""


def opened(frames: dict[str, tuple[str, int]], folder: Path) -> dict[str, dict[str, Any]]:
    """What each frame, name -> (page, width), tells; and `shot.png` of all of them beside each other."""
    page = AROUND
    for name, (text, width) in frames.items():
        before, end, after = text.rpartition("</body>")
        (folder / f"{name}.html").write_text(f"{before}{MEASURE}{end}{after}")
        page += (
            f'<iframe name="{name}" src="{name}.html" style="border: 0; width: {width}px; height: {HEIGHT}px"></iframe>'
        )
    (folder / "around.html").write_text(page)
    size = f"{sum(width for _, width in frames.values()) + 50},{HEIGHT}"
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000",
         f"--window-size={size}", f"--screenshot={folder / 'shot.png'}", "--dump-dom",
         (folder / "around.html").as_uri()],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    found = re.search(r'<pre id="told"[^>]*>(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told = [json.loads(line) for line in html.unescape(found[1]).splitlines() if line]
    return {each["name"]: each for each in told}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_fits_a_laptop_and_a_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallnets.report.figures.FORMATS", ())  # the page alone: pictures take seconds
    long = "optimizer=AdamW,model.scheduler=CosineAnnealingWarmRestarts,width=64"
    stated = {long: {"val_accuracy": 0.95, "test_accuracy": 0.94}}
    folder = study(tmp_path / "s", {long: {}, "no_place_to_break_" * 4: {}, "ticket": {}}, [0, 1], stated=stated)
    for cell, accuracy in ((long, 0.9), ("no_place_to_break_" * 4, 0.8), ("ticket", 0.6)):
        for seed in (0, 1):
            pruned = [lottery_record([0.9, 0.8, 0.6])] if cell == "ticket" else None
            made = in_study(folder, cell, seed, accuracy + seed / 100, pruning=pruned, parameters=int(1e4 * accuracy))
            write_curve(folder, made["run"], val_accuracy=[0.3, 0.5 + seed / 10, accuracy])
    report = write_report(collect([folder]), tmp_path / "out", Asked(baseline=long))
    page = report.page.read_text()
    too_wide = page.replace("<body>", '<body><p style="width: 500px">wide</p>', 1)
    frames = {"laptop": (page, LAPTOP), "phone": (page, PHONE), "control": (too_wide, PHONE)}
    told = opened(frames, tmp_path)
    assert {name: each["width"] for name, each in told.items()} == {"laptop": LAPTOP, "phone": PHONE, "control": PHONE}
    for name in ("laptop", "phone"):
        each = told[name]
        assert each["scroll"] <= each["client"], f"{name}: the page is {each['scroll']} wide of {each['client']}"
        assert each["charts"] == each["drawn"] == 6 and each["wide"] == 0, name
    assert told["control"]["scroll"] > told["control"]["client"]
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    for left, width in ((0, LAPTOP), (LAPTOP, PHONE)):
        part = shot.crop((left, 0, left + width, HEIGHT))
        # White paper, dark letters, and the figures' blue.
        colours = {colour for _, colour in part.getcolors(1 << 24)}
        assert (255, 255, 255) in colours and (0x00, 0x72, 0xB2) in colours and len(colours) > 50
