"""A server of its own for the scripts of this directory, and what it uses. Linux, Python 3.9."""

import collections
import errno
import http.client
import json
import os
import subprocess
import sys
import threading
import time


class Server:
    """`ladle serve SOUP OPTIONS` on a free port; ready when this returns."""

    def __init__(self, binary, soup, options=()):
        # Where it listens, and whatever is wrong.
        log = ["--log", "warn,ladle::http::server=info", "--log-format", "json"]
        command = [binary, "serve", str(soup), "--port", "0", *log, *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.ports, self.complaints = {}, collections.Counter()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        while self.get("/ready") != 200:
            if self.process.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.05)

    def _read(self):
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
                level, fields = entry["level"], entry["fields"]
            except (ValueError, KeyError):
                level, fields = "ERROR", {"message": line.strip()}
            message = fields.get("message", "")
            if message.startswith("listening"):
                self.ports[message] = int(fields["address"].rpartition(":")[2])
            elif level == "ERROR":
                print(line.strip(), file=sys.stderr)
            if level in ("ERROR", "WARN"):
                self.complaints[f"{level} {message}"] += 1

    @property
    def port(self):
        return self.ports.get("listening", 0)

    def connect(self, source="127.0.0.1", timeout=120):
        """A connection that has sent nothing, from any address of this machine."""
        return http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout, source_address=(source, 0)
        )

    def ask(self, method, path, body=None, headers=None, **where):
        """Status and body of an answer; status 0 and the error's name where there was none."""
        connection = self.connect(**where)
        try:
            while not self._open(connection):
                time.sleep(0.1)
            headers = {"content-type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, type(error).__name__.encode()
        finally:
            connection.close()

    @staticmethod
    def _open(connection):
        """Opens a connection; false where all ports of this machine are in use for the moment."""
        try:
            connection.connect()
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
        return True

    def get(self, path):
        return self.ask("GET", path)[0]

    def post(self, path, body):
        """Status, and the code of the error or "ok"."""
        status, answer = self.ask("POST", path, body)
        if status == 0:
            return 0, answer.decode()
        return status, json.loads(answer).get("error", {}).get("code", "ok")

    def resident(self):
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def metrics(self):
        """The values of `/metrics`, without labels those of the same name added up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["listening for metrics"])
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        values = collections.Counter()
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[name.partition("{")[0]] += float(value)
        return values
