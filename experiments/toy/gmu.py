"""GMU on the toy corpus: the embedded default, no data needed.

jmer train toy/gmu
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('gmu', classes=6, streams=STREAMS, hidden=64, pooling='thirds', dropout=0.2),
        data=Data('toy', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=64, buckets=2),
        optimizer=Optimizer('adamw', rate=3e-3, schedule='cosine', warmup=0.05),
        epochs=20,
    )
