"""The rewards of one backbone, from `train-backbones serve-rewards`: formulas, standardiser, B and its balance
have their one copy there."""

import json
import math
import time
import urllib.error
import urllib.request


class ServiceError(RuntimeError):
    """The reward service refused, or could not be reached."""


class Service:
    """`url` is where the service listens. What failed on the way is asked again for `patience` seconds: the
    service counts a step once."""

    def __init__(self, url, patience=300.0, timeout=300.0):
        self.url, self.patience, self.timeout = url.rstrip("/"), patience, timeout

    def state(self):
        """The backbone, its objectives, column of B, standardiser and realised weights."""
        return self.ask("/state")

    def score(self, step, rows):
        """Standardised rewards of each row, one an objective (`None`: not judged), and the weights in force. Without
        a step nothing is counted."""
        answer = self.ask("/rewards", {"step": step, "rows": rows})
        if len(answer["rows"]) != len(rows):
            raise ServiceError(f"{self.url}: {len(answer['rows'])} rows were scored, expected {len(rows)}")
        scored, weights = [row["standardised"] for row in answer["rows"]], answer["weights"]
        for reward in [*weights, *(reward for row in scored for reward in row if reward is not None)]:
            if not math.isfinite(reward):
                raise ServiceError(f"{self.url}: step {step}: a reward or weight is {reward}")
        return scored, weights

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"content-type": "application/json"})
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                complaint = error.read(4096).decode(errors="replace")
                # Only what may pass is asked again.
                if error.code not in (429, 502, 503, 504) or time.monotonic() > deadline:
                    raise ServiceError(f"{self.url}{path}: {error.code}: {complaint}") from error
            except (OSError, json.JSONDecodeError) as error:
                if time.monotonic() > deadline:
                    raise ServiceError(f"{self.url}{path}: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
