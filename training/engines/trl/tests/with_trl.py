"""Training with the real TRL on a tiny random model, on the CPU; what is not installed is skipped by name.

    python3 training/engines/trl/tests/with_trl.py        # `pip install training/engines/trl` first

The rewards are a stand-in's, and those of `train-backbones serve-rewards` where it is built."""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import types
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT / "training/engines/trl"), str(pathlib.Path(__file__).parent)]

from stand_in import REWARDS, StandIn

try:
    import torch
    import transformers
    from safetensors.torch import load_file
    from trl.trainer.utils import pad

    from bone_train import export, rows, settings, train
    from bone_train.service import Service

    MISSING = None
except ImportError as error:
    MISSING = f"{error}: pip install {ROOT}/training/engines/trl"

CONFIG = f"""
name = "tiny"
seed = 3
base = {json.dumps(str(ROOT / "tests/fixtures/soup-tiny/base"))}
lora = {{ rank = 4, alpha = 8.0 }}
rollout = {{ max_new_tokens = 1, samples = 4 }}
rl = {{ algorithm = "rloo", steps = 40, batch = 32, learning_rate = 2e-2, kl = 0.0, kl_target = 0.0, standardise_on = 64, checkpoint_every = 10 }}
[data]
format = "jsonl"
template = "{{{{ question }}}}"
reference = "answer"
train = "rows.jsonl"
[[objectives]]
name = "vowels"
reward = {{ kind = "regex", pattern = '{REWARDS["vowels"]}' }}
[[objectives]]
name = "others"
reward = {{ kind = "regex", pattern = '{REWARDS["others"]}' }}
"""
PROCESSES = 2


@unittest.skipIf(MISSING, MISSING)
class WithTrlTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.directory = pathlib.Path(self.folder.name)
        self.config = self.directory / "config.toml"
        self.config.write_text(CONFIG)
        asked = [{"question": f"What is {row} and why?", "answer": f"It is {row}."} for row in range(24)]
        (self.directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))

    def launch(self, backbone, url, *more, processes=PROCESSES, succeeds=True):
        """`bone-train` in several processes; the directory of the bone and what it printed."""
        out = self.directory / f"bone-{backbone}"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "bone_train",
            str(self.config), f"--backbone={backbone}", f"--rewards={url}", f"--out={out}", f"--data={self.directory}", *more,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "training/engines/trl"), *sys.path])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        self.assertEqual(done.returncode == 0, succeeds, done.stdout[-2000:] + done.stderr[-4000:])
        self.assertIn(f"answers, {processes} processes", done.stdout)
        return out, done.stdout + done.stderr

    def build(self, backbone, url, *changes, **options):
        return train.build(
            settings.read(self.config, changes), backbone, Service(url), self.directory / f"part-{backbone}",
            data=self.directory, **options,
        )

    def test_backbones_reach_a_known_optimum_in_two_processes_over_the_same_prompts(self):
        # An answer earns by its first letter alone: a backbone's optimum is to say its own always.
        order = []
        for index, backbone in enumerate(REWARDS):
            column = [0.6 if other == index else 0.4 for other in range(2)]
            with StandIn(backbone, column) as stand_in:
                out, _ = self.launch(backbone, stand_in.url)
            rewards = [stand_in.rewards({**body, "step": 0})["rows"] for body in stand_in.asked]
            self.assertEqual({len(rows) for rows in rewards}, {32})
            scale = stand_in.state()["standardiser"]
            raw = [[row["standardised"][index] * scale["std"][index] + scale["mean"][index] for row in step] for step in rewards]
            reached = sum(sum(step) for step in raw[-5:]) / (5 * 32)
            print(f"{backbone}: {sum(raw[0]) / 32:.2f} at first, {reached:.2f} at last")
            self.assertGreater(reached, 0.9, backbone)
            order.append([[row["prompt"] for row in body["rows"]] for body in stand_in.asked[:40]])
            bone = json.loads((out / "bone.json").read_text())
            self.assertEqual((bone["backbone"], bone["steps"], bone["activation"]), (backbone, 40, "all"))
            self.assertEqual({path.name for path in out.iterdir()}, {"bone.json", "adapter_config.json", "adapter_model.safetensors"})
        self.assertEqual(*order)
        self.assertGreater(len({prompt for step in order[0] for prompt in step}), 20)

    def test_backbones_begin_with_one_a_bit_by_bit(self):
        def first(backbone, *changes):
            with StandIn(backbone, [0.5, 0.5]) as stand_in:
                model = self.build(backbone, stand_in.url, *changes).model
            return {name: tensor.detach() for name, tensor in model.named_parameters() if "lora_A" in name}

        one, other = first("vowels"), first("others")
        seeded = first("vowels", "seed=4")
        self.assertEqual(len(one), 14)
        for name in one:
            self.assertTrue(torch.equal(one[name], other[name]), name)
            self.assertFalse(torch.equal(one[name], seeded[name]), name)

    def test_trl_weighs_the_rewards_as_the_service_does_while_the_weights_move(self):
        for kind in ("rloo", "grpo"):
            with StandIn("vowels", [0.6, 0.4], later=[0.7, 0.3]) as stand_in:
                changes = ['balance.strategy="inverse"', "rl.steps=3", "rollout.max_new_tokens=6", "rl.kl=0.05"]
                trainer = self.build("vowels", stand_in.url, *changes, trainer=kind)
                trainer.train()
            logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
            self.assertEqual([body["step"] for body in stand_in.asked], [0, 1, 2])
            for step, body in enumerate(stand_in.asked):
                answer = stand_in.rewards(body)
                mixed = [sum(w * r for w, r in zip(answer["weights"], row["standardised"])) for row in answer["rows"]]
                self.assertAlmostEqual(logged[step], sum(mixed) / 32, delta=1e-6)
            shown = torch.tensor([list(trainer._logs["rewards"][name]) for name in REWARDS]).T
            weighed = (shown * trainer.reward_weights).sum(1).tolist()
            self.assertEqual(len(weighed), 32)
            for got, expected in zip(weighed, mixed):
                self.assertAlmostEqual(got, expected, delta=1e-6)

    def test_weights_in_float32_are_multiplied_in_float32(self):
        # TRL's own default is bf16 on any weights.
        for changes, dtype in (({}, torch.float32), ({"extra": {"bf16": True}}, torch.bfloat16)):
            with StandIn("vowels", [0.6, 0.4]) as stand_in:
                trainer = self.build("vowels", stand_in.url, "rl.steps=1", **changes)
                made = set()
                for name, module in trainer.model.named_modules():
                    if name.endswith("mlp.down_proj"):
                        module.register_forward_hook(lambda _, __, output: made.add(output.dtype))
                trainer.train()
            self.assertIn(dtype, made)
            self.assertEqual(torch.bfloat16 in made, dtype == torch.bfloat16)

    def test_answer_only_adapters_act_from_the_generation_prompt_on(self):
        with StandIn("vowels", [0.6, 0.4]) as stand_in:
            trainer = self.build("vowels", stand_in.url, 'lora.activation="answer"', "rl.steps=2", "rollout.max_new_tokens=4")
            trainer.train()
        model, tokenizer = trainer.model, trainer.processing_class
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        prompts = [rows.prompt_tokens(tokenizer, text) for text in ("What is 1 and why?", "Why is 2 smaller than 10?")]
        opening, answer = len(rows.generation_prompt(tokenizer)), [40, 41, 42]
        tokens = [torch.tensor(prompt + answer) for prompt in prompts]
        ids = pad(tokens, padding_value=0, padding_side="left")
        mask = pad([torch.ones_like(row) for row in tokens], padding_value=0, padding_side="left")
        with torch.no_grad():
            adapted = model(input_ids=ids, attention_mask=mask).logits
            with model.disable_adapter():
                plain = model(input_ids=ids, attention_mask=mask).logits
        before = -(opening + len(answer))
        for row, prompt in enumerate(tokens):
            self.assertTrue(torch.equal(adapted[row, -len(prompt) : before], plain[row, -len(prompt) : before]))
            changed = (adapted[row, before:] - plain[row, before:]).abs().amax(1)
            self.assertGreater(changed.min().item(), 1e-3)
        self.assertEqual(model.peft_config["default"].alora_invocation_tokens, prompts[0][-opening:])

    def test_a_run_that_was_killed_goes_on_with_the_same_prompts(self):
        changes = ["--set=rl.steps=6", "--set=rl.checkpoint_every=2"]
        with StandIn("vowels", [0.6, 0.4]) as stand_in:
            whole, _ = self.launch("vowels", stand_in.url, *changes, processes=1)
            expected = [[row["prompt"] for row in body["rows"]] for body in stand_in.asked]
        whole = whole.rename(self.directory / "whole")
        with StandIn("vowels", [0.6, 0.4], die_after=5) as stand_in:
            _, printed = self.launch("vowels", stand_in.url, *changes, processes=1, succeeds=False)
            self.assertIn("rewards of step 5", printed)
            self.assertFalse((self.directory / "bone-vowels").exists())
            stand_in.die_after = None
            out, _ = self.launch("vowels", stand_in.url, *changes, processes=1)
        # The checkpoint after four steps, in the second epoch of prompts, is where it goes on.
        self.assertEqual([[row["prompt"] for row in body["rows"]] for body in stand_in.asked], expected[:5] + expected[4:])
        one, other = (load_file(where / "adapter_model.safetensors") for where in (whole, out))
        for name in one:
            self.assertTrue(torch.equal(one[name], other[name]), name)

    def test_inputs_that_do_not_belong_together_are_refused(self):
        with StandIn("others", [0.4, 0.6]) as stand_in:
            for backbone, options, words in (
                ("vowels", {}, "backbone of the reward service is others, expected vowels"),
                ("others", {"sft": "x"}, "--sft is x, expected none"),
                ("others", {"extra": {"beta": 1.0}}, "--trl beta is given"),
                ("others", {"per_device": 5}, "rl.batch is 32, expected a multiple of 5"),
                ("others", {"base": "nowhere"}, "--base is nowhere"),
            ):
                with self.assertRaisesRegex(settings.SettingsError, words):
                    train.run(settings.read(self.config), backbone, Service(stand_in.url), self.directory / "out", data=self.directory, **options)
            with self.assertRaisesRegex(settings.SettingsError, "data.max_prompt_tokens is 3"):
                self.build("others", stand_in.url, "data.max_prompt_tokens=3")
            with self.assertRaisesRegex(settings.SettingsError, "sft: .* expected --sft"):
                self.build("others", stand_in.url, "sft={}")

    def test_adapters_are_on_every_linear_layer_unless_targets_are_named(self):
        base, fused = ROOT / "tests/fixtures/models/phi3", ["qkv_proj", "gate_up_proj"]
        for targets, expected in ((None, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), (fused, fused)):
            out = self.directory / f"initial-{targets is None}"
            config = settings.read(self.config, [] if targets is None else [f"lora.targets={json.dumps(targets)}"])
            export.initial_adapter(config, base, out)
            adapted = {name.split(".")[-3] for name in load_file(out / "adapter_model.safetensors")}
            self.assertEqual(adapted, set(expected))

    def test_a_target_that_no_layer_of_the_base_has_is_refused_with_those_that_it_has(self):
        llama, fused = '["q_proj","qkv_proj"]', '["o_proj","q_proj"]'
        with StandIn("vowels", [0.6, 0.4]) as stand_in:
            with self.assertRaisesRegex(settings.SettingsError, "lora.targets is qkv_proj, expected .* q_proj, k_proj, v_proj, o_proj"):
                self.build("vowels", stand_in.url, f"lora.targets={llama}")
        for engine in ("openrlhf", "verl"):
            out = self.directory / engine
            given = {"data": self.directory, "base": ROOT / "tests/fixtures/models/phi3", "rewards": "http://rewards", "out": out, "gpus": 1}
            with self.assertRaisesRegex(settings.SettingsError, "lora.targets is q_proj, expected .* o_proj, qkv_proj, gate_up_proj, down_proj"):
                export.write(self.config, [f"lora.targets={fused}"], "vowels", engine, **given)
            self.assertFalse(out.exists())

    def test_verl_s_reward_manager_asks_for_what_the_tokens_say(self):
        # verl itself is not needed: its base class keeps the tokenizer, its data are tensors by name.
        base = types.ModuleType("verl.experimental.reward_loop.reward_manager.base")
        base.RewardManagerBase = type("RewardManagerBase", (), {"__init__": lambda self, config, tokenizer, score: setattr(self, "tokenizer", tokenizer)})
        parts = base.__name__.split(".")
        modules = {".".join(parts[:end]): types.ModuleType(".".join(parts[:end])) for end in range(1, len(parts))}
        tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "tests/fixtures/soup-tiny/base")
        answer, padding = tokenizer("a b")["input_ids"] + [tokenizer.eos_token_id], [0, 0]
        row = {"prompt": "Why?", "references": [], "fields": {}}
        item = types.SimpleNamespace(
            batch={"responses": torch.tensor(answer + padding), "attention_mask": torch.tensor([1] * 3 + [1] * len(answer) + [0, 0])},
            non_tensor_batch={"reward_model": {"ground_truth": json.dumps(row)}},
        )
        with StandIn("vowels", [0.6, 0.4], refuse_first=1) as stand_in, unittest.mock.patch.dict(sys.modules, {**modules, base.__name__: base}):
            with unittest.mock.patch.dict(os.environ, {"BONE_REWARDS": stand_in.url}):
                from bone_train.verl_reward import BoneRewardManager

                got = asyncio.run(BoneRewardManager({}, tokenizer).run_single([item]))
        self.assertEqual(stand_in.asked, [{"rows": [{**row, "response": tokenizer.decode(answer[:-1]), "finished": True}]}])
        self.assertEqual(got["reward_extra_info"], {"vowels": 1.0, "others": 0.0})
        self.assertAlmostEqual(got["reward_score"], 0.6 * 1.5 - 0.4 * 1.0)

    def test_rewards_weights_and_bone_are_those_of_train_backbones(self):
        binary = pathlib.Path(os.environ.get("TRAIN_BACKBONES", ROOT / "target/release/train-backbones"))
        if not binary.is_file():
            self.skipTest(f"{binary} is not built")
        run, data = self.directory / "run", f"--data={self.directory}"
        changes = ["sft.steps=2", "sft.lora.rank=4", "rollout.max_new_tokens=6", "rl.steps=4", 'balance.strategy="inverse"', "balance.every=1", "rl.kl=0.05"]
        subprocess.run([binary, "sft", self.config, "--out", run, data, *(f"--set={one}" for one in changes)], check=True, capture_output=True)
        self.config = run / "config.toml"
        command = [binary, "serve-rewards", self.config, "--backbone=vowels", f"--share={run}", data, f"--state={run}/vowels.json", "--listen=127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        url = server.stdout.readline().removeprefix("rewards on ").strip()

        asked, service = [], Service(url)
        ask = service.ask
        service.ask = lambda path, body=None: asked.append((path, body, ask(path, body))) or asked[-1][2]
        config, out = settings.read(self.config), self.directory / "bone"
        trainers, build = [], train.build
        self.addCleanup(setattr, train, "build", build)
        train.build = lambda *args, **options: trainers.append(build(*args, **options)) or trainers[-1]
        train.run(config, "vowels", service, out, data=self.directory, sft=str(run / "adapters/sft"))

        (trainer,) = trainers
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        scored = [(body, answer) for path, body, answer in asked if path == "/rewards"]
        self.assertEqual([body["step"] for body, _ in scored], [0, 1, 2, 3])
        weights = [answer["weights"] for _, answer in scored]
        self.assertGreater(len({tuple(one) for one in weights}), 1)  # they moved
        for entry, (_, answer) in zip(logged, scored):
            mixed = [row["reward"] for row in answer["rows"]]
            self.assertAlmostEqual(entry["reward"], sum(mixed) / len(mixed), delta=1e-6)
        shown = torch.tensor([list(trainer._logs["rewards"][name]) for name in REWARDS]).T
        for got, expected in zip((shown * trainer.reward_weights).sum(1).tolist(), mixed, strict=True):
            self.assertAlmostEqual(got, expected, delta=1e-6)

        bone = json.loads((out / "bone.json").read_text())
        for index, realised in enumerate(bone["realised"]):
            self.assertAlmostEqual(realised, sum(one[index] for one in weights) / 4, delta=1e-9)
        self.assertEqual(bone["standardiser"], tomllib.loads((run / "standardiser.toml").read_text()))
        self.assertEqual(list(bone["sft"]), ["adapter_model.safetensors"])
        self.assertAlmostEqual(bone["kl"]["last"], logged[-1]["kl"] * logged[-1]["completions/mean_length"], delta=1e-9)


if __name__ == "__main__":
    unittest.main()
