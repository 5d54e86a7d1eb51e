"""TRL on a real model: every backbone of a configuration is trained by two processes (gloo) with the rewards of
`train-backbones serve-rewards`, `ladle init --from-bones` makes them a soup, and `ladle serve` answers from it.

    real_model.py training/configs/bone-vs-rewarded.toml --data DATA --out OUT [--set KEY=VALUE …]

DATA holds SciTLDR-A's train.jsonl, dev.jsonl and test.jsonl and what `scripts/get-encoder DATA` fetches. The
sizes of the configuration are overridden by SMALL, those by --set. What is compared:

- each step's samples, scored again by a service that the trainer never spoke to, with what TRL weighed: answer
  by answer, and the mean reward that it logged;
- the prompts of the backbones, step by step;
- the tokens that ladle chooses where λ selects one backbone, with the network that TRL trained, in float32.

Needs this package's requirements; TRAIN_BACKBONES and LADLE name other binaries. Prints JSON; the status is 1
where something differs."""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[4]
PACKAGE = ROOT / "training/engines/trl"
sys.path.insert(0, str(PACKAGE))

SMALL = [
    'precision="f32"', "sft.steps=2", "sft.warmup=0", "sft.batch=8", "rollout.samples=4", "rl.steps=3", "rl.batch=8", "rl.keep=[]", "rl.standardise_on=16",
    "rl.checkpoint_every=2",
]
PROCESSES = 2
NEAR = 1e-6
# Nats by which a token that ladle chooses in bf16 may be less likely than the likeliest in float32.
TIE = 0.2
TRAIN = os.environ.get("TRAIN_BACKBONES", ROOT / "target/release/train-backbones")
LADLE = os.environ.get("LADLE", ROOT / "target/release/ladle")


def worker(record, arguments):
    """`bone-train` in one of the processes; the first one writes into `record` what TRL held after each step."""
    import transformers

    from bone_train import __main__ as command, train

    build = train.build

    def recorded(config, backbone, service, *more, **options):
        trainer, asked, steps = build(config, backbone, service, *more, **options), [], []
        score = service.score
        service.score = lambda step, rows: asked.append(rows) or score(step, rows)

        class Record(transformers.TrainerCallback):
            def on_step_end(self, *_, **__):
                logs = trainer._logs
                steps.append({
                    "rows": asked[-1], "answers": [answer[0]["content"] for answer in logs["completion"]],
                    "rewards": {name: list(values) for name, values in logs["rewards"].items()}, "weights": trainer.reward_weights.tolist(),
                })

            def on_train_end(self, _, state, *__, **___):
                logged = [entry for entry in state.log_history if "reward" in entry]
                pathlib.Path(record).write_text(json.dumps([{**step, "logged": entry} for step, entry in zip(steps, logged, strict=True)]))

        if trainer.accelerator.is_main_process:
            trainer.add_callback(Record())
        return trainer

    train.build = recorded
    command.main(arguments)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def ask(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(*command):
    """The address of `command`, a server that takes --port or --listen, while it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place, ready = (["--port", port], "ready") if "--soup" in command else (["--listen", f"127.0.0.1:{port}"], "health")
    process = subprocess.Popen([str(part) for part in [*command, *place]], stdout=sys.stderr)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{ready}")
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} {command[1]} ended with {process.returncode}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def rewards(run_directory, backbone, data, state):
    return serving(TRAIN, "serve-rewards", run_directory / "config.toml", "--backbone", backbone, "--share", run_directory, "--data", data, "--state", state)


def trained(run_directory, backbone, data, out):
    """What TRL held after each step of `backbone`, whose bone becomes out/bones/NAME."""
    record, bone = out / f"{backbone}.json", out / "bones" / backbone
    if not bone.exists():
        with rewards(run_directory, backbone, data, out / f"{backbone}.state.json") as url:
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}", __file__, "--worker", record]
            given = [run_directory / "config.toml", "--backbone", backbone, "--rewards", url, "--sft", run_directory / "adapters/sft"]
            subprocess.run(
                [str(part) for part in [sys.executable, *launch, *given, "--data", data, "--out", bone]], check=True, stdout=sys.stderr,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
    return json.loads(record.read_text())


def differences(steps, url):
    """The largest difference of TRL's mixed rewards from those of the service at `url`, and of the logged means."""
    answers, means = [], []
    for step in steps:
        if [row["response"] for row in step["rows"]] != step["answers"]:
            raise SystemExit("the answers that were scored are not those that TRL logged")
        expected = [row["reward"] for row in ask(f"{url}/rewards", {"rows": step["rows"]})["rows"]]
        got = [sum(w * r for w, r in zip(step["weights"], own, strict=True)) for own in zip(*step["rewards"].values(), strict=True)]
        answers += [abs(a - b) for a, b in zip(got, expected, strict=True)]
        means.append(abs(step["logged"]["reward"] - sum(expected) / len(expected)))
    return {"answers": len(answers), "largest difference of an answer": max(answers), "of a step's mean": max(means)}


def gaps(base, sft, adapter, prompt, answer):
    """By how many nats each token of `answer` is less likely than the likeliest one, under the trained network."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bone_train import rows

    start = rows.prompt_tokens(AutoTokenizer.from_pretrained(base), prompt)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(PeftModel.from_pretrained(model, sft).merge_and_unload(), adapter)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return (logits.amax(1) - chosen).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the run; what is there already is not made again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    from bone_train import settings, train

    out, began, seconds = options.out.resolve(), time.monotonic(), {}
    def passed(what):
        seconds[what] = round(time.monotonic() - began)

    directory = out / "run"
    if not (directory / "standardiser.toml").exists():
        changes = [f"--set={change}" for change in [*SMALL, *options.set]]
        run(TRAIN, "sft", options.config, "--out", directory, "--data", options.data, *changes)
        passed("sft")
    config = settings.read(directory / "config.toml")
    names = settings.objectives(config)
    base, sft = train.base_directory(config, None), directory / "adapters/sft"
    steps = {}
    for name in names:
        steps[name] = trained(directory, name, options.data, out)
        passed(name)
    found = {}
    for name in names:
        with rewards(directory, name, options.data, out / f"{name}.again.json") as url:
            found[name] = differences(steps[name], url)
        found[name]["logged"] = [step["logged"] for step in steps[name]]
    asked = [[[row["prompt"] for row in step["rows"]] for step in steps[name]] for name in names]

    soup = out / "soup"
    if not soup.exists():
        run(LADLE, "init", soup, "--name", "real", "--sft", sft, "--base", base, "--from-bones", *(out / "bones" / name for name in names))
    run(LADLE, "inspect", soup)
    prompt = steps[names[0]][0]["rows"][0]["prompt"]
    with serving(LADLE, "serve", "--log", "warn", "--soup", soup) as url:
        for name in names:
            # Where μ is a column of B, λ is that backbone alone.
            body = {"messages": [{"role": "user", "content": prompt}], "preference": settings.column(config, name)}
            answer = ask(f"{url}/generate", {**body, "max_tokens": 24, "temperature": 0, "logprobs": 0})
            far = gaps(base, sft, out / "bones" / name, prompt, [token["id"] for token in answer["tokens"]])
            found[name] |= {"lambda": answer["lambda"], "text": answer["text"], "tokens": len(far), "largest gap in nats": max(far)}
    passed("all")
    right = all(one[key] <= limit for one in found.values() for key, limit in (
        ("largest difference of an answer", NEAR), ("of a step's mean", NEAR), ("largest gap in nats", TIE),
    ))
    same = all(one == other for steps in asked for one, other in zip(steps, asked[0]))
    versions = {**train.VERSIONS, "train-backbones": run(TRAIN, "--version").strip()}
    print(json.dumps({"versions": versions, "seconds": seconds, "same prompts": same, **found}, indent=1))
    sys.exit(not (right and same))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        main()
