"""The resolver: a model id that names a soup becomes vLLM's request for its merged adapter."""

import logging

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from .adapters import Adapters, PreferenceError

log = logging.getLogger("vllm.ladle")


class LadleResolver(LoRAResolver):
    """Resolves `NAME`, `NAME:PRESET` and `NAME:objective=weight,…` of the soups that the settings name."""

    def __init__(self, settings):
        self.adapters = Adapters(settings)

    async def resolve_lora(self, base_model_name, lora_name):
        """None for ids that name no soup; an id that names a soup and no preference of it is refused. vLLM
        gives the adapter its number."""
        name, _, preference = lora_name.partition(":")
        if name not in self.adapters.settings.soups:
            return None
        try:
            directory = await self.adapters.of(name, preference or None)
        except PreferenceError as error:
            log.warning("%s: %s", lora_name, error)
            raise
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(directory))
