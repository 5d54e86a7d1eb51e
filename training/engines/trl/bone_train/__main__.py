"""`bone-train CONFIG --backbone NAME --rewards URL --out DIR`."""

import argparse
import os
import sys
import tomllib

from . import settings
from .service import Service, ServiceError


def parser():
    cli = argparse.ArgumentParser(prog="bone-train", description="Trains one backbone of a soup with TRL.")
    cli.add_argument("config", help="the configuration that train-backbones reads")
    cli.add_argument("--backbone", required=True, metavar="NAME", help="the objective whose column of B weighs the rewards")
    cli.add_argument("--rewards", default=os.environ.get("BONE_REWARDS"), metavar="URL", help="where `train-backbones serve-rewards` listens for this backbone (BONE_REWARDS)")
    cli.add_argument("--out", required=True, metavar="DIR", help="directory of the adapter and bone.json")
    cli.add_argument("--data", default=".", metavar="DIR", help="directory that the configuration's data paths are relative to")
    cli.add_argument("--base", metavar="DIR", help="the base model's directory, where the configuration names an id")
    cli.add_argument("--sft", metavar="DIR", help="the supervised adapter, merged into the base first")
    cli.add_argument("--trainer", choices=["rloo", "grpo"], default="rloo", help="TRL's trainer")
    cli.add_argument("--per-device", type=int, metavar="N", help="answers of one forward and backward on each process")
    cli.add_argument("--dtype", choices=list(settings.DTYPES.values()), help="type of the frozen weights and of products, where not the configuration's precision (--trl bf16=true: products in bf16 on weights in float32)")
    cli.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a setting of the configuration")
    cli.add_argument("--trl", action="append", default=[], metavar="KEY=VALUE", help="a setting of TRL's own, such as use_vllm=true")
    return cli


def main(arguments=None):
    given = parser().parse_args(arguments)
    try:
        config = settings.read(given.config, given.set)
        settings.column(config, given.backbone)
        if not given.rewards:
            settings.refuse("--rewards", "missing", "the URL of the reward service")
        extra = {}
        for setting in given.trl:
            settings.apply(extra, setting)
        # torch is loaded when the configuration is known to be good.
        from . import train

        train.run(
            config, given.backbone, Service(given.rewards), given.out, data=given.data, base=given.base, sft=given.sft,
            trainer=given.trainer, per_device=given.per_device, dtype=given.dtype or settings.DTYPES[config["precision"]], extra=extra,
        )
    except (settings.SettingsError, ServiceError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"bone-train: {error}")


if __name__ == "__main__":
    main()
