"""The same configuration for other engines: prompts in the order of the run, and the engine's arguments.

OpenRLHF and verl score one answer at a time and know no training step, so weights that move are refused. For
TRL, `bone-train` reads the configuration itself."""

import argparse
import json
import pathlib
import shlex
import sys
import tomllib

from . import settings
from .settings import SettingsError


def check(config, engine):
    """Refuses by name what this engine cannot do, beside what no trainer here can."""
    if engine == "trl":
        return
    expected = [
        ("balance.strategy", config["balance"]["strategy"], config["balance"]["strategy"] == "average",
         f'"average": {engine} scores answers one by one'),
        ("lora.activation", config["lora"]["activation"], config["lora"]["activation"] == "all",
         f'"all": {engine} knows no activated adapters'),
    ]
    if engine == "openrlhf":
        alpha = config["lora"]["alpha"]
        expected.append(("lora.alpha", alpha, alpha == int(alpha), "a whole number: OpenRLHF takes no other"))
    if engine == "verl":
        limit, default = config["rl"]["advantage_clip"], settings.DEFAULTS["rl"]["advantage_clip"]
        expected.append(("rl.advantage_clip", limit, limit == default, "left out: verl clips no advantages"))
    for key, value, holds, right in expected:
        if not holds:
            settings.refuse(key, repr(value), right)


def openrlhf(config, *, base, rewards, out, gpus):
    """Arguments of `python -m openrlhf.cli.train_ppo_ray`, each with its values."""
    rl, rollout, optimizer, lora = config["rl"], config["rollout"], config["optimizer"], config["lora"]
    batch, samples = rl["batch"], rollout["samples"]
    given = {
        "actor.model_name_or_path": base,
        "actor.num_gpus_per_node": gpus,
        "ref.num_gpus_per_node": gpus,
        "vllm.num_engines": gpus,
        "reward.remote_url": f"{rewards}/get_reward",
        "data.prompt_dataset": f"{out}/prompts.jsonl",
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": config["data"]["max_prompt_tokens"] + rollout["max_new_tokens"],
        "rollout.batch_size": batch // samples,
        "rollout.n_samples_per_prompt": samples,
        "rollout.max_new_tokens": rollout["max_new_tokens"],
        "rollout.temperature": rollout["temperature"],
        "train.batch_size": batch,
        "train.max_epochs": 1,
        "train.num_episodes": 1,
        "train.seed": config["seed"],
        "algo.advantage.estimator": "rloo",
        "algo.kl.init_coef": rl["kl"],
        "algo.kl.estimator": "k1",
        # OpenRLHF clips what is left of the reward after the baseline.
        "reward.clip_range": [-rl["advantage_clip"], rl["advantage_clip"]],
        "actor.adam.lr": rl["learning_rate"],
        "actor.adam.betas": [optimizer["beta1"], optimizer["beta2"]],
        "actor.adam.eps": optimizer["epsilon"],
        "actor.adam.weight_decay": optimizer["weight_decay"],
        "actor.max_norm": optimizer["max_grad_norm"],
        "actor.lr_scheduler": rl["decay"],
        "actor.lr_warmup_ratio": 0.0,
        "ds.lora.rank": lora["rank"],
        "ds.lora.alpha": int(lora["alpha"]),
        "ds.lora.dropout": lora["dropout"],
        "ckpt.output_dir": f"{out}/adapter",
        "ckpt.path": f"{out}/checkpoints",
        "ckpt.save_steps": rl["checkpoint_every"],
    }
    if lora["targets"] is not None:  # left out, OpenRLHF's default is all linear layers too
        given["ds.lora.target_modules"] = lora["targets"]
    flags = ["data.apply_chat_template", "train.colocate_all", "vllm.enable_sleep", "ds.enable_sleep", "ckpt.load_enable"]
    flags += ["actor.gradient_checkpointing_enable"] if rl["recompute"] else []
    values = lambda value: map(str, value if isinstance(value, list) else [value])
    return [*([f"--{key}", *values(value)] for key, value in given.items()), *([f"--{flag}"] for flag in flags)]


def verl(config, *, base, rewards, out, gpus):
    """Overrides of `python -m verl.trainer.main_ppo`."""
    rl, rollout, optimizer, lora = config["rl"], config["rollout"], config["optimizer"], config["lora"]
    prompts = rl["batch"] // rollout["samples"]
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    manager = pathlib.Path(__file__).resolve().with_name("verl_reward.py")
    given = {
        "data.train_files": f"{out}/prompts.parquet",
        "data.val_files": f"{out}/prompts.parquet",
        "data.shuffle": False,
        "data.seed": config["seed"],
        "data.train_batch_size": prompts,
        "data.max_prompt_length": config["data"]["max_prompt_tokens"],
        "data.max_response_length": rollout["max_new_tokens"],
        f"{model}.path": base,
        f"{model}.lora_rank": lora["rank"],
        f"{model}.lora_alpha": lora["alpha"],
        f"{model}.lora_adapter_path": f"{out}/initial",
        f"{model}.enable_gradient_checkpointing": rl["recompute"],
        f"{actor}.optim.lr": rl["learning_rate"],
        f"{actor}.optim.betas": [optimizer["beta1"], optimizer["beta2"]],
        f"+{actor}.optim.override_optimizer_config.eps": optimizer["epsilon"],
        f"{actor}.optim.weight_decay": optimizer["weight_decay"],
        f"{actor}.optim.clip_grad": optimizer["max_grad_norm"],
        f"{actor}.optim.lr_scheduler_type": rl["decay"],
        f"{actor}.grad_clip": optimizer["max_grad_norm"],
        f"{actor}.ppo_mini_batch_size": prompts,
        f"{actor}.ppo_micro_batch_size_per_gpu": 1,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.loss_agg_mode": "seq-mean-token-sum",
        f"{actor}.use_kl_loss": False,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": rollout["samples"],
        "actor_rollout_ref.rollout.temperature": rollout["temperature"],
        "actor_rollout_ref.rollout.seed": config["seed"],
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 1,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 1,
        "algorithm.adv_estimator": "rloo",
        "algorithm.use_kl_in_reward": rl["kl"] > 0,
        "algorithm.kl_penalty": "kl",
        "algorithm.kl_ctrl.type": "fixed",
        "algorithm.kl_ctrl.kl_coef": rl["kl"],
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "BoneRewardManager",
        "reward.reward_manager.module.path": str(manager),
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": rl["steps"],
        "trainer.save_freq": rl["checkpoint_every"],
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.n_gpus_per_node": gpus,
        "trainer.nnodes": 1,
        "trainer.logger": ["console"],
        "trainer.default_local_dir": f"{out}/checkpoints",
    }
    del rewards  # the reward manager reads it from BONE_REWARDS
    return [[f"{key}={json.dumps(value) if isinstance(value, (bool, list)) else value}"] for key, value in given.items()]


ENGINES = {"openrlhf": (openrlhf, "openrlhf.cli.train_ppo_ray"), "verl": (verl, "verl.trainer.main_ppo")}


def initial_adapter(config, base, out):
    """A first adapter with PEFT's law, A uniform in ±1/√in and B zero, drawn by the seed: engines that do not seed
    theirs load it."""
    import torch
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    from . import targets

    lora, model = config["lora"], targets.bare(base)
    shape = LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets.of(config, model),
        task_type="CAUSAL_LM",
    )
    with init_empty_weights():
        model = get_peft_model(model, shape)
    generator, tensors = torch.Generator().manual_seed(config["seed"]), {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            tensor = torch.zeros(parameter.shape)
            if "lora_A" in name:
                bound = parameter.shape[1] ** -0.5
                tensor.uniform_(-bound, bound, generator=generator)
            tensors[name.replace(".default", "")] = tensor
    model.peft_config["default"].save_pretrained(out)
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})


def trl(path, changes, backbone, *, data, base, out):
    """Arguments of `bone-train`, which finds its rewards by BONE_REWARDS."""
    where = lambda path: str(pathlib.Path(path).absolute())
    given = {"--backbone": backbone, "--data": where(data), "--base": where(base), "--out": f"{out}/bone"}
    return [[where(path)], *map(list, given.items()), *(["--set", change] for change in changes)]


def write(path, changes, backbone, engine, *, data, base, rewards, out, gpus):
    """The directory `out`: `run` with the engine's command, and what it needs beside, as the prompts."""
    config = settings.read(path, changes)
    check(config, engine)
    settings.column(config, backbone)
    out = pathlib.Path(out).absolute()
    if engine == "trl":
        out.mkdir(parents=True)
        arguments = trl(path, changes, backbone, data=data, base=base, out=out)
        launcher = ["accelerate", "launch", "--num_processes", str(gpus), "-m", "bone_train"]
    else:
        from . import targets

        targets.of(config, targets.bare(base))
        prompts(config, engine, data=data, base=base, out=out)
        arguments, module = ENGINES[engine]
        arguments = arguments(config, base=str(base), rewards=rewards, out=str(out), gpus=gpus)
        launcher = ["python", "-m", module]
    command = " \\\n  ".join(map(shlex.join, [launcher, *arguments]))
    run = out / "run"
    run.write_text(
        f"#!/usr/bin/env bash\n# Backbone {backbone}; its rewards are to be served at $BONE_REWARDS.\nset -euo pipefail\n"
        f'export BONE_REWARDS="${{BONE_REWARDS:-{rewards}}}"\n{command} "$@"\n'
    )
    run.chmod(0o755)


def prompts(config, engine, *, data, base, out):
    """Makes `out` with the prompts of all steps, and for verl a first adapter."""
    from transformers import AutoTokenizer

    from . import rows

    known = rows.short(rows.read(config["data"], data), AutoTokenizer.from_pretrained(base), config["data"]["max_prompt_tokens"])
    drawn = rows.steps(known, config)
    turns = lambda row: [{"role": "user", "content": row["prompt"]}]
    out.mkdir(parents=True)
    if engine == "openrlhf":
        lines = [json.dumps({"input": turns(row), "label": json.dumps(row)}) for row in drawn]
        (out / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    else:
        import datasets

        table = [
            {"data_source": config["name"], "prompt": turns(row), "reward_model": {"style": "rule", "ground_truth": json.dumps(row)}}
            for row in drawn
        ]
        datasets.Dataset.from_list(table).to_parquet(out / "prompts.parquet")
        initial_adapter(config, base, out / "initial")


def main(arguments=None):
    cli = argparse.ArgumentParser(prog="bone-export", description="Writes a configuration for TRL, OpenRLHF or verl.")
    cli.add_argument("config", help="the configuration that train-backbones reads")
    cli.add_argument("--engine", required=True, choices=["trl", *ENGINES])
    cli.add_argument("--backbone", required=True, metavar="NAME")
    cli.add_argument("--rewards", required=True, metavar="URL", help="where `train-backbones serve-rewards` listens for this backbone")
    cli.add_argument("--base", required=True, metavar="DIR", help="θ_sft: the base's directory, a supervised adapter merged into it")
    cli.add_argument("--data", default=".", metavar="DIR", help="directory that the configuration's data paths are relative to")
    cli.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    cli.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs of the machine")
    cli.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a setting of the configuration")
    given = cli.parse_args(arguments)
    try:
        write(
            given.config, given.set, given.backbone, given.engine, data=given.data, base=given.base,
            rewards=given.rewards, out=given.out, gpus=given.gpus,
        )
    except (SettingsError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"bone-export: {error}")


if __name__ == "__main__":
    main()
