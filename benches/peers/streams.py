"""Servers of ladle, and the gaps between the tokens of their streams."""

import json
import socket
import subprocess
import sys
import time
import urllib.request


def gaps(url, body):
    """Seconds between the tokens of a stream."""
    request = urllib.request.Request(url + "/generate", json.dumps({**body, "stream": True, "logprobs": 0}).encode(),
                                     {"content-type": "application/json"})
    times = []
    with urllib.request.urlopen(request, timeout=3600) as events:
        for line in events:
            # With log-probabilities every token is an event of its own.
            if line.startswith(b"event: token"):
                times.append(time.perf_counter())
    return [b - a for a, b in zip(times, times[1:])]


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def serve(binary, soup, options=()):
    """A server of a soup, once it is ready: its process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([binary, "serve", soup, "--port", str(port), "--offline", "--log", "warn", *options])
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url + "/ready", timeout=5)
            return process, url
        except OSError:
            if process.poll() is not None:
                sys.exit("the server ended before it was ready")
            time.sleep(0.2)
    sys.exit("the server is not ready after two minutes")
