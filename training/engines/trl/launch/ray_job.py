"""All backbones as tasks of one Ray job, each on a node with its GPUs:

    ray job submit --working-dir training/engines/trl -- python launch/ray_job.py RUN faithful brief plain

RUN is a path that every node sees; OPTIONS of launch/backbone come from the environment. A task whose node dies
is tried again elsewhere and goes on from its checkpoint."""

import argparse
import os
import pathlib
import subprocess

import ray


def parser():
    cli = argparse.ArgumentParser(description="Trains the backbones of a run as tasks of one Ray job.")
    cli.add_argument("run", help="directory that `train-backbones sft` made, which every node sees")
    cli.add_argument("backbones", nargs="+")
    cli.add_argument("--gpus", type=float, default=8, help="GPUs of one backbone")
    cli.add_argument("--cpus", type=float, default=8, help="CPUs of one backbone")
    return cli


def train(run, name, environment):
    # On the node that runs the task: the job's working directory is there.
    launch = pathlib.Path("launch").resolve()
    settings = {"ACCELERATE": str(launch / "fsdp.yaml"), **os.environ, **environment}
    subprocess.run([str(launch / "backbone"), run, name], env=settings, check=True)
    return name


def main():
    given = parser().parse_args()
    ray.init()
    environment = {key: os.environ[key] for key in ("ACCELERATE", "DATA", "PATH", "PYTHONPATH") if key in os.environ}
    task = ray.remote(num_gpus=given.gpus, num_cpus=given.cpus, max_retries=10, retry_exceptions=True)(train)
    for done in ray.get([task.remote(given.run, name, environment) for name in given.backbones]):
        print(f"{given.run}/bones/{done}")


if __name__ == "__main__":
    main()
