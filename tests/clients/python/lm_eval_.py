import json
import math
import subprocess
import sys
from pathlib import Path

from common import MODEL, URL, WORK, drives, main, post, same

TASKS = Path(__file__).resolve().parents[1] / "lm_eval"


def evaluate(model, task, **arguments):
    """Samples of a task, by their number."""
    out = Path(WORK) / f"{model}-{task}"
    told = {"model": MODEL, "num_concurrent": 2, "max_retries": 1, **arguments}
    run = [Path(sys.executable).parent / "lm_eval", "--model", model, "--tasks", task, "--include_path", TASKS]
    run += ["--model_args", ",".join(f"{name}={value}" for name, value in told.items())]
    run += ["--output_path", out, "--log_samples"]
    if "chat" in model:
        run.append("--apply_chat_template")
    done = subprocess.run(run, capture_output=True, text=True, cwd=TASKS)
    assert done.returncode == 0, done.stderr[-2000:]
    newest = max(out.rglob(f"samples_{task}_*.jsonl"), key=lambda file: file.stat().st_mtime)
    samples = [json.loads(line) for line in newest.read_text().splitlines()]
    return {sample["doc_id"]: sample for sample in samples}


def likelihood(context, continuation):
    """Log-probability of a continuation, by /v1/completions itself."""
    body = {"prompt": context + continuation, "max_tokens": 0, "echo": True, "logprobs": 1}
    table = post("/v1/completions", body)["choices"][0]["logprobs"]
    pairs = zip(table["text_offset"], table["token_logprobs"])
    return sum(logprob for offset, logprob in pairs if offset >= len(context))


@drives("log-likelihoods over completions, with the remote tokenizer")
def likelihoods():
    samples = evaluate("local-completions", "dishes", base_url=URL + "/v1/completions", tokenizer_backend="remote")
    for sample in samples.values():
        for request, answers in zip(sample["arguments"].values(), sample["resps"]):
            expected = likelihood(request["arg_0"], request["arg_1"])
            got = float(answers[0][0])
            same(math.isclose(got, expected, abs_tol=0.05), True)


@drives("generations over chat completions")
def generations():
    samples = evaluate("local-chat-completions", "courses", base_url=URL + "/v1/chat/completions")
    for sample in samples.values():
        question = sample["doc"]["question"]
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16}
        same(sample["resps"][0][0], post("/generate", body)["text"])


main("lm_eval")
