"""Late fusion on the toy corpus.

jmer train toy/late
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('late', classes=6, streams=STREAMS, pooling='thirds'),
        data=Data('toy', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=64, buckets=2),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.05),
        epochs=20,
    )
