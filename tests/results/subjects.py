"""Models to be judged of which every figure is known beforehand."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jmer.data.corpus import Item, Spec, StreamSpec, Target
from jmer.layers.pooling import pool
from jmer.results.robustness import Subject
from jmer.train.experiment import Data
from jmer.types import Batch, Output

CLASSES = ('angry', 'happy', 'sad')
STREAMS = ('vision', 'text', 'audio')   # not in the order of their names


class Listener(nn.Module):
    """Adds up what the streams say, each by its weight; without any the first class wins.

    Attributes:
        weights: of text, audio and vision, by name.
        leaky: look at what is masked, too.
    """

    weights: tuple[tuple[str, float], ...] = (('text', 2.0), ('audio', 1.0), ('vision', 0.0))
    leaky: bool = False
    streams: tuple[str, ...] = STREAMS

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        said = [weight * pool(x.x, x.mask | self.leaky, 'mean') for name, weight in self.weights
                for x in [batch.streams[name]]]
        there = jnp.stack([jnp.any(batch.streams[name].mask, -1) for name in self.streams], -1)
        gates = there[..., None] * jnp.asarray([0.5, 0.3, 0.1])[None, :, None] * jnp.ones((1, 1, 4))
        return Output(sum(said), {'gates': gates, 'attention': {'text': [gates]}, 'fused': said[0]})


def subject(count: int = 30, model: nn.Module | None = None, stand_ins=(), seed: int = 0) -> Subject:
    """Text tells the emotion always, audio two times in three, vision only what the first says of it."""
    rng = np.random.default_rng(seed)
    spec = Spec('hand', '1', 'utterance', tuple(StreamSpec(name, 3) for name in STREAMS),
                (Target('emotion', 'class', CLASSES),))
    items = []
    for k in range(count):
        label = k % 3
        heard = label if k % 9 < 6 else (label + 1) % 3
        says = {'text': label, 'audio': heard, 'vision': rng.integers(3)}
        streams = {name: np.repeat(np.eye(3, dtype=np.float32)[None, says[name]], rng.integers(2, 5), 0)
                   for name in STREAMS}
        items.append(Item(f'item{k:02d}', f'group{k % 5}', 'test', streams, {'emotion': np.array(label, np.int32)}))
    data = Data('hand', STREAMS, batch_size=8, standardise=False, stand_ins=stand_ins)
    card = {'model': 'listener', 'groups': {'train': ['group0'], 'validation': [], 'test': []}}
    return Subject('hand', model or Listener(), {}, card, data, spec, {}, tuple(items))
