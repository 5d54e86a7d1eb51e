"""Preferences as vLLM's model ids: `NAME:helpful=0.7,harmless=0.3` becomes the merged adapter of a soup."""


def register():
    """vLLM's entry point, called in each of its processes."""
    from vllm.lora.resolver import LoRAResolverRegistry

    from .resolver import LadleResolver
    from .settings import Settings

    LoRAResolverRegistry.register_resolver("ladle", LadleResolver(Settings.of_environment()))
