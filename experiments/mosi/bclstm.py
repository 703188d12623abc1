"""bc-LSTM on CMU-MOSI, the features and the split of its paper (Poria et al., ACL 2017). Two classes.

    jmer train mosi/bclstm --data DIR --seeds 5

Ten videos of the training part choose the epoch; the test part judges.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('bclstm', classes=2, streams=STREAMS, width=64, hidden=64, layers=1, dropout=0.5,
                         input_dropout=0.5),
        data=Data('mosi', STREAMS, target='polarity', protocol=Protocol(test=('test',), held_out=10),
                  batch_size=8, buckets=2),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.1, clip=1.0),
        epochs=30,
        monitor='accuracy',
    )
