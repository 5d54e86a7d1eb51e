"""One backbone with TRL's RLOO or GRPO trainer."""

import os
import pathlib
import shutil

import accelerate
import datasets
import peft
import torch
import transformers
import trl
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

from . import bone, rows, settings, targets
from .rewards import Rewards
from .settings import SettingsError

VERSIONS = {module.__name__: module.__version__ for module in (accelerate, peft, torch, transformers, trl)}
TRAINERS = {"rloo": (trl.RLOOTrainer, trl.RLOOConfig), "grpo": (trl.GRPOTrainer, trl.GRPOConfig)}
# GRPO with the plain sum of its group's advantages: no scale of rewards, no mean over an answer's length.
GRPO = {"scale_rewards": "none", "loss_type": "dr_grpo", "multi_objective_aggregation": "sum_then_normalize"}


def moves(config):
    """Whether the reward weights follow the rewards."""
    return config["balance"]["strategy"] != "average"


def arguments(config, trainer, out, processes, per_device=None):
    """TRL's arguments for a configuration."""
    rl, rollout, optimizer = config["rl"], config["rollout"], config["optimizer"]
    per_device = per_device or max(rl["batch"] // processes, 1)
    if rl["batch"] % (per_device * processes):
        settings.refuse("rl.batch", rl["batch"], f"a multiple of {per_device} on each of {processes} processes (--per-device)")
    return {
        "output_dir": str(out),
        "seed": config["seed"],
        "max_steps": rl["steps"],
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rl["batch"] // (per_device * processes),
        "num_generations": rollout["samples"],
        "num_iterations": 1,
        "max_completion_length": rollout["max_new_tokens"],
        "temperature": rollout["temperature"],
        "beta": rl["kl"],
        "learning_rate": rl["learning_rate"],
        "lr_scheduler_type": rl["decay"],
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "adam_beta1": optimizer["beta1"],
        "adam_beta2": optimizer["beta2"],
        "adam_epsilon": optimizer["epsilon"],
        "weight_decay": optimizer["weight_decay"],
        "max_grad_norm": optimizer["max_grad_norm"],
        "gradient_checkpointing": rl["recompute"],
        "disable_dropout": False,
        "shuffle_dataset": False,  # rows.steps has the order: TRL's own begins again where a run is taken up
        "remove_unused_columns": False,
        "logging_steps": 1,
        # Where the weights move, the service goes back no further than to its last step.
        "save_steps": 1 if moves(config) else rl["checkpoint_every"],
        "save_total_limit": 1,
        **(GRPO if trainer == "grpo" else {}),
    }


def last_kl(history):
    """The KL to θ_sft of the last step, in nats an answer; `None` where it was not computed."""
    logged = [entry for entry in history if "kl" in entry and "completions/mean_length" in entry]
    return float(logged[-1]["kl"]) * float(logged[-1]["completions/mean_length"]) if logged else None


def base_directory(config, override):
    """The base's directory: the one given, the configuration's, an imported model's or a hub model's."""
    home = os.environ.get("LADLE_HOME", pathlib.Path.home() / ".cache/ladle")
    models = pathlib.Path(os.environ.get("LADLE_MODELS_DIR", pathlib.Path(home, "models")))
    known = [override] if override else [config["base"], models / config["base"]]
    for directory in map(pathlib.Path, known):
        if (directory / "config.json").is_file():
            return directory
    if override:
        settings.refuse("--base", override, "a model's directory")
    from huggingface_hub import snapshot_download

    return pathlib.Path(snapshot_download(config["base"], allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))


def clipped(trainer, limit):
    """The trainer with advantages clipped to ± `limit` (`rl.advantage_clip`)."""

    class Clipped(trainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            output["advantages"] = output["advantages"].clamp(-limit, limit)
            return output

    return Clipped


def build(config, backbone, service, out, *, data=".", base=None, sft=None, trainer="rloo", per_device=None, dtype="float32", extra=None):
    """The trainer of `backbone`, ready to train."""
    column = settings.column(config, backbone)
    if config["sft"] is not None and sft is None:
        raise SettingsError("sft: this configuration has it: expected --sft with the adapter (adapters/sft of `train-backbones sft`)")
    if config["sft"] is None and sft is not None:
        settings.refuse("--sft", sft, "none: the configuration has no [sft]")
    base = base_directory(config, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    known = rows.short(rows.read(config["data"], data), tokenizer, config["data"]["max_prompt_tokens"])
    rl, lora = config["rl"], config["lora"]
    kind, form = TRAINERS[trainer]
    given = arguments(config, trainer, out, accelerate.PartialState(cpu=not torch.cuda.is_available()).num_processes, per_device)
    given["reward_weights"] = column
    for key in extra or {}:
        if key in given:
            settings.refuse(f"--trl {key}", "given", "left out: the configuration decides it")
    # TRL computes in bf16 unless told otherwise, also where the weights are in float32.
    defaults = {"report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(), "bf16": dtype == "bfloat16"}
    args = form(**given, **{**defaults, **(extra or {})})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if sft is not None:
        model = PeftModel.from_pretrained(model, sft).merge_and_unload()
    adapter = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets.of(config, model),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=rows.generation_prompt(tokenizer) if lora["activation"] == "answer" else None,
    )
    rewards = Rewards(service, settings.objectives(config), moves(config))
    # TRL draws the adapter from args.seed: all backbones of a soup begin with the same A.
    made = clipped(kind, rl["advantage_clip"])(
        model=model,
        reward_funcs=rewards.functions,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows.dataset(rows.steps(known, config), tokenizer)),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    made.model.peft_config["default"].base_model_name_or_path = config["base"]
    rewards.trainer = made
    return made


def run(config, backbone, service, out, *, base=None, sft=None, **options):
    """Trains `backbone` and leaves its bone in `out`, which appears whole or not at all. A run that was killed
    goes on from its last checkpoint."""
    out = pathlib.Path(out)
    if out.exists():
        settings.refuse("--out", out, "a directory that does not exist yet")
    bone.belongs(service.state(), config, backbone)
    work = out.with_name(out.name + ".part")
    trainer = build(config, backbone, service, work / "checkpoints", base=base, sft=sft, **options)
    rl, processes = config["rl"], trainer.accelerator.num_processes
    trainer.accelerator.print(f"{backbone}: {rl['steps']} steps of {rl['batch']} answers, {processes} processes")
    checkpoints = work / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    saved, bare = work / "saved", work / "bone"
    trainer.save_model(str(saved))
    if trainer.accelerator.is_main_process:
        bare.mkdir(exist_ok=True)
        for name in ("adapter_config.json", bone.WEIGHTS):
            shutil.copyfile(saved / name, bare / name)
        bone.write(
            bone.describe(
                config, backbone, service.state(), base=base_directory(config, base), sft=sft, weights=bare,
                steps=trainer.state.global_step, kl=last_kl(trainer.state.log_history), engine={"name": "trl", "versions": VERSIONS},
            ),
            bare,
        )
        bare.rename(out)
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()
