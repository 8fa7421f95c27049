"""Every page of the documentation, in a browser at two widths.

Needs the extra `docs`, and Chromium: `apt-get install chromium`.
"""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1200, 400)

# Runs first in every page that is served.
WATCH = b"""<script>
window.faults = [];
const missing = (e) => faults.push(e.message || "no " + e.target.outerHTML);
addEventListener("error", missing, true);
addEventListener("unhandledrejection", (e) => faults.push(String(e.reason)));
console.error = (...said) => faults.push(said.join(" "));
</script>"""

# Opens each page in a frame, and sends home what is wrong with it.
VISIT = r"""<!doctype html><iframe height=900 style="border: 0"></iframe><script>
const frame = document.querySelector("iframe");
const raw = /\\\(|\\\[|\$\$|\\(frac|sum|operatorname|text)\b/;
const opened = (page) => new Promise((done) => {
  frame.onload = () => setTimeout(done, 150);
  frame.src = page;
});
const look = (shown, width) => {
  const found = [...frame.contentWindow.faults];
  const body = shown.body.cloneNode(true);
  const no_text = "pre, code, script, style, annotation";
  for (const element of body.querySelectorAll(no_text)) element.remove();
  if (raw.test(body.textContent)) found.push("raw " + raw.exec(body.textContent));
  for (const image of shown.querySelectorAll("img"))
    if (!image.naturalWidth) found.push("no " + image.src);
  const over = shown.documentElement.scrollWidth - width;
  if (over > 0) found.push(over + " pixels too wide");
  return found;
};
const leads_somewhere = async (url) => {
  const reply = await fetch(url.pathname);
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  const id = decodeURIComponent(url.hash.slice(1));
  return reply.ok && (!id || page.getElementById(id));
};
const main = async () => {
  const report = {}, links = new Set();
  for (const width of WIDTHS) {
    frame.width = width;
    for (const page of PAGES) {
      await opened(page);
      const shown = frame.contentDocument, found = look(shown, width);
      if (found.length) report[page + " at " + width] = found;
      for (const link of shown.querySelectorAll("a[href]")) links.add(link.href);
    }
  }
  for (const link of links) {
    const url = new URL(link);
    if (url.origin === location.origin && !await leads_somewhere(url))
      report[link] = ["leads nowhere"];
  }
  return report;
};
main().catch(String).then((report) =>
  fetch("/report", {method: "POST", body: JSON.stringify(report)}));
</script>"""


class Site(http.server.SimpleHTTPRequestHandler):
    """The built pages, with a watch in each, and the page that visits them."""

    def do_GET(self):
        name = self.path.split("?")[0]
        file = Path(self.directory) / name.lstrip("/")
        file = file / "index.html" if file.is_dir() else file
        if name == "/visit":
            self.answer(self.server.visit.encode())
        elif file.suffix == ".html" and file.is_file():
            self.answer(file.read_bytes().replace(b"<head>", b"<head>" + WATCH, 1))
        else:
            super().do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.reports.put(json.loads(body))
        self.answer(b"")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_every_page_in_a_browser(tmp_path):
    """No raw formula, no error, no missing picture, no dead link, nothing too wide."""
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run([*build, "--site-dir", str(site)], cwd=ROOT, check=True)
    pages = [f"/{page.relative_to(site)}" for page in sorted(site.rglob("*.html"))]
    pages = [page.removesuffix("index.html") for page in pages if "404" not in page]
    assert len(pages) > 20

    handler = functools.partial(Site, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.reports = queue.Queue()
    given = (
        f"<script>const PAGES = {json.dumps(pages)}, WIDTHS = {list(WIDTHS)}</script>"
    )
    server.visit = given + VISIT
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *(
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1000"),
            "--remote-debugging-port=0",
            f"http://127.0.0.1:{server.server_port}/visit",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        report = server.reports.get(timeout=300)
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        server.server_close()
    assert report == {}
