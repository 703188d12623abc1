"""What every TFDS builder of jmer shares: a corpus's `source`, written as records and read back.

This module imports TensorFlow; `jmer.data.load` imports it when it is needed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jmer.data.corpus import Item, Spec, Target


class CorpusBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """A builder over a folder as the owners distribute it (TFDS's `manual_dir`).

    source: a module with SPEC, ATTRIBUTES (keys of `Item.attributes`), TREE (what the folder holds) and
        parts(root) -> {part: items}. The splits are the parts. Whoever changes what `parts` gives for
        the same files raises SPEC.version: prepared copies are known by it.
    """

    source: ModuleType

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.source.SPEC
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.source.__doc__,
            features=_features(spec, self.source.ATTRIBUTES),
            homepage=spec.source,
            citation=spec.citation,
            license=spec.licence,
        )

    def _split_generators(self, dl_manager):
        parts = self.source.parts(Path(dl_manager.manual_dir))
        return {part: self._generate_examples(items) for part, items in parts.items()}

    def _generate_examples(self, items: Iterable[Item]):
        for item in items:
            yield item.id, to_example(self.source.SPEC, item)

    def items(self) -> Iterator[Item]:
        """All items of a prepared copy, in the order of its records."""
        for part in self.info.splits:
            for example in tfds.as_numpy(self.as_dataset(split=part)):
                yield to_item(self.source.SPEC, example)


def _features(spec: Spec, attributes: Sequence[str]) -> tfds.features.FeaturesDict:
    text = tfds.features.Text()
    features = {
        'id': text,
        'group': text,
        'part': text,
        'streams': {stream.name: _tensor(None, stream.width) for stream in spec.streams},
        'labels': {target.name: _label(spec, target) for target in spec.targets},
        'attributes': {name: text for name in attributes},
    }
    if spec.layout == 'dialogue':
        features['speakers'] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        features['turns'] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict({name: f for name, f in features.items() if f != {}})


def _tensor(*shape: int | None) -> tfds.features.Tensor:
    # As bytes a float costs four of them and is written some ten times faster.
    return tfds.features.Tensor(shape=shape, dtype=np.float32, encoding='bytes')


def _label(spec: Spec, target: Target) -> tfds.features.FeatureConnector:
    dialogue = spec.layout == 'dialogue'
    if target.kind == 'class':
        label = tfds.features.ClassLabel(names=target.names)
        return tfds.features.Sequence(label) if dialogue else label
    return _tensor(*([None] if dialogue else []), len(target.names))


def to_example(spec: Spec, item: Item) -> dict[str, Any]:
    """An item as TFDS writes it. A stream that is absent is written with no steps."""
    example: dict[str, Any] = {
        'id': item.id,
        'group': item.group,
        'part': item.part,
        'streams': {s.name: item.streams.get(s.name, np.zeros((0, s.width), np.float32))
                    for s in spec.streams},
        'labels': dict(item.labels),
    }
    if item.attributes:
        example['attributes'] = dict(item.attributes)
    if spec.layout == 'dialogue':
        example |= {'speakers': item.speakers, 'turns': list(item.turns)}
    return example


def to_item(spec: Spec, example: Mapping[str, Any]) -> Item:
    """The inverse of `to_example`, over what TFDS reads."""
    dialogue = spec.layout == 'dialogue'
    names = [stream.name for stream in spec.streams]
    kinds = {target.name: np.int32 if target.kind == 'class' else np.float32
             for target in spec.targets}
    return Item(
        id=example['id'].decode(),
        group=example['group'].decode(),
        part=example['part'].decode(),
        streams={name: x for name in names if len(x := example['streams'][name])},
        labels={name: np.asarray(example['labels'][name], kind) for name, kind in kinds.items()},
        speakers=example['speakers'] if dialogue else None,
        turns=tuple(turn.decode() for turn in example['turns']) if dialogue else (),
        attributes={name: text.decode() for name, text in example.get('attributes', {}).items()},
    )
