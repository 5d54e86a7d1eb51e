import json
import subprocess
import sys
from pathlib import Path

from common import MODEL, URL, WORK, drives, main, same

REQUESTS = 3


def benchmark(route):
    data, out = Path(WORK) / "prompts.csv", Path(WORK) / "report.json"
    rows = [f"Dish {number} is,8" for number in range(REQUESTS)]
    data.write_text("\n".join(["prompt,output_tokens_count", *rows]) + "\n")
    out.unlink(missing_ok=True)
    run = [Path(sys.executable).parent / "guidellm", "run"]
    run += ["--backend", f"kind=openai_http,target={URL},model={MODEL},request_format={route}"]
    run += ["--data", f"kind=csv_file,path={data}", "--constraint", f"kind=max_requests,count={REQUESTS}"]
    run += ["--tokenizer", f"kind=huggingface_auto,model={Path(WORK).parent / 'base'}"]
    run += ["--profile", "kind=synchronous", "--output", f"kind=json,path={out}", "--disable-console-interactive"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0 and out.is_file(), (done.stdout + done.stderr)[-3000:]
    totals = json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    same((totals["successful"], totals["errored"]), (REQUESTS, 0))


@drives("a benchmark of completions")
def completions():
    benchmark("/v1/completions")


@drives("a benchmark of chat completions")
def chat():
    benchmark("/v1/chat/completions")


main("guidellm")
