"""The prompts of a run, as `train-backbones` renders them."""

import json
import pathlib
import random

import jinja2

from .settings import SettingsError


def read(data, directory):
    """Rows `{prompt, references, fields}` of the training file; paths are relative to `directory`."""
    path = pathlib.Path(directory) / data["train"]
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SettingsError(f"data.train: {error}") from error
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    template = environment.from_string(data["template"]) if data["template"] else None
    reader = {"jsonl": general, "scitldr": scitldr}[data["format"]]
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(reader(row, data, template, number))
        except (ValueError, KeyError, TypeError, AttributeError, jinja2.TemplateError) as error:
            raise SettingsError(f"{path}, line {number}: {error!r}") from error
    return rows


def general(row, data, template, number):
    references = row[data["reference"]] if data["reference"] else []
    references = [references] if isinstance(references, str) else references
    return {"prompt": template.render(row), "references": references, "fields": row}


def scitldr(row, data, template, number):
    source = " ".join(sentence.strip() for sentence in row["source"])
    fields = {"source": source, "title": row.get("title", "")}
    references = [target.strip() for target in row["target"] if target.strip()]
    if not source or not references:
        raise ValueError("expected a source and a target that are not empty")
    prompt = template.render(prompt=source, fields=fields, id=row["paper_id"]) if template else source
    return {"prompt": prompt, "references": references, "fields": fields}


def prompt_tokens(tokenizer, text):
    """The tokens of a prompt up to where the answer begins."""
    if tokenizer.chat_template is None:
        return tokenizer(text)["input_ids"]
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]


def generation_prompt(tokenizer):
    """The tokens that the chat template appends to open the answer."""
    if tokenizer.chat_template is None:
        raise SettingsError('lora.activation is "answer", expected a base with a chat template, whose generation prompt activates the adapter')
    turns = [{"role": "user", "content": "?"}]
    without = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    tokens = prompt_tokens(tokenizer, "?")
    if tokens[: len(without)] != without or len(tokens) == len(without):
        raise SettingsError('lora.activation is "answer", expected a chat template that appends its generation prompt')
    return tokens[len(without):]


def short(rows, tokenizer, most):
    """The rows whose prompt has at most `most` tokens."""
    kept = [row for row in rows if len(prompt_tokens(tokenizer, row["prompt"])) <= most]
    if not kept:
        raise SettingsError(f"data.max_prompt_tokens is {most}, expected as many as one of {len(rows)} prompts has")
    return kept


def steps(rows, config):
    """The rows of all steps, an epoch after the other, each in an order of its own by the seed: all backbones see
    the same, and a run that is taken up again sees what is left."""
    wanted = config["rl"]["steps"] * (config["rl"]["batch"] // config["rollout"]["samples"])
    drawn, generator = [], random.Random(config["seed"])
    while len(drawn) < wanted:
        drawn += generator.sample(rows, len(rows))
    return drawn[:wanted]


def dataset(rows, tokenizer):
    """Rows in TRL's form."""
    shown = lambda text: [{"role": "user", "content": text}] if tokenizer.chat_template is not None else text
    # Columns of rows differ in type from line to line; as JSON they pass through Arrow unchanged.
    return [{"prompt": shown(row["prompt"]), "sample": json.dumps(row)} for row in rows]
