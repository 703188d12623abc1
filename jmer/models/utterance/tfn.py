"""TFN: tensor fusion network (Zadeh et al., EMNLP 2017, arXiv:1707.07250).

Each stream becomes a short vector: by its mean over time and three linear layers, or, the last stream
(text), by an LSTM. Each vector gets a 1 in front, and the outer product of all holds every interaction of
one, two or more streams; two hidden layers read it.

Where this differs from the authors' code: an absent stream has the vector [1, 0, ..., 0], so that what the
others say together remains; the LSTM stops at the last present step; scores of classes are not squashed
unless `bounds` says so; the batch is averaged where theirs is summed.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jmer.author import Reader, require_streams
from jmer.layers.bilinear import outer, with_one
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.subnet import LastStateNet, PooledNet
from jmer.types import Batch, Output, Variables

TAGS = ('deep fusion', 'tensor', 'joint representation', 'recurrent', 'missing modality')


class Model(Checked):
    """Attributes:
    classes: number of scores.
    streams: what is read; the last one by an LSTM, the others pooled.
    hidden: width of each stream's sub-network, that of the LSTM for the last.
    text_width: of the vector of the last stream.
    fusion_width: of the two layers on the tensor.
    pooling: how the other streams become vectors, see `layers.pooling`.
    bounds: lower and upper limit of a score, which a sigmoid keeps; () for none. The authors: (-3, 3).
    dropout: rate in the sub-networks.
    fusion_dropout: rate on the tensor.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    hidden: tuple[int, ...] = (4, 16, 128)
    text_width: int = 64
    fusion_width: int = 32
    pooling: str = 'mean'
    bounds: tuple[float, ...] = ()
    dropout: float = 0.3
    fusion_dropout: float = 0.3

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        self._check()
        *pooled, last = zip(self.streams, self.hidden, strict=True)
        vectors = [
            PooledNet(width, self.pooling, self.dropout, name=f'net_{name}')(
                batch.streams[name], batch.present, train=train) for name, width in pooled]
        name, width = last
        vectors.append(LastStateNet(width, self.text_width, self.dropout, name=f'net_{name}')(
            batch.streams[name], train=train))

        x = outer([with_one(h) for h in vectors])
        x = Dropout(self.fusion_dropout, name='dropout_fusion')(x, train=train)
        for k in (1, 2):
            x = nn.relu(Dense(self.fusion_width, name=f'fusion_{k}')(x))
        logits = Dense(self.classes, name='head')(x)
        if self.bounds:
            low, high = self.bounds
            logits = nn.sigmoid(logits) * (high - low) + low
        return Output(logits, {'vectors': vectors, 'fused': x})

    def _check(self) -> None:
        if len(self.hidden) != len(self.streams):
            raise ValueError(f'tfn: hidden: found {self.hidden}, expected one width for each of {self.streams}')
        if len(self.bounds) not in (0, 2):
            raise ValueError(f'tfn: bounds: found {self.bounds}, expected a lower and an upper one, or none')


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of Justin1904/TensorFusionNetworks (audio, video, text).

    Its `output_range` and `output_shift` are constants that the model has as `bounds`.
    """
    require_streams('tfn', model.streams, 3)
    reader = Reader(state, 'tfn')
    reader.skip('output_range', 'output_shift')
    params, statistics = {}, {}
    for name, theirs, width in zip(model.streams, ('audio', 'video'), model.hidden, strict=False):
        params[f'net_{name}'], statistics[f'net_{name}'] = reader.pooled_net(f'{theirs}_subnet', width)
    params[f'net_{model.streams[-1]}'] = reader.last_state_net('text_subnet', model.hidden[-1], model.text_width)
    audio, video, _ = model.hidden
    entries = (audio + 1) * (video + 1) * (model.text_width + 1)
    params['fusion_1'] = reader.dense('post_fusion_layer_1', entries, model.fusion_width)
    params['fusion_2'] = reader.dense('post_fusion_layer_2', model.fusion_width, model.fusion_width)
    params['head'] = reader.dense('post_fusion_layer_3', model.fusion_width, model.classes)
    reader.close()
    return {'params': params, 'batch_stats': statistics}
