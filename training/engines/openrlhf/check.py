"""Parses a directory that `bone-export --engine openrlhf` made with OpenRLHF's own argument parser.

    python3 training/engines/openrlhf/check.py OUT        # beside `pip install --no-deps openrlhf`

Only the parser is run, so neither its engines nor a GPU need be there. Without the package nothing is checked, and
that is said."""

import ast
import importlib.util
import pathlib
import shlex
import sys
import types


def arguments(run):
    """The arguments of the command in a `run` file."""
    words = shlex.split(run.read_text().replace("\\\n", "").split("\npython -m ", 1)[1])
    return words[1:-1]  # the module in front, "$@" behind


def parsed(package, given):
    """What OpenRLHF's parser and its checks make of arguments."""
    source = (package / "cli/train_ppo_ray.py").read_text()
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    # All of the main block but the training.
    body = [node for node in block.body if ast.unparse(node) != "train(args)"]
    if len(body) != len(block.body) - 1:
        raise SystemExit("check: this OpenRLHF's main block does not end in train(args): the check must be brought up to date")
    spec = importlib.util.spec_from_file_location("openrlhf.utils.config", package / "utils/config.py")
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    stand_ins = {"openrlhf": types.ModuleType("openrlhf"), "openrlhf.utils": types.ModuleType("utils"), "openrlhf.utils.config": config}
    names, before = {}, {**sys.modules}
    sys.modules.update(stand_ins)
    sys.argv = ["train_ppo_ray", *given]
    try:
        exec("import argparse, os\nfrom datetime import datetime", names)
        exec(compile(ast.Module(body, []), "train_ppo_ray.py", "exec"), names)
    finally:
        for name in stand_ins:
            sys.modules.pop(name)
        sys.modules.update({name: before[name] for name in stand_ins if name in before})
    return names["args"]


def main():
    spec = importlib.util.find_spec("openrlhf")
    if spec is None:
        print("openrlhf is not installed: nothing was checked (pip install --no-deps openrlhf)")
        return
    out = pathlib.Path(sys.argv[1])
    args = parsed(pathlib.Path(spec.origin).parent, arguments(out / "run"))
    steps = sum(1 for _ in open(args.data.prompt_dataset)) // args.rollout.batch_size
    print(
        f"taken: {args.algo.advantage.estimator}, {steps} steps of {args.train.batch_size} answers, "
        f"{args.rollout.n_samples_per_prompt} to a prompt, KL {args.algo.kl.init_coef}, rewards from {args.reward.remote_url}"
    )


if __name__ == "__main__":
    main()
