"""A stand-in for `train-backbones serve-rewards`: two rewards by an answer's first letter, fixed weights. It
records what it is asked. Only the standard library."""

import http.server
import json
import re
import threading

REWARDS = {"vowels": "^ ?[aeiou]", "others": "^ ?[b-df-hj-np-tv-z]"}


class StandIn:
    def __init__(self, backbone, column, refuse_first=0, later=None, die_after=None):
        self.backbone, self.column, self.refusals = backbone, column, refuse_first
        # Weights from the second step on, for a balance that moves.
        self.later = later or column
        self.die_after, self.asked = die_after, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, outer.state())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if outer.refusals:
                    outer.refusals -= 1
                    return self.answer(503, {"error": "busy"})
                if len(outer.asked) == outer.die_after:
                    return self.answer(400, {"error": "dead"})
                outer.asked.append(body)
                self.answer(200, outer.rewards(body))

            def answer(self, code, body):
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def state(self):
        return {
            "backbone": self.backbone, "objectives": list(REWARDS), "column": self.column, "weights": self.column,
            "realised": self.column, "standardiser": {"mean": [0.25, 0.5], "std": [0.5, 0.5]},
        }

    def rewards(self, body):
        scale, weights = self.state()["standardiser"], self.later if body.get("step") else self.column
        rows = []
        for row in body["rows"]:
            raw = [float(bool(re.search(pattern, row["response"]))) for pattern in REWARDS.values()]
            standardised = [(r - m) / s for r, m, s in zip(raw, scale["mean"], scale["std"])]
            rows.append({"raw": raw, "standardised": standardised, "reward": sum(w * r for w, r in zip(weights, standardised))})
        return {"objectives": list(REWARDS), "rows": rows, "weights": weights}
