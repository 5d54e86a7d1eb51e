"""`bone-describe`: bone.json for an adapter that another engine trained."""

import argparse
import pathlib
import sys
import tomllib

from . import bone, settings
from .service import Service, ServiceError


def main(arguments=None):
    cli = argparse.ArgumentParser(prog="bone-describe", description="Writes bone.json beside an adapter that an engine trained.")
    cli.add_argument("adapter", help="directory with adapter_config.json and adapter_model.safetensors")
    cli.add_argument("config", help="the configuration that train-backbones reads")
    cli.add_argument("--backbone", required=True, metavar="NAME")
    cli.add_argument("--rewards", required=True, metavar="URL", help="the reward service that the engine asked")
    cli.add_argument("--base", required=True, metavar="DIR", help="the base's directory, without a supervised adapter")
    cli.add_argument("--sft", metavar="DIR", help="the supervised adapter that was merged into the base")
    cli.add_argument("--steps", type=int, required=True, metavar="N", help="training steps taken")
    cli.add_argument("--kl", type=float, metavar="NATS", help="mean KL of an answer to θ_sft in the last step")
    cli.add_argument("--engine", required=True, metavar="NAME=VERSION", help="what trained it, such as verl=0.9.1")
    cli.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a setting of the configuration")
    given = cli.parse_args(arguments)
    adapter, (engine, _, version) = pathlib.Path(given.adapter), given.engine.partition("=")
    try:
        config = settings.read(given.config, given.set)
        if not version:
            settings.refuse("--engine", repr(given.engine), "a name and a version, such as verl=0.9.1")
        if not (adapter / bone.WEIGHTS).is_file():
            settings.refuse("the adapter", adapter, f"a directory with {bone.WEIGHTS}")
        state = Service(given.rewards).state()
        bone.belongs(state, config, given.backbone)
        made = bone.describe(
            config, given.backbone, state, base=given.base, sft=given.sft, weights=adapter, steps=given.steps, kl=given.kl,
            engine={"name": engine, "versions": {engine: version}},
        )
        bone.write(made, adapter)
    except (settings.SettingsError, ServiceError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"bone-describe: {error}")


if __name__ == "__main__":
    main()
