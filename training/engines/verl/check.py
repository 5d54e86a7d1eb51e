"""Composes a directory that `bone-export --engine verl` made with verl's own configuration.

    python3 training/engines/verl/check.py OUT        # beside `pip install --no-deps verl` and hydra-core

Only its configuration is read, so neither its engines nor a GPU need be there. Without the package nothing is
checked, and that is said."""

import importlib.util
import pathlib
import shlex
import sys


def overrides(run):
    """The overrides of the command in a `run` file."""
    words = shlex.split(run.read_text().replace("\\\n", "").split("\npython -m ", 1)[1])
    return words[1:-1]  # the module in front, "$@" behind


def main():
    spec = importlib.util.find_spec("verl")
    if spec is None or importlib.util.find_spec("hydra") is None:
        print("verl or hydra is not installed: nothing was checked (pip install --no-deps verl; pip install hydra-core)")
        return
    from hydra import compose, initialize_config_dir

    out = pathlib.Path(sys.argv[1])
    configurations = pathlib.Path(spec.submodule_search_locations[0]).resolve() / "trainer/config"
    with initialize_config_dir(str(configurations), version_base=None):
        # An unknown key, or a value of another type, is an error.
        config = compose("ppo_trainer", overrides(out / "run"))
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    for path in (config.data.train_files, config.actor_rollout_ref.model.lora_adapter_path, config.reward.reward_manager.module.path):
        if not pathlib.Path(path).exists():
            sys.exit(f"check: {path} is not there")
    print(
        f"taken: {config.algorithm.adv_estimator}, {config.trainer.total_training_steps} steps of "
        f"{config.data.train_batch_size} prompts with {rollout.n} answers, {actor.loss_agg_mode}, KL "
        f"{config.algorithm.kl_ctrl.kl_coef}, rewards from {config.reward.reward_manager.name}"
    )


if __name__ == "__main__":
    main()
