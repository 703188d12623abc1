"""What a training step of the authors' own code costs, and the sizes at which it was measured: one table.

The seconds are CPU time of one step (forward, loss, backward, Adam) of the code that the authors published, in
training mode with their dropout, on random data in float32, in PyTorch 2.13 (TIM-Net: tf_keras
2.21), held to one thread of an Intel Xeon at the end of 2026: the least of several. Everything that their step
does in Python is in it: graphs built edge by edge, losses looped over anchors. Fields of a model that are not
named are its defaults, which are the authors' wherever its docstring says so.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

TURNS = 110
"""Turns of the longest dialogue of IEMOCAP."""


class Timing(NamedTuple):
    """One measurement of the authors' code.

    code: their repository. seconds: of a step; None where theirs could not be measured.
    batch: items. streams: steps (turns of a dialogue) and width of each. classes: number of scores.
    fields: of our model, where they are not its defaults. kind: of the labels, as `losses.supervised` has them.
    note: what is not the same on both sides. part: of the system (`bench.parts`), where only that was measured.
    complete: nothing is missing, so what is done only where something is counts for no operations.
    """

    code: str
    seconds: float | None
    batch: int
    streams: Mapping[str, tuple[int, int]]
    classes: int = 1
    fields: Mapping[str, Any] = {}
    kind: str = 'regression'
    note: str = ''
    part: str = ''
    complete: bool = False


def _steps(count: int, **widths: int) -> dict[str, tuple[int, int]]:
    """Streams that are aligned."""
    return {name: (count, width) for name, width in widths.items()}


def _dialogues(code: str, seconds: float | None, batch: int, widths: Mapping[str, int], fields=None,
               note: str = '') -> Timing:
    """Dialogues of IEMOCAP: the first has 110 turns, the others 50 on average."""
    return Timing(code, seconds, batch, _steps(TURNS, **widths), 6, fields or {}, 'class', note)


COVAREP = {'text': 300, 'audio': 74, 'vision': 35}
BERT = {'text': 768, 'audio': 74, 'vision': 35}
TEXTCNN = {'text': 100, 'audio': 1582, 'vision': 342}
ROBERTA = {'text': 1024, 'audio': 1582, 'vision': 342}
FRAMES = {'audio': (400, 130), 'text': (22, 1024), 'vision': (50, 342)}
MULT = 'yaohungt/Multimodal-Transformer'
MMSA = 'thuiar/MMSA'
PRAVEEN = 'praveena2j/RecurrentJointAttentionwithLSTMs'
SHIFT = 'ECNU-Cross-Innovation-Lab/ShiftSER'

UTTERANCES = {
    'mult/iemocap': Timing(MULT, 0.236, 32, _steps(20, **COVAREP), 8, {'layers': 4}),
    'mult/mosei': Timing(MULT, 0.764, 32, _steps(50, **COVAREP)),
    'mult/mosei_unaligned': Timing(MULT, 1.940, 4, {'text': (50, 300), 'audio': (500, 74), 'vision': (500, 35)}),
    'mult/mmsa': Timing(MMSA, 0.566, 32, _steps(50, **BERT), 1,
                        {'heads': 6, 'layers': 4, 'kernels': (5, 1, 3), 'positions': False}),
    'tfn': Timing('Justin1904/TensorFusionNetworks', 0.300, 32,
                  {'audio': (1, 74), 'vision': (1, 35), 'text': (50, 300)}, 1,
                  {'hidden': (16, 128, 128), 'text_width': 128, 'fusion_width': 16, 'bounds': (-3.0, 3.0)}),
    'lmf': Timing('Justin1904/Low-rank-Multimodal-Fusion', 0.008, 32,
                  {'audio': (1, 74), 'vision': (1, 35), 'text': (20, 300)}, 2, kind='class'),
    'misa': Timing('declare-lab/MISA', 0.659, 32, _steps(50, **COVAREP)),
    'self_mm': Timing('thuiar/Self-MM', 0.342, 32, {'text': (1, 768), 'audio': (500, 74), 'vision': (375, 35)},
                      note='BERT given'),
    'mmim': Timing('declare-lab/Multimodal-Infomax', 0.047, 32,
                   {'text': (1, 768), 'audio': (50, 74), 'vision': (50, 35)}, note='BERT given, second stage'),
    'tetfn': Timing(MMSA, 0.508, 32, _steps(50, **BERT), note='BERT given'),
    'mag/gate': Timing('WasifurRahman/BERT_multimodal_transformer', 0.137, 32, _steps(50, **BERT), 1,
                       part='Gate', note='the gate alone'),
    'mag/bert': Timing(MMSA, 3.312, 8, {'text': (50, 1), 'audio': (50, 74), 'vision': (50, 35)}, 1,
                       {'vocabulary': 30522}),
    'lmr_cbt': Timing('skeletonNN/LMR-CBT', 0.341, 32, _steps(50, **COVAREP)),
    'mcfn': Timing('zxiaohen/Speech-emotion-recognition-MCFN', 3.100, 32, {'text': (30, 768), 'audio': (500, 120)}, 4,
                   kind='class', note='BERT given'),
    'tailor': Timing('kniter1/TAILOR', 6.316, 32, _steps(60, **COVAREP), 6, kind='multilabel'),
    'rja': Timing(PRAVEEN, 2.758, 32, _steps(16, audio=512, vision=25088), 2),
    'jca': Timing(PRAVEEN, 0.063, 32, _steps(16, audio=512, vision=512), 2),
    'cmt_mser': Timing('bubaimaji/cmt-mser', 0.979, 32, _steps(50, audio=256, text=50), 4, kind='class'),
    'gmu': Timing('johnarevalo/gmu-mmimdb', 0.028, 32, {'vision': (1, 4096), 'text': (1, 300)}, 23, kind='multilabel',
                  note='transcribed from Theano'),
    'mser3m': Timing('tpnam0901/3m-ser', 0.315, 32, {'text': (30, 768), 'audio': (4, 128)}, 4, kind='class',
                     note='theirs one by one; lengths not recorded'),
    'cfn_sr': Timing('skeletonNN/CFN-SR', 0.138, 32, {'audio': (216, 13), 'vision': (2, 49 * 2048)}, 8, kind='class',
                     note='ours with the audio network'),
    'lfmim': Timing('sunjunaimer/LFMIM', 7.125, 4, {'text': (80, 1024), 'audio': (50, 1024), 'vision': (16, 2048)}, 7,
                    kind='class'),
    'mmin': Timing('AIM3-RUC/MMIN', 2.217, 128, FRAMES, 4, kind='class'),
    'ifmmin': Timing('ZhuoYulang/IF-MMIN', 2.957, 128, FRAMES, 4, kind='class'),
    'imder/complete': Timing('mdswyz/IMDer', 0.697, 32, _steps(50, text=768, audio=5, vision=20), 1,
                             {'hide': (0.0, 0.0)}, note='nothing missing: no diffusion', complete=True),
    'imder/hidden': Timing('mdswyz/IMDer', 0.697 + 3 * (0.274 + 20 * 0.526), 32,
                           _steps(50, text=768, audio=5, vision=20), 1, {'hide': (1.0, 0.0)},
                           note='each stream hidden from a third: 3 score steps, 300 sampler steps; theirs less RCAN'),
    'sdumc': Timing('WarmCongee/SDUMC', 2.561, 96, {'audio': (150, 1024), 'text': (50, 4096), 'vision': (60, 1024),
                                         'substitute': (50, 4096)}),
    'camser': Timing('Vincent-ZHQ/CA-MSER', 12.545, 64,
                     {'spectrogram': (384, 3 * 256), 'mfcc': (300, 40), 'wav2vec': (149, 768)}, 4, kind='class',
                     note='wav2vec2 given; theirs also runs an unused classifier'),
}
SPEECH = {
    'headfusion': Timing('lessonxmk/head_fusion', 0.124, 32, {'audio': (63, 26)}, 4, kind='class'),
    'timnet/iemocap': Timing('Jiaxin-Ye/TIM-Net_SER', 1.907, 64, {'audio': (606, 39)}, 4, {'blocks': 10}, 'class'),
    'timnet/emodb': Timing('Jiaxin-Ye/TIM-Net_SER', 0.427, 64, {'audio': (188, 39)}, 7, kind='class'),
    'deer': Timing('W-Wu/DEER', 0.782, 16, {'audio': (300, 12 * 768)}, 3, note='WavLM given'),
    'shiftser/cnn_shift': Timing(SHIFT, 12.462, 32, {'audio': (374, 768)}, 4,
                                 {'network': 'cnn', 'parts': 16, 'both_ways': False}, 'class'),
    'shiftser/transformer': Timing(SHIFT, 20.583, 32, {'audio': (374, 768)}, 4, {'shift': False}, 'class'),
    'shiftser/shiftformer': Timing(SHIFT, 8.310, 32, {'audio': (374, 768)}, 4, kind='class'),
    'shiftser/rnn_shift': Timing(SHIFT, 9.594, 32, {'audio': (374, 768)}, 4, {'network': 'rnn', 'both_ways': False},
                                 'class'),
    'dst': Timing('HappyColor/DST', 37.134, 32, {'audio': (326, 1024)}, 4, kind='class'),
    'dwformer': Timing('scutcsq/DWFormer', 28.691, 32, {'audio': (324, 1024)}, 4, kind='class'),
}
DIALOGUES = {
    'bclstm': _dialogues('declare-lab/conv-emotion', 0.720, 32, {'text': 100}, {'attention': True}),
    'dialoguernn': _dialogues('declare-lab/conv-emotion', 7.557, 30, {'text': 100},
                              {'global_width': 500, 'party_width': 500, 'width': 300, 'hidden': 300}),
    'dialoguegcn': _dialogues('declare-lab/conv-emotion', 11.434, 32, {'text': 100}),
    'mmgcn/64_layers': _dialogues('hujingwen6666/MMGCN', 8.009, 16, TEXTCNN, {'layers': 64}),
    'mmgcn/4_layers': _dialogues('hujingwen6666/MMGCN', 3.488, 16, TEXTCNN),
    'mmdfn': _dialogues('zerohd4869/MM-DFN', 46.709, 32, TEXTCNN),
    'm3net': _dialogues('feiyuchen7/M3NET', 13.073, 16, {'text': 1024, 'text_2': 1024, 'text_3': 1024, 'text_4': 1024,
                                                         'audio': 1582, 'vision': 342},
                        {'texts': ('text', 'text_2', 'text_3', 'text_4')}),
    'cogmen': _dialogues('Exploration-Lab/COGMEN', 8.385, 32, {'audio': 100, 'text': 768, 'vision': 512}),
    'multiemo': _dialogues('TaoShi1998/MultiEMO', 6.058, 8, {'text': 768, 'audio': 512, 'vision': 1000},
                           {'class_counts': (504.0, 839.0, 1324.0, 933.0, 742.0, 1468.0)}),
    'multiemo/batch_64': _dialogues('TaoShi1998/MultiEMO', None, 64, {'text': 768, 'audio': 512, 'vision': 1000},
                                    {'class_counts': (504.0, 839.0, 1324.0, 933.0, 742.0, 1468.0)},
                                    note="the authors' batch, for which theirs wants over 20 GB"),
    'sdt': _dialogues('butterfliesss/SDT', 13.848, 16, ROBERTA),
    'gcnet': _dialogues('zeroQiaoba/GCNet', 8.405, 32, {'audio': 512, 'text': 1024, 'vision': 1024},
                        {'modality_dropout': 0.2}),
    'dagerc': _dialogues('shenwzh3/DAG-ERC', 9.714, 16, {'text': 1024}),
    'dualgats': _dialogues('BladeDancer957/DualGATs', 22.170, 16, {'text': 1024}),
    'cfn_esa': _dialogues('lijfrank-open/CFN-ESA', 16.386, 8, ROBERTA),
    'graphcfc': _dialogues('lijfrank-open/GraphCFC', 24.297, 8, TEXTCNN),
    'graphmft': _dialogues('lijfrank-open/GraphMFT', 10.291, 16, TEXTCNN),
    'sacl_lstm': _dialogues('zerohd4869/SACL', 0.122, 2, {'text': 1024}, note='without the adversarial pass'),
}
TIMINGS: dict[str, Timing] = UTTERANCES | SPEECH | DIALOGUES
"""All of them; the name of a system, and behind a stroke which of its measurements it is."""


def named(names=()) -> list[str]:
    """Names of the table: all, or those asked for, a system's name standing for all of its measurements.

    Raises ValueError for what the table does not hold.
    """
    found = []
    for name in names or TIMINGS:
        some = [key for key in TIMINGS if name in (key, model_of(key))]
        if not some:
            raise ValueError(f"no timing of the authors' code is called {name!r}; they are {', '.join(TIMINGS)}")
        found += [key for key in some if key not in found]
    return found


def model_of(name: str) -> str:
    """The system of a measurement."""
    return name.partition('/')[0]
