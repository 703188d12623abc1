"""CauAIN on the conversations of the toy corpus, which has no commonsense clues.

    jmer train toy/cauain --seeds 3

Audio and vision stand in for what a turn does to its speaker and to the others, so nothing is shown of clues.
The protocol is `jmer.train.protocols.toy`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment


def get() -> Experiment:
    return protocols.toy(zoo.create('cauain', classes=6, streams=('text',), intra='audio', inter='vision', width=64,
        hidden=64, dropout=0.3))
