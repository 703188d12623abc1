"""bc-LSTM on the conversations of the toy corpus. It does not see who speaks.

jmer train toy/bclstm
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('bclstm', classes=6, streams=STREAMS, width=64, hidden=64, dropout=0.3),
        data=Data('toy-dialogue', STREAMS, protocol=Protocol(validation=('validation',)), batch_size=16),
        optimizer=Optimizer('adamw', rate=3e-3, schedule='cosine', warmup=0.05, clip=1.0),
        epochs=25,
    )
