"""MulT on CMU-MOSI, the features and the split of Poria et al. (ACL 2017). Two classes.

    jmer train mosi/mult --data DIR --seeds 5

Utterances without their context. Ten videos of the training part choose the epoch; the test part judges.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('mult', classes=2, streams=STREAMS, width=32, heads=4, layers=1,
                         text_dropout=0.5, out_dropout=0.5),
        data=Data('mosi', STREAMS, target='polarity', turns=True, protocol=Protocol(test=('test',), held_out=10),
                  batch_size=64),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.1),
        epochs=30,
        monitor='accuracy',
    )
