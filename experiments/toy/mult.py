"""MulT on the toy corpus: unaligned sequences of three rates.

jmer train toy/mult
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('mult', classes=6, streams=STREAMS, width=24, heads=4, layers=2, causal=False,
                         text_dropout=0.1, embed_dropout=0.1),
        data=Data('toy', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=64, buckets=2,
                  pool=(('audio', 4), ('vision', 2))),
        optimizer=Optimizer('adam', rate=1e-3, schedule='cosine', warmup=0.1, clip=1.0),
        epochs=20,
    )
