"""SDT: transformer with self-distillation over three streams (Ma et al., IEEE TMM 2024, arXiv:2310.20494).

Every stream is read by itself and by every other one through a transformer layer of its own; a gate weighs
what each reading found, a second one the streams against each other, channel by channel. The streams'
own scores are students of the scores of all together.

Where this differs from the authors' code: a turn in which a modality is missing is not read through that
modality, which then has no share in the second gate and teaches nothing to its student. The number of
speakers is a field; speakers beyond the last one share its embedding. `causal` lets turns read the past only.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jmer import losses
from jmer.author import Reader, require_streams
from jmer.layers.checked import Checked
from jmer.layers.dense import Dense
from jmer.layers.dropout import Dropout
from jmer.layers.graph import places, softmax, speakers_of
from jmer.layers.masked import MaskedDense
from jmer.layers.pooling import turn_mask, turn_vectors
from jmer.layers.position import interleaved
from jmer.layers.transformer import Attention, layer_norm
from jmer.types import Array, Batch, Output, Variables

TAGS = ('deep fusion', 'hybrid fusion', 'cross-modality attention', 'multi-head attention', 'gated', 'distillation',
        'transformer', 'context', 'speaker-aware', 'missing modality')
LABELS = ('class',)


class Model(Checked):
    """The defaults are the authors' for IEMOCAP. Attributes:
    classes: number of scores of a turn.
    streams: what is read; the authors' order is text, audio, vision.
    width: features of a turn in every stream, a multiple of `heads`.
    speakers: rows of the table of speakers, number 0 the first.
    learned_gates: the first gates have weights (not so in the authors' runs on MELD).
    causal: read the past only.
    dropout: everywhere.
    temperature: by which the distillation divides both logits.
    class_weights: of the cross entropies, one for each class; () means 1 each.
    student_weight, distillation_weight: of the losses besides the teacher's.
    """

    classes: int
    streams: tuple[str, ...] = ('text', 'audio', 'vision')
    width: int = 1024
    heads: int = 8
    speakers: int = 2
    learned_gates: bool = True
    causal: bool = False
    dropout: float = 0.5
    temperature: float = 1.0
    class_weights: tuple[float, ...] = ()
    student_weight: float = 1.0
    distillation_weight: float = 1.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Output:
        x, there = self._embed(batch)
        gathered = {name: self._gather(name, x, there, batch.present, train) for name in self.streams}
        fused, shares = self._weigh(gathered, there, batch.present)
        students = {name: self._student(name, h, train) for name, h in gathered.items()}
        logits = Dense(self.classes, name='head')(fused)
        aux = {'students': students, 'there': there, 'streams': gathered, 'fused': fused, 'shares': shares}
        return Output(logits, aux)

    def _embed(self, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
        """Turns with position and speaker, and where each stream is there."""
        who = interleaved(places(batch.present), self.width)
        table = self.param('speakers', nn.initializers.normal(1.0), (self.speakers, self.width))
        if batch.speakers is not None:
            who = who + jnp.asarray(table)[speakers_of(batch, self.speakers)]
        there = {name: turn_mask(batch.streams[name]) & batch.present for name in self.streams}
        x = {name: MaskedDense(self.width, use_bias=False, name=f'project_{name}')(
            turn_vectors(batch.streams[name]), batch.present) + who for name in self.streams}
        return x, there

    def _gather(self, name: str, x: dict[str, Array], there: dict[str, Array], present: Array, train: bool) -> Array:
        """A stream with what it has read, first of itself, then of the others."""
        found = []
        for source in (name, *(other for other in self.streams if other != name)):
            layer = Reading(self.heads, self.causal, self.dropout, name=f'{name}_from_{source}')
            h = layer(x[name], x[source], present, there[source], train=train)
            gate = h
            if self.learned_gates:
                gate = MaskedDense(self.width, use_bias=False, name=f'gate_{name}_from_{source}')(h, present)
            found.append(nn.sigmoid(gate) * h)
        return MaskedDense(self.width, name=f'reduce_{name}')(jnp.concatenate(found, -1), present)

    def _weigh(self, gathered: dict[str, Array], there: dict[str, Array], present: Array) -> tuple[Array, Array]:
        """The streams' weighted sum, and the weights [m b u d]."""
        h = jnp.stack(list(gathered.values()))
        scores = MaskedDense(self.width, use_bias=False, name='gate')(h, jnp.broadcast_to(present, h.shape[:-1]))
        mask = jnp.broadcast_to(jnp.stack(list(there.values()))[..., None], scores.shape)
        shares = softmax(scores, mask, axis=0)
        return jnp.sum(shares * h, 0), shares

    def _student(self, name: str, h: Array, train: bool) -> Array:
        h = Dropout(self.dropout, name=f'dropout_{name}')(nn.relu(h), train=train)
        return Dense(self.classes, name=f'head_{name}')(h)


class Reading(nn.Module):
    """One transformer layer in which the turns of a stream read those of a source, not normalised in front."""

    heads: int
    causal: bool
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'b u d'],
        source: Float[Array, 'b u d'],
        present: Bool[Array, 'b u'],
        there: Bool[Array, 'b u'],
        *,
        train: bool,
    ) -> Float[Array, 'b u d']:
        seen = present[:, :, None] & there[:, None]
        seen = jnp.tril(seen) if self.causal else seen

        def drop(name, y):
            return Dropout(self.dropout, name=f'dropout_{name}')(y, train=train)

        x, source = drop('x', x), drop('source', source)
        y = Attention(self.heads, self.dropout, name='attention')(x, source, seen, train=train)
        x = x + drop('read', y)
        y = MaskedDense(x.shape[-1], name='expand')(layer_norm('norm', 1e-6)(x), present)
        y = drop('hidden', nn.gelu(y, approximate=True))
        return x + drop('out', MaskedDense(x.shape[-1], name='contract')(y, present))


def loss(model: Model, out: Output, batch: Batch) -> dict[str, losses.Term]:
    """Cross entropy of the teacher and of every student, and the students' distance from the teacher."""
    label = losses.target(batch.labels)
    weights = model.class_weights or None
    terms = {'label': losses.cross_entropy(out.logits, label, class_weights=weights)}
    scale: dict[str, float] = {}
    for name, scores in out.aux['students'].items():
        mask = label.mask & out.aux['there'][name]
        own = label._replace(mask=mask)
        terms[f'student_{name}'] = losses.cross_entropy(scores, own, class_weights=weights)
        terms[f'distillation_{name}'] = losses.distillation(
            scores, out.logits, mask, temperature=model.temperature)
        scale |= {f'student_{name}': model.student_weight, f'distillation_{name}': model.distillation_weight}
    return losses.weighted(terms, **scale)


def params_from_author(state: Mapping[str, Any], model: Model) -> Variables:
    """Variables from a state_dict of butterfliesss/SDT (three streams)."""
    require_streams('sdt', model.streams, 3)
    reader, d = Reader(state, 'sdt'), model.width
    letter = dict(zip(model.streams, 'tav', strict=True))
    reader.skip('*.pos_emb.pe', '*.transformer_inter.0.layer_norm.*')   # computed; unused
    table = reader.take('speaker_embeddings.weight', model.speakers + 1, d)
    params: dict[str, Any] = {'speakers': table[:-1]}                   # the last row is for padding
    for name, key in zip(model.streams, ('textf', 'acouf', 'visuf'), strict=True):
        params[f'project_{name}'] = {'kernel': reader.take(f'{key}_input.weight', d, None, 1)[..., 0].T}
        params[f'reduce_{name}'] = reader.dense(f'features_reduce_{letter[name]}', 3 * d, d)
        params[f'head_{name}'] = reader.dense(f'{letter[name]}_output_layer.2', d, model.classes)
        for source in model.streams:
            pair = f'{letter[source]}_{letter[name]}'
            params[f'{name}_from_{source}'] = _reading(reader, f'{pair}.transformer_inter.0', d)
            if model.learned_gates:
                params[f'gate_{name}_from_{source}'] = reader.dense(f'{pair}_gate.fc', d, d, bias=False)
            else:
                reader.skip(f'{pair}_gate.fc.weight')                   # the identity
    params['gate'] = reader.dense('last_gate.fc', d, d, bias=False)
    params['head'] = reader.dense('all_output_layer', d, model.classes)
    reader.close()
    return {'params': params}


def _reading(reader: Reader, prefix: str, d: int) -> dict[str, Any]:
    query, key, value, out = (reader.dense(f'{prefix}.self_attn.linear{end}', d, d)
                              for end in ('_q', '_k', '_v', ''))
    both = {part: jnp.concatenate([key[part], value[part]], -1) for part in key}
    return {
        'attention': {'query': query, 'key_value': both, 'attention_out': out},
        'norm': reader.layer_norm(f'{prefix}.feed_forward.layer_norm', d),
        'expand': reader.dense(f'{prefix}.feed_forward.w_1', d, d),
        'contract': reader.dense(f'{prefix}.feed_forward.w_2', d, d),
    }
