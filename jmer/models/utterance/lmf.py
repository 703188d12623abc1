"""LMF: low-rank multimodal fusion (Liu et al., ACL 2018, arXiv:1806.00064).

TFN without its tensor: a linear map of the outer product of all streams' vectors, whose kernel is a sum of
`rank` products of one factor a stream, so that time and memory grow with the rank and not with the product
of the widths. A stream becomes a vector as in TFN: by its mean over time and three linear layers, or, the
last stream (text), by an LSTM.

Where this differs from the authors' code: an absent stream has the vector 0, so that what the others say
together remains; the LSTM stops at the last present step; the softmax that theirs can put behind the scores
is left to the loss; the batch is averaged where theirs is summed.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jmer.author import Reader, require_streams
from jmer.layers.bilinear import LowRank
from jmer.layers.checked import Checked
from jmer.layers.subnet import LastStateNet, PooledNet
from jmer.types import Batch, Output, Variables

TAGS = ('deep fusion', 'tensor', 'joint representation', 'recurrent', 'missing modality')


class Model(Checked):
    """The defaults are the authors' for a neutral IEMOCAP. Attributes:
    classes: number of scores.
    streams: what is read; the last one by an LSTM, the others pooled.
    hidden: width of each stream's sub-network, that of the LSTM for the last.
    text_width: of the vector of the last stream; the authors: half of its LSTM.
    rank: of the kernel.
    pooling: how the other streams become vectors, see `layers.pooling`.
    dropout: rate in the sub-networks.
    """

    classes: int
    streams: tuple[str, ...] = ('audio', 'vision', 'text')
    hidden: tuple[int, ...] = (32, 8, 64)
    text_width: int = 32
    rank: int = 16
    pooling: str = 'mean'
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        if len(self.hidden) != len(self.streams):
            raise ValueError(f'lmf: hidden: found {self.hidden}, expected one width for each of {self.streams}')
        *pooled, last = zip(self.streams, self.hidden, strict=True)
        vectors = [
            PooledNet(width, self.pooling, self.dropout, name=f'net_{name}')(
                batch.streams[name], batch.present, train=train) for name, width in pooled]
        name, width = last
        vectors.append(LastStateNet(width, self.text_width, self.dropout, name=f'net_{name}')(
            batch.streams[name], train=train))
        return Output(LowRank(self.classes, self.rank, name='fusion')(*vectors), {'vectors': vectors})


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of Justin1904/Low-rank-Multimodal-Fusion (audio, video, text)."""
    require_streams('lmf', model.streams, 3)
    reader = Reader(state, 'lmf')
    params, statistics = {}, {}
    for name, theirs, width in zip(model.streams, ('audio', 'video'), model.hidden, strict=False):
        params[f'net_{name}'], statistics[f'net_{name}'] = reader.pooled_net(f'{theirs}_subnet', width)
    params[f'net_{model.streams[-1]}'] = reader.last_state_net('text_subnet', model.hidden[-1], model.text_width)
    widths = (*model.hidden[:2], model.text_width)
    fusion = {f'factor_{k}': reader.take(f'{theirs}_factor', model.rank, width + 1, model.classes)
              for k, (theirs, width) in enumerate(zip(('audio', 'video', 'text'), widths, strict=True))}
    fusion['weights'] = reader.take('fusion_weights', 1, model.rank)
    fusion['bias'] = reader.take('fusion_bias', 1, model.classes)
    reader.close()
    return {'params': params | {'fusion': fusion}, 'batch_stats': statistics}
