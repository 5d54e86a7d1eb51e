"""Serving speed of ladle, llama.cpp's server, mistral.rs and vLLM's CPU build on the same model, adapters and load.

usage: serve.py ENV [--model NAME] [--cases ladle/shared,llama.cpp/none] [--clients 1,4,8,16] [--each N]
                [--tokens N] [--warm N] [--rounds N] [--first-round N] [--out FILE] [--list]

ENV is the directory that `benches/peers/setup` made. Each case starts its server, warms it up, then
runs the load for each number of clients: prompts of about 100 tokens, --tokens new ones, greedy. Results go
into FILE run by run; a case measured again replaces what FILE had of its round. With several rounds
all cases are run in turns (A B A B), and every ratio is of its own round. LADLE names ladle's binary.
"""

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import aiohttp

import load
import machine
import report
from servers import CASES, LADLE, ROOT

ARRIVING = 16
# Requests that each client sends, by the number of clients.
EACH = {1: 5, 2: 3, 4: 3, 8: 2, 16: 2}
START_TIMEOUT = 900
# Seconds until the next bytes of an answer; of a long prompt it takes minutes until the first.
READ_TIMEOUT = 900


def say(*words):
    print(*words, file=sys.stderr, flush=True)


async def wait_ready(session, server, process, log):
    start = time.monotonic()
    while time.monotonic() - start < START_TIMEOUT:
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"the server ended with {process.returncode}:\n{log.read()[-3000:]}")
        try:
            async with session.get(server.url + server.ready) as response:
                if response.status == 200:
                    return round(time.monotonic() - start, 1)
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit(f"the server was not ready after {START_TIMEOUT} s")


async def play(session, server, case, clients, options, seed):
    """One measured run after a warm-up. Returns what report.py keeps of it."""
    mixes = case["mixes"]
    turn = itertools.count()
    mix_of = {
        "distinct": lambda client: client % load.MIXES, "adapters": lambda client: client % load.MIXES,
        "turns": lambda client: next(turn) % load.MIXES,
    }.get(mixes, lambda client: 0)
    # No prompt comes twice to a server, which may keep what it computed.
    warm = load.Run(session, server, seed, load.prompts(1000 * clients, seed))
    await warm.closed_loop(clients, -(-load.MIXES // clients) if mixes == "turns" else 1, options.warm, mix_of)
    run, extra = load.Run(session, server, seed, load.prompts(1000 * clients + 500, seed)), {}
    before = machine.Usage(server.pid)
    if mixes == "fresh":
        # Hot and never-seen preferences in turn, nothing else running.
        for k in range(options.each or 12):
            await run.ask(0, 0, 8)
            await run.ask(1, 1000 + k, 8)
    elif mixes.startswith("arrivals"):
        fresh = mixes == "arrivals"
        window = await run.arrivals(8, ARRIVING, lambda k: 2000 + k if fresh else 0)
        extra["window_ms"] = [round(1e3 * at, 1) for at in window]
    else:
        await run.closed_loop(clients, options.each or EACH.get(clients, 2), options.tokens, mix_of)
    extra["usage"] = before.since()
    return extra | {"requests": [load.read(answer, server) for answer in run.answers]}


@contextlib.asynccontextmanager
async def running(server):
    """A session with a server that is ready, and the seconds until it was; it is ended afterwards."""
    command = [str(part) for part in server.command()]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", server.port)) == 0:
            raise SystemExit(f"port {server.port} is taken: another server would be measured")
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | server.env, start_new_session=True
        )
        server.pid = process.pid
        try:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                yield session, await wait_ready(session, server, process, log)
        finally:
            machine.stop(process)


def described(server):
    """How a server was started, without the paths of this machine."""
    command = [str(part) for part in server.command()]
    return {
        "command": " ".join([pathlib.Path(command[0]).name, *command[1:]]).replace(str(server.at), "ENV").replace(str(ROOT), "."),
        "env": {k: v.replace(str(server.at), "ENV").replace(LADLE, "ladle") for k, v in server.env.items()},
        "version": server.version(), "weights_bytes": server.weights(),
    }


async def measure(name, clients, round, options):
    """Starts the server of a case and runs it for each number of clients."""
    case, rows = CASES[name], []
    server = case["server"](options.env, options.model, options.port, case, max(clients))
    if hasattr(server, "prepare"):
        server.prepare(options.seed)
    how = described(server)
    async with running(server) as (session, start_s):
        for n in clients:
            row = await play(session, server, case, n, options, options.seed + round)
            row = {
                "case": name, "clients": n, "round": round, "dtype": case["dtype"], "tokens": options.tokens, **how,
                "at": datetime.datetime.now().isoformat(timespec="seconds"), "start_s": start_s,
                "memory": machine.memory(server.pid), **row,
            }
            row["summary"] = report.summarise(row)
            say(report.line(row))
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--model", default="smollm2-135m", help="one that setup prepared")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--each", type=int, help="requests that each client sends (default 5 to 2, by their number; fresh: 12 of either kind)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a request (of the cases of new preferences: fixed)")
    parser.add_argument("--warm", type=int, default=24, help="new tokens of a request that warms up")
    parser.add_argument("--rounds", type=int, default=1, help="times that all cases are run, in turns")
    parser.add_argument("--first-round", type=int, default=0, help="its number, where the rounds are run in several calls")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=18990)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    options = parser.parse_args()
    if options.list:
        raise SystemExit("\n".join(CASES))
    unknown = set(options.cases.split(",")) - set(CASES)
    if unknown:
        parser.error(f"--cases {','.join(sorted(unknown))}: no such case; --list prints them")
    out = options.out or ROOT / "benches" / "results" / f"serve-{options.model}-{datetime.date.today()}-{machine.slug()}.json"
    result = report.Result(out, options.model, options.seed)
    clients = [int(n) for n in options.clients.split(",")]
    for round in range(options.first_round, options.first_round + options.rounds):
        for name in options.cases.split(","):
            wanted = [1] if CASES[name]["mixes"] in ("fresh", "arrivals", "arrivals-hot") else clients
            groups = [[n] for n in wanted] if CASES[name]["server"].per_clients else [wanted]
            for group in groups:
                say(f"== round {round + 1}, {name}, {'/'.join(map(str, group))} clients")
                result.add(asyncio.run(measure(name, group, round, options)))
    print(result.table())
    say(out)


if __name__ == "__main__":
    main()
