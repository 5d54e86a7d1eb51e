"""Settings, from the environment: vLLM hands its plug-ins nothing else."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
import tomllib


class SettingsError(ValueError):
    """A variable of the environment that cannot be taken, by name."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """`soups`: directory by the name that stands before the colon of a model id."""

    soups: dict[str, pathlib.Path]
    directory: pathlib.Path
    most: int
    grid: int | None
    rank: int | None
    ladle: str
    options: tuple[str, ...]

    @classmethod
    def of_environment(cls, environment=os.environ):
        """Reads `LADLE_SOUPS` (directories with `:` between), `LADLE_ADAPTERS` (where adapters are written),
        `LADLE_MAX_ADAPTERS`, `LADLE_PREFERENCE_GRID`, `LADLE_RANK`, `LADLE_BINARY` and `LADLE_MODELS_DIR`."""
        soups = {}
        for part in filter(None, environment.get("LADLE_SOUPS", "").split(":")):
            directory = pathlib.Path(part).resolve()
            try:
                manifest = tomllib.loads((directory / "soup.toml").read_text())
                name = manifest["name"]
            except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
                raise SettingsError(f"LADLE_SOUPS: {directory}: expected a soup with a name: {error!r}") from error
            if manifest.get("activation") == "answer":
                raise SettingsError(f"LADLE_SOUPS: {directory}: vLLM serves no adapters that are active on the answer only")
            full = [one["name"] for one in manifest.get("backbones", []) if one.get("kind") == "full"]
            if full:
                raise SettingsError(f"LADLE_SOUPS: {directory}: expected adapters, {', '.join(full)} is a whole model")
            if name in soups:
                raise SettingsError(f"LADLE_SOUPS: {soups[name]} and {directory} are both named {name!r}")
            soups[name] = directory
        if not soups:
            raise SettingsError("LADLE_SOUPS: expected at least one soup directory")
        ladle = environment.get("LADLE_BINARY", "ladle")
        if not shutil.which(ladle):
            raise SettingsError(f"LADLE_BINARY: no program {ladle!r}")
        directory = environment.get("LADLE_ADAPTERS") or os.path.join(tempfile.gettempdir(), f"ladle-adapters-{os.getuid()}")
        models = environment.get("LADLE_MODELS_DIR")
        return cls(
            soups=soups,
            directory=pathlib.Path(directory),
            most=whole(environment, "LADLE_MAX_ADAPTERS") or 256,
            grid=whole(environment, "LADLE_PREFERENCE_GRID"),
            rank=whole(environment, "LADLE_RANK"),
            ladle=ladle,
            options=("--models-dir", models) if models else (),
        )


def whole(environment, name):
    """A positive whole number, or None where the variable is unset or empty."""
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise SettingsError(f"{name}: got {text!r}, expected a whole number of at least 1")
    return int(text)
