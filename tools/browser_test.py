"""Runs the cases of `inknib test --web DIR` in a browser without a window and saves what it found.

    inknib test --quick --web DIR
    python tools/browser_test.py DIR web.json                       # Chromium's WebGPU over SwiftShader
    inknib report web.json docs/adapters/*.json

Needs a Chromium (`--browser PATH`) and nothing else. Flags of the browser after `--` replace those for SwiftShader, e.g.
`-- --enable-unsafe-webgpu` for the machine's own GPU.
"""

import argparse
import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

SOFTWARE = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, done, **kwargs):
        self.done = done
        super().__init__(*args, **kwargs)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.done(body)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="what `inknib test --web` wrote")
    parser.add_argument("output", type=pathlib.Path, help="the JSON to write")
    parser.add_argument("--browser", default=None, help="default: chromium, chromium-browser or google-chrome")
    parser.add_argument("--timeout", type=float, default=900, help="seconds")
    parser.add_argument("flags", nargs="*", help="flags of the browser, after --")
    args = parser.parse_args()
    if not (args.folder / "cases.json").is_file():
        sys.exit(f"{args.folder}: no cases.json; write it with `inknib test --quick --web {args.folder}`")
    names = [args.browser] if args.browser else ["chromium", "chromium-browser", "google-chrome"]
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        sys.exit(f"no browser: {', '.join(names)}; give --browser PATH")
    found, arrived = [], threading.Event()

    def done(body):
        found.append(body)
        arrived.set()

    handler = functools.partial(Handler, directory=str(args.folder), done=done)
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", f"--user-data-dir={profile}", "--no-first-run"]
        command += (args.flags or SOFTWARE) + [f"http://localhost:{server.server_port}/index.html"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ended = arrived.wait(args.timeout)
        process.terminate()
        process.wait()
    server.shutdown()
    if not ended:
        sys.exit(f"the page did not answer in {args.timeout:.0f} s")
    result = json.loads(found[0])
    if "error" in result:
        sys.exit(f"the page did not run: {result['error']}")
    args.output.write_text(json.dumps(result, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(f"{result['adapter']}, {result['driver']}: {result['passed']} of {len(result['cases'])} cases passed, "
          f"{result['seconds']:.1f} s")
    for case in result["cases"]:
        if case["status"] == "failed":
            print(f"failed: {case['op']} {case['spec']} {case['shape']}, {case['kernels']}: {case.get('why', case['nmse'])}")
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
