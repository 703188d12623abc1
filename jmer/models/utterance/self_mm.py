"""Self-MM: self-supervised multi-task learning of multimodal sentiment (Yu et al., AAAI 2021, arXiv:2102.04830).

The first step of text (BERT's [CLS]) and the last states of LSTMs over audio and vision are scored together,
and each alone, where the labels of a stream are made during training: see `jmer.own_labels`, which has the loss,
the stages and the memory.

Where this differs from the authors' code: padding is masked; a stream may be missing. Their optimiser, which steps
every four batches and has a rate for each part, is left to who trains.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jmer import own_labels
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.pooling import pool
from jmer.layers.subnet import FeatureHead, LastStateNet
from jmer.types import Batch, Output, Params, Variables

TAGS = ('late fusion', 'joint representation', 'recurrent', 'unaligned', 'missing modality')


class Model(Checked):
    """The defaults are the authors' for CMU-MOSEI. Attributes:
    classes: number of scores.
    streams: text, of which the first step is read, and two others.
    states: widths of the LSTMs of the two others. widths: of their vectors.
    hidden: widths of the networks of the scores: of all together, then of each stream.
    state_dropout: of the states of the LSTMs.
    dropout: in front of the networks of the scores.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    states: tuple[int, ...] = (16, 32)
    widths: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (128, 32, 16, 32)
    state_dropout: float = 0.0
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        text, *others = self.streams
        x, mask = batch.streams[text]
        vectors = {text: pool(x[:, ::-1], mask[:, ::-1], 'last')}
        for name, states, width in zip(others, self.states, self.widths, strict=True):
            vectors[name] = LastStateNet(states, width, self.state_dropout, name=f'net_{name}')(
                batch.streams[name], train=train)

        all_hidden, *own_hidden = self.hidden
        feature, logits = self._head('all', all_hidden)(jnp.concatenate(list(vectors.values()), -1), train=train)
        features, alone = {'all': feature}, {}
        for (name, vector), hidden in zip(vectors.items(), own_hidden, strict=True):
            features[name], alone[name] = self._head(name, hidden)(vector, train=train)
        return Output(logits, {'alone': alone, 'features': features, 'there': own_labels.presence(batch, self.streams)})

    def _head(self, name: str, hidden: int) -> FeatureHead:
        return FeatureHead(hidden, self.classes, self.dropout, name=f'head_{name}')

    def _check(self) -> None:
        for field, count in (('streams', 3), ('states', 2), ('widths', 2), ('hidden', 4)):
            if len(getattr(self, field)) != count:
                raise ValueError(f'self_mm: {field}: found {getattr(self, field)}, expected {count} of them')


loss, stages, memory = own_labels.loss, own_labels.stages, own_labels.memory


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from MMSA's Self-MM (text, audio, vision), whose BERT is kept apart."""
    require_streams('self_mm', model.streams, 3)
    reader, (text, audio, vision) = Reader(state, 'self_mm'), model.streams
    reader.skip('text_model.*')
    params: Params = {}
    for name, theirs, states, width in zip((audio, vision), ('audio_model', 'video_model'), model.states,
                                           model.widths, strict=True):
        params[f'net_{name}'] = reader.last_state_net(theirs, states, width)
    read = reader.width('post_text_layer_1.weight', 1)
    joined = read + sum(model.widths) if read else None
    parts = (('all', 'fusion', joined), (text, 'text', read), (audio, 'audio', model.widths[0]),
             (vision, 'video', model.widths[1]))
    for (name, theirs, inputs), hidden in zip(parts, model.hidden, strict=True):
        params[f'head_{name}'] = reader.feature_head(f'post_{theirs}_layer', inputs, hidden, model.classes)
    reader.close()
    return {'params': params}
