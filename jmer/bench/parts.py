"""Parts of systems, measured by themselves where the authors' own code was."""

import flax.linen as nn

from jmer.layers.gating import AdaptationGate
from jmer.types import Batch, Output


class Gate(nn.Module):
    """MAG's gate on words that are given, so without a gradient of the words; its mean stands for a score."""

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        words, shifts = batch.streams['text'].x, {name: batch.streams[name] for name in ('audio', 'vision')}
        x = AdaptationGate(dropout=0.5, name='gate')(words, shifts, train=train)
        return Output(x.mean((1, 2))[:, None], {})
