"""Adapters that the plug-in writes, with the real `ladle` on a tiny soup; vLLM itself is not needed.

    LADLE_BINARY=target/release/ladle python3 -m unittest discover --start-directory deploy/vllm/tests
"""

import asyncio
import dataclasses
import os
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "deploy/vllm"))

if sys.version_info >= (3, 11):
    from ladle_vllm.adapters import Adapters, PreferenceError, on_grid
    from ladle_vllm.settings import Settings, SettingsError

SOUP = ROOT / "tests/fixtures/soup-tiny"


@unittest.skipIf(sys.version_info < (3, 11), "vLLM's plug-in reads TOML with Python 3.11")
class AdaptersTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        environment = {"LADLE_BINARY": str(ROOT / "target/release/ladle"), **os.environ}
        environment |= {"LADLE_SOUPS": str(SOUP), "LADLE_ADAPTERS": f"{self.folder.name}/adapters"}
        self.settings = Settings.of_environment(environment)
        (self.name,) = self.settings.soups

    def ask(self, adapters, *preferences):
        async def all_at_once():
            return await asyncio.gather(*(adapters.of(self.name, preference) for preference in preferences))

        return asyncio.run(all_at_once())

    def test_a_mix_is_written_once_under_all_its_names_and_is_what_ladle_merges(self):
        objectives = self.objectives()
        names = [",".join(f"{name}=2" for name in objectives), ",".join(f"{name}=1" for name in reversed(objectives))]
        found = set(self.ask(Adapters(self.settings), *names * 4))
        self.assertEqual(len(found), 1)
        expected = pathlib.Path(self.folder.name) / "expected"
        asyncio.run(Adapters(self.settings).ladle(
            "merge", str(SOUP), "--adapter", "--out", str(expected), "--preference", names[0]))
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            self.assertEqual((found.copy().pop() / file).read_bytes(), (expected / file).read_bytes(), file)

    def objectives(self):
        import tomllib

        return [one["name"] for one in tomllib.loads((SOUP / "soup.toml").read_text())["objectives"]]

    def corner(self, index):
        return f"{self.objectives()[index]}=1"

    def test_what_was_handed_out_stays_and_what_an_earlier_process_left_makes_room(self):
        settings = dataclasses.replace(self.settings, most=2)
        adapters = Adapters(settings)
        first, second = self.ask(adapters, self.corner(0), None)
        with self.assertRaisesRegex(PreferenceError, "2 mixes are in use .LADLE_MAX_ADAPTERS"):
            self.ask(adapters, self.corner(1))
        later = Adapters(settings)
        self.assertEqual(self.ask(later, self.corner(0)), [first])
        (third,) = self.ask(later, self.corner(1))
        self.assertEqual([first.is_dir(), second.is_dir(), third.is_dir()], [True, False, True])

    def test_a_grid_gives_neighbours_one_adapter(self):
        adapters = Adapters(dataclasses.replace(self.settings, grid=10))
        one, other = self.objectives()[:2]
        found = self.ask(adapters, f"{one}=0.32,{other}=0.68", f"{one}=0.3,{other}=0.7", f"{one}=0.4,{other}=0.6")
        self.assertEqual(found[0], found[1])
        self.assertNotEqual(found[0], found[2])

    def test_a_rank_bounds_the_adapter_and_the_log_says_what_is_left_out(self):
        import json

        (exact,) = self.ask(Adapters(self.settings), self.corner(0))
        adapters = Adapters(dataclasses.replace(self.settings, rank=3))
        with self.assertLogs("vllm.ladle", "INFO") as told:
            (small,) = self.ask(adapters, self.corner(0))
        self.assertRegex(told.output[0], r"rank 3 of 15 leaves out \d+\.\d % of the change")
        self.assertNotEqual(exact, small)
        self.assertEqual([json.loads((one / "adapter_config.json").read_text())["r"] for one in (exact, small)], [15, 3])

    def test_a_preference_on_the_grid_sums_to_one(self):
        self.assertEqual(on_grid({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 10), {"a": 4, "b": 3, "c": 3})
        self.assertEqual(on_grid({"a": 0.26, "b": 0.74}, 4), {"a": 1, "b": 3})
        self.assertEqual(on_grid({"a": 0.0, "b": 1.0}, 20), {"a": 0, "b": 20})

    def test_what_is_no_preference_is_refused_in_the_words_of_ladle_and_leaves_nothing(self):
        adapters = Adapters(self.settings)
        for preference, words in (("nonsense=1", "nonsense"), ("no such preset", "no such preset"), ("-1,2,3,4", "4 weights"), ("--soup=/", "--soup=/")):
            with self.assertRaisesRegex(PreferenceError, words):
                self.ask(adapters, preference)
        self.assertEqual(list(self.settings.directory.iterdir()), [])

    def test_settings_name_the_variable_that_is_wrong(self):
        good = {"LADLE_SOUPS": str(SOUP), "LADLE_BINARY": self.settings.ladle, "LADLE_ADAPTERS": self.folder.name}
        for change, words in (
            ({"LADLE_SOUPS": ""}, "LADLE_SOUPS"),
            ({"LADLE_SOUPS": self.folder.name}, "LADLE_SOUPS: .*soup with a name"),
            ({"LADLE_SOUPS": f"{SOUP}:{SOUP}"}, "both named"),
            ({"LADLE_SOUPS": f"{SOUP}-answer"}, "active on the answer only"),
            ({"LADLE_SOUPS": f"{SOUP}-full"}, "whole model"),
            ({"LADLE_BINARY": "no-such-program"}, "LADLE_BINARY"),
            ({"LADLE_MAX_ADAPTERS": "0"}, "LADLE_MAX_ADAPTERS: got '0'"),
            ({"LADLE_RANK": "-1"}, "LADLE_RANK: got '-1'"),
            ({"LADLE_PREFERENCE_GRID": "1.5"}, "LADLE_PREFERENCE_GRID: got '1.5'"),
        ):
            with self.assertRaisesRegex(SettingsError, words):
                Settings.of_environment({**good, **change})


if __name__ == "__main__":
    unittest.main()
