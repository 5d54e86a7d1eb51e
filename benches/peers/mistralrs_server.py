"""mistral.rs behind HTTP, since its wheel brings no server: POST /v1/completions, streamed, greedy.

    python mistralrs_server.py MODEL PORT [--dtype bf16|f32]

The wheel's `Runner` schedules the requests, as many at once as ask; a thread reads each stream.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mistralrs

TYPES = {"bf16": mistralrs.ModelDType.BF16, "f32": mistralrs.ModelDType.F32}


def handler(runner):
    # `Runner` takes one call at a time; a stream that it has returned is read beside others.
    asking = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            request = mistralrs.ChatCompletionRequest(
                messages=body["prompt"], model="default", max_tokens=body["max_tokens"], temperature=0.0,
                ignore_eos=True, stream=True,
            )
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            with asking:
                stream = runner.send_chat_completion_request(request)
            for chunk in stream:
                event = {"text": chunk.choices[0].delta.content if chunk.choices else ""}
                if chunk.usage:
                    event = {"tokens": chunk.usage.completion_tokens, "prompt": chunk.usage.prompt_tokens}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("--dtype", choices=list(TYPES), default="bf16")
    options = parser.parse_args()
    model = mistralrs.Which.Plain(model_id=options.model, dtype=TYPES[options.dtype])
    # No prompt comes twice, so nothing is kept of one.
    runner = mistralrs.Runner(which=model, max_seqs=16, prefix_cache_n=0)
    ThreadingHTTPServer(("127.0.0.1", options.port), handler(runner)).serve_forever()


if __name__ == "__main__":
    main()
