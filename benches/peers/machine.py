"""What the machine is, what a process tree uses of it, and what others use meanwhile."""

import os
import pathlib
import re
import signal
import subprocess

TICK = os.sysconf("SC_CLK_TCK")
# Flags that decide which kernels a server can use.
FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"]


def cpu_info(key):
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(rf"^{key}\s*: (.*)$", text, re.M)
    return found.group(1) if found else "unknown"


def slug():
    """The processor's name and the class that decides which products it has."""
    flags = cpu_info("flags").split()
    classes = {"amx_bf16": "amx", "avx512_bf16": "avx512-bf16", "avx512_vnni": "avx512-vnni", "avx512f": "avx512", "avx2": "avx2"}
    best = next((name for flag, name in classes.items() if flag in flags), "none")
    return re.sub(r"[^a-z0-9.]+", "-", f"{cpu_info('model name')} {best}".lower()).strip("-")


def describe():
    flags = cpu_info("flags").split()
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu_info("model name"), "family": cpu_info("cpu family"), "model": cpu_info("model"), "cores": os.cpu_count(), "kernel": os.uname().release,
        "flags": [flag for flag in FLAGS if flag in flags], "without": [f for f in FLAGS if f not in flags],
        "memory_gib": round(int(memory.group(1)) / 2**20, 1),
    }


def tree(pid):
    """`pid` and all below it."""
    found = [pid]
    for process in found:
        for task in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def memory(pid):
    """Bytes of the process tree: peak and present resident, and how much of the latter is of files."""
    total = dict.fromkeys(("VmHWM", "VmRSS", "RssAnon", "RssFile"), 0)
    for process in tree(pid):
        status = pathlib.Path(f"/proc/{process}/status").read_text()
        for key in total:
            found = re.search(rf"^{key}:\s+(\d+) kB", status, re.M)
            total[key] += 1024 * int(found.group(1)) if found else 0
    return {"peak": total["VmHWM"], "resident": total["VmRSS"], "anonymous": total["RssAnon"], "files": total["RssFile"]}


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def busy_seconds():
    """CPU seconds of the machine that were not idle, stolen ones included."""
    fields = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / TICK


class Usage:
    """CPU seconds from now on: the server's, the client's, and everybody else's."""

    def __init__(self, pid):
        self.pids = tree(pid)
        self.start = self.take()

    def take(self):
        return busy_seconds(), cpu_seconds(self.pids), cpu_seconds([os.getpid()]), os.times().elapsed

    def since(self):
        busy, server, client, wall = (b - a for a, b in zip(self.start, self.take()))
        others = max(0.0, busy - server - client)
        return {
            "server_cpu_s": round(server, 2), "client_cpu_s": round(client, 2), "others_cpu_s": round(others, 2),
            "others_share": round(others / (wall * os.cpu_count()), 3),
        }


def stop(process):
    """Ends a server and its children: politely, then not."""
    for sign, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, sign)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
