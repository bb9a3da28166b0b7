"""From logits to tokens."""

from __future__ import annotations

from core.config import Config
from core.logits import LogitsKernels
from core.sampling.base import LogitsProcessor, Sampler
from core.sampling.sampler import DefaultSampler

__all__ = ["LogitsProcessor", "Sampler", "make_sampler"]


def make_sampler(config: Config, kernels: LogitsKernels) -> Sampler:
    """The sampler that the options name, or the core's own, on `kernels`. Raises PluginLoadError."""
    extensions, options, eos = config.extensions, config.options, config.model.eos_token_ids
    if options.sampler is not None:
        chosen = extensions.samplers[options.sampler]
        sampler = chosen.load()(eos, chosen.options)
        if not isinstance(sampler, Sampler):
            raise chosen.error(f"gave {sampler!r} where a core.sampling.base.Sampler is due")
        return sampler
    return DefaultSampler(eos, [_processor(config, name) for name in options.logits_processor], kernels)


def _processor(config: Config, name: str) -> LogitsProcessor:
    extension = config.extensions.logits_processors[name]
    processor = extension.load()(extension.options)
    if not isinstance(processor, LogitsProcessor):
        raise extension.error(f"gave {processor!r} where a core.sampling.base.LogitsProcessor is due")
    return processor
