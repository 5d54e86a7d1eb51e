"""Merged adapters on disk: one directory a mix, written once by `ladle merge --adapter`."""

import asyncio
import hashlib
import json
import logging
import os
import shutil
import tomllib


log = logging.getLogger("vllm.ladle")


class PreferenceError(ValueError):
    """A model id that names a soup and no preference of it, or a mix that may not be written."""


class Adapters:
    """A bounded directory of merged adapters.

    vLLM never forgets a name, and reads an adapter's files again whenever its slot was taken in between.
    So what was handed out stays, and only adapters that earlier processes left are removed, least recently
    used first. When everything was handed out, a further mix is refused."""

    def __init__(self, settings):
        self.settings = settings
        self.handed_out = set()
        self.locks = {}
        # Programs at once: a burst of new mixes must not crowd out the engine.
        self.programs = asyncio.Semaphore(2)
        settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.directory.stat().st_uid != os.getuid():
            raise PermissionError(f"LADLE_ADAPTERS: {settings.directory} belongs to another user")

    async def of(self, name, preference):
        """The directory of the adapter of `preference` (weights, a preset's name, or None for the soup's
        default) of the soup `name`."""
        soup = self.settings.soups[name]
        solved = await self.solve(soup, preference)
        if self.settings.grid:
            weights = on_grid(solved["preference"], self.settings.grid)
            preference = ",".join(f"{objective}={weight}" for objective, weight in weights.items())
            solved = await self.solve(soup, preference)
        directory = self.settings.directory / f"{name}-{key(soup, solved['coefficients'], self.settings.rank)}"
        # Requests for one mix under several names wait for the first.
        async with self.locks.setdefault(directory.name, asyncio.Lock()):
            if not directory.is_dir():
                self.make_room()
                options = [*self.settings.options, *([f"--preference={preference}"] if preference else [])]
                if self.settings.rank:
                    options.append(f"--rank={self.settings.rank}")
                out = await self.ladle("merge", *options, "--adapter", "--out", str(directory), "--", str(soup))
                if left_out := json.loads(out).get("adapter"):
                    log.info(
                        "%s, %s: rank %d of %d leaves out %.1f %% of the change, %.1f %% of %s", name, preference,
                        left_out["rank"], left_out["exact_rank"], 100 * left_out["error"],
                        100 * left_out["largest_error"], left_out["largest_module"] or "any module",
                    )
            self.handed_out.add(directory.name)
        os.utime(directory)
        return directory

    async def solve(self, soup, preference):
        # What a client sent is never an option.
        return json.loads(await self.ladle("solve", "--soup", str(soup), "--", preference or default(soup)))

    async def ladle(self, *arguments):
        """The standard output of `ladle`; its complaint becomes the error."""
        pipe = asyncio.subprocess.PIPE
        async with self.programs:
            process = await asyncio.create_subprocess_exec(self.settings.ladle, *arguments, stdout=pipe, stderr=pipe)
            out, complaint = await process.communicate()
        if process.returncode:
            raise PreferenceError(complaint.decode(errors="replace").strip() or f"ladle ended with {process.returncode}")
        return out

    def make_room(self):
        there = [entry for entry in self.settings.directory.iterdir() if entry.is_dir()]
        oldest = sorted(there, key=lambda entry: entry.stat().st_mtime)
        removable = [entry for entry in oldest if entry.name not in self.handed_out]
        surplus = len(there) + 1 - self.settings.most
        if surplus > len(removable):
            raise PreferenceError(
                f"{self.settings.most} mixes are in use (LADLE_MAX_ADAPTERS); "
                "LADLE_PREFERENCE_GRID bounds their number, and a restart forgets them"
            )
        for entry in removable[: max(surplus, 0)]:
            shutil.rmtree(entry)


def default(soup):
    """The preference of the bare soup: its manifest's default, or equal weights."""
    manifest = tomllib.loads((soup / "soup.toml").read_text())
    return manifest.get("default") or ",".join(f"{objective['name']}=1" for objective in manifest["objectives"])


def key(soup, coefficients, rank):
    """The identity of a merged adapter: the soup's manifest, which holds the digests of its weights, the
    coefficients on ladle's grid of 1e-6, and the rank that bounds it."""
    units = {name: round(value * 1e6) for name, value in coefficients.items()}
    text = hashlib.sha256((soup / "soup.toml").read_bytes()).hexdigest() + json.dumps([units, rank])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def on_grid(preference, steps):
    """The multiples of 1/`steps` nearest to a preference (weights that sum to 1), in units of 1/`steps` with
    the sum `steps`: the largest remainders are rounded up."""
    units = {objective: int(weight * steps) for objective, weight in preference.items()}
    remainder = lambda objective: preference[objective] * steps - units[objective]
    for objective in sorted(preference, key=remainder, reverse=True)[: steps - sum(units.values())]:
        units[objective] += 1
    return units
