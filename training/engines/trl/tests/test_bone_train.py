"""What needs neither TRL nor torch: settings, the reward service's client, bone.json.

    python3 -m unittest discover --start-directory training/engines/trl/tests
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT / "training/engines/trl"), str(pathlib.Path(__file__).parent)]

if sys.version_info >= (3, 11):
    from bone_train import bone, describe, export, settings
    from bone_train.__main__ import main
    from bone_train.service import Service, ServiceError
    from bone_train.settings import SettingsError
    from stand_in import REWARDS, StandIn

CONFIG = """
name = "tiny"
seed = 3
base = "tests/fixtures/soup-tiny/base"
lora = { rank = 4, alpha = 8.0 }
rollout = { max_new_tokens = 1, samples = 4 }
rl = { algorithm = "rloo", steps = 2, batch = 32, kl_target = 0.0 }
[data]
format = "jsonl"
template = "{{ question }}"
reference = "answer"
train = "rows.jsonl"
[[objectives]]
name = "vowels"
reward = { kind = "regex", pattern = "^ ?[aeiou]" }
[[objectives]]
name = "others"
reward = { kind = "regex", pattern = "^ ?[b-df-hj-np-tv-z]" }
"""


@unittest.skipIf(sys.version_info < (3, 11), "the configuration is read with Python 3.11")
class BoneTrainTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.directory = pathlib.Path(self.folder.name)
        self.path = self.directory / "config.toml"
        self.path.write_text(CONFIG)

    def test_defaults_are_those_that_train_backbones_writes_out(self):
        train = pathlib.Path(os.environ.get("TRAIN_BACKBONES", ROOT / "target/release/train-backbones"))
        if not train.is_file() and "LADLE_TEST_COMPLETE" not in os.environ:
            self.skipTest(f"{train} is not built")
        (self.directory / "rows.jsonl").write_text(json.dumps({"question": "Why?", "answer": "So."}) + "\n")
        out = self.directory / "run"
        changes = ["rl.standardise_on=1", "sft.steps=1", "sft.lora.rank=2"]
        command = [train, "sft", self.path, "--out", out, "--data", self.directory, *(f"--set={one}" for one in changes)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        theirs, ours = settings.read(out / "config.toml"), settings.read(self.path, changes)
        for name in settings.DEFAULTS.keys() - {"base"}:  # which is an absolute path there
            self.assertEqual(theirs[name], ours[name], name)

    def test_every_configuration_of_the_project_is_taken_or_refused_by_name(self):
        taken = {"scitldr.toml", "scitldr-demo.toml"}
        for path in sorted((ROOT / "training/configs").glob("*.toml")):
            if path.name in taken:
                self.assertEqual(settings.objectives(settings.read(path)), ["faithful", "brief", "plain"])
                continue
            with self.assertRaisesRegex(SettingsError, r"^(data|(data|rl)\.[a-z_]+) is .+, expected ", msg=path.name):
                settings.read(path)

    def test_what_trl_cannot_do_is_refused_by_name(self):
        for change, words in (
            ('rl.algorithm="ppo"', "rl.algorithm is 'ppo', expected \"rloo\""),
            ("precision='f16'", "precision is 'f16', expected \"f32\" or \"bf16\""),
            ("rl.kl_target=3.0", "rl.kl_target is 3.0, expected 0"),
            ("rl.gamma=0.9", "rl.gamma"),
            ("rl.keep=[1]", "rl.keep"),
            ("rl.epochs=2", "rl.epochs is 2, expected left out"),
            ("data.documents=3", "data.documents is 3, expected left out"),
            ('data.format="scitldr"', "data.reference is 'answer', expected left out"),
            ("rl.decay_steps=9", "rl.decay_steps"),
            ("rl.batch=30", "rl.batch is 30, expected a multiple of rollout.samples"),
            ("rollout.samples=1", "rollout.samples"),
            ('balance.strategy="gdpo"', "balance.strategy"),
            ("lora.targets=[]", "lora.targets is [], expected at least one"),
            ("lora.shared=false", "lora.shared is False, expected true"),
            ('data.format="alce"', "data.format"),
            ('data.malformed="skip"', "data.malformed"),
            ("data.split=[0.8,0.1,0.1]", "data.split"),
            ('data.rewards=["vowels"]', "data.rewards"),
            ("rl.stepz=1", "rl.stepz is given, expected one of algorithm, steps"),
            ("nonsense=1", "nonsense is given"),
            ("rl.steps", "expected key=value"),
        ):
            with self.assertRaisesRegex(SettingsError, words.replace("[", r"\["), msg=change):
                settings.read(self.path, [change])
        self.path.write_text(CONFIG.replace("[data]", "[[data]]"))
        with self.assertRaisesRegex(SettingsError, "data is 1 data sets"):
            settings.read(self.path)
        self.path.write_text(CONFIG.replace('name = "tiny"', ""))
        with self.assertRaisesRegex(SettingsError, "name is missing"):
            settings.read(self.path)

    def test_columns_of_b(self):
        column = lambda change, backbone: settings.column(settings.read(self.path, [change]), backbone)
        self.assertEqual(column("mixing={beta=0.75}", "others"), [0.25, 0.75])
        self.assertEqual(column("mixing={identity=true}", "vowels"), [1.0, 0.0])
        # Rows of B, whose column has the sum 1 in the end.
        self.assertEqual(column("mixing={matrix=[[0.75,0.5],[0.25,1.5]]}", "others"), [0.25, 0.75])
        with self.assertRaisesRegex(SettingsError, "mixing.weights"):
            column("mixing={weights=[3.0,1.0]}", "policy")
        with self.assertRaisesRegex(SettingsError, "--backbone is 'sft', expected one of vowels, others"):
            column("mixing={beta=0.6}", "sft")

    def test_a_busy_service_is_asked_again_and_a_refusal_is_not(self):
        rows = [{"prompt": "Why?", "response": "a", "fields": {}, "references": [], "finished": True}]
        with StandIn("vowels", [0.6, 0.4], refuse_first=2) as stand_in:
            scored, weights = Service(stand_in.url).score(7, rows)
            self.assertEqual((scored, weights), ([[1.5, -1.0]], [0.6, 0.4]))
            self.assertEqual(stand_in.asked, [{"step": 7, "rows": rows}])
            stand_in.refusals = 10**6
            with self.assertRaisesRegex(ServiceError, "503: .*busy"):
                Service(stand_in.url, patience=0.3).score(8, rows)
            url = stand_in.url
        with self.assertRaisesRegex(ServiceError, url):
            Service(url, patience=0.3).state()

    def test_a_bone_says_what_it_is(self):
        config = settings.read(self.path)
        (self.directory / "adapter_model.safetensors").write_bytes(b"weights")
        with StandIn("others", [0.4, 0.6]) as stand_in:
            state = Service(stand_in.url).state()
        made = bone.describe(
            config, "others", state, base=self.directory, sft=None, weights=self.directory, steps=2, kl=None, engine={},
        )
        self.assertEqual([round(weight, 12) for weight in made["column"]], [0.4, 0.6])
        self.assertEqual([objective["name"] for objective in made["objectives"]], list(REWARDS))
        self.assertIsNone(made["realised"])
        self.assertNotIn("lead", made["balance"])
        self.assertEqual(made["weights"]["adapter_model.safetensors"], bone.digest(self.directory / "adapter_model.safetensors"))

    def test_an_adapter_of_another_engine_gets_its_bone_and_no_other_backbone_s(self):
        (self.directory / "adapter_model.safetensors").write_bytes(b"weights")
        with StandIn("others", [0.4, 0.6]) as stand_in:
            given = [str(self.directory), str(self.path), f"--rewards={stand_in.url}", f"--base={self.directory}", "--steps=2"]
            describe.main([*given, "--backbone=others", "--engine=verl=0.9.1"])
            made = json.loads((self.directory / "bone.json").read_text())
            self.assertEqual((made["backbone"], made["engine"]), ("others", {"name": "verl", "versions": {"verl": "0.9.1"}}))
            for more, words in (
                (["--backbone=vowels", "--engine=verl=1"], "backbone of the reward service is others, expected vowels"),
                (["--backbone=others", "--engine=verl"], "--engine is 'verl', expected a name and a version"),
                (["--backbone=others", "--engine=verl=1", "--set=mixing={beta=0.7}"], "column of the reward service"),
            ):
                with self.assertRaisesRegex(SystemExit, words):
                    describe.main([*given, *more])

    def test_other_engines_get_the_settings_or_a_refusal_by_name(self):
        given = {"base": "/base", "rewards": "http://rewards", "out": "/out", "gpus": 2}
        config = settings.read(self.path, ["rl.kl=0.02", "rollout.temperature=0.7"])
        arguments = export.openrlhf(config, **given)
        for line in (["--rollout.batch_size", "8"], ["--algo.kl.init_coef", "0.02"], ["--rollout.temperature", "0.7"],
                     ["--train.seed", "3"], ["--reward.remote_url", "http://rewards/get_reward"], ["--actor.adam.betas", "0.9", "0.999"]):
            self.assertIn(line, arguments)
        overrides = export.verl(config, **given)
        for line in ("data.train_batch_size=8", "algorithm.kl_ctrl.kl_coef=0.02", "algorithm.use_kl_in_reward=true",
                     "actor_rollout_ref.rollout.temperature=0.7", "trainer.total_training_steps=2"):
            self.assertIn([line], overrides)
        (manager,) = [line.partition("=")[2] for (line,) in overrides if line.startswith("reward.reward_manager.module.path")]
        self.assertTrue(pathlib.Path(manager).is_file(), manager)
        for engine, change, words in (
            ("openrlhf", 'balance.strategy="inverse"', "balance.strategy is 'inverse', expected \"average\""),
            ("verl", 'lora.activation="answer"', "lora.activation is 'answer', expected \"all\""),
            ("openrlhf", "lora.alpha=8.5", "lora.alpha is 8.5"),
            ("verl", "rl.advantage_clip=5.0", "rl.advantage_clip is 5.0"),
        ):
            with self.assertRaisesRegex(SettingsError, words):
                export.check(settings.read(self.path, [change]), engine)

    def test_the_command_names_what_is_wrong_before_torch_is_loaded(self):
        for arguments, words in (
            (["--backbone", "sft"], "--backbone"),
            (["--backbone", "vowels"], "--rewards is missing"),
            (["--backbone", "vowels", "--set", "rl.gamma=0.5"], "rl.gamma"),
        ):
            with self.assertRaisesRegex(SystemExit, f"bone-train: {words}"):
                main([str(self.path), "--out", str(self.directory / "out"), *arguments])
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
