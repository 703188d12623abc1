"""The registry: names, fields, families, tags."""

import re

import jax
import jax.numpy as jnp
import pytest

import jmer
from jmer import zoo
from jmer.models.utterance import late
from tests import batches


def test_a_models_name_is_its_files_name():
    names = jmer.list_models()
    assert names == sorted(names) and {'early', 'late', 'gmu', 'mult', 'bclstm'} <= set(names)
    for name in names:
        assert zoo.module(name).__name__ == f'jmer.models.{zoo.family(name)}.{name}'
        assert zoo.name_of(zoo.create(name, classes=2)) == name


def test_lists_by_family_and_by_tag():
    families = [jmer.list_models(family=family) for family in zoo.FAMILIES]
    assert sorted(name for family in families for name in family) == jmer.list_models()
    assert 'bclstm' in jmer.list_models(family='dialogue') and 'gmu' in jmer.list_models(family='utterance')
    gated = jmer.list_models(tag='gated')
    assert 'gmu' in gated and 'sdt' in gated and 'early' not in gated
    assert jmer.list_models(family='dialogue', tag='gated') == [
        name for name in gated if zoo.family(name) == 'dialogue']
    for tag in zoo.tags():
        assert jmer.list_models(tag=tag), tag
    with pytest.raises(
        ValueError, match="no family is called 'utterances'; they are utterance, dialogue, speech"
    ):
        jmer.list_models(family='utterances')


def test_lists_become_tuples_so_that_a_model_can_be_hashed():
    model = jmer.create('early', classes=3, hidden=[8, 4], streams=['text'])
    assert (model.hidden, model.streams) == ((8, 4), ('text',))
    assert {model: 1}[jmer.create('early', classes=3, hidden=(8, 4), streams=('text',))] == 1


def test_a_model_is_a_static_argument():
    """Equal models share one compiled program."""
    traced = []

    def run(model, x):
        traced.append(model)
        return x * model.classes

    compiled = jax.jit(run, static_argnums=0)
    for classes in (3, 3, 4):
        assert compiled(jmer.create('early', classes=classes), jnp.ones(())) == classes
    assert len(traced) == 2


def test_description_and_back():
    model = jmer.create('late', classes=2, rule='stacked', hidden=[4])
    described = jmer.describe(model)
    assert described['model'] == 'late'
    assert described['fields'] == {
        'classes': 2,
        'streams': ('text', 'audio', 'vision'),
        'rule': 'stacked',
        'probabilities': True,
        'hidden': (4,),
        'pooling': 'mean_std',
        'dropout': 0.3,
    }
    assert jmer.build(described) == model


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: jmer.create('gnu', classes=2), "no model is called 'gnu'; did you mean gmu"),
        (lambda: jmer.create('xyzzy', classes=2), 'no model is called .*bclstm'),
        (lambda: jmer.create('gmu', classes=2, hiden=3), "gmu has no field 'hiden'; did you mean hidden"),
        (lambda: jmer.create('gmu', classes=2, parent=None), "gmu has no field 'parent'"),
        (lambda: jmer.create('gmu'), 'gmu needs the field classes'),
        (lambda: jmer.build({'model': 'gmu'}), r"the keys model and fields, not \['model'\]"),
        (
            lambda: jmer.build({'model': 'gmu', 'fields': {'classes': 2, 'width': 3}}),
            "gmu has no field 'width'",
        ),
    ],
)
def test_what_does_not_exist_is_named_with_its_nearest(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_of_another_house_is_no_model_of_the_zoo():
    import flax.linen as nn

    class Model(late.Model):
        pass

    for stranger in (nn.Dense(3), Model(classes=2)):
        with pytest.raises(ValueError, match='is not a model of the zoo'):
            zoo.describe(stranger)


def test_a_profile_tells_all_without_creating():
    profile = zoo.profile('gmu')
    assert profile['fields']['classes'] == {'type': "<class 'int'>", 'default': None} or (
        profile['fields']['classes']['type'] == 'int'
    )
    assert profile['fields']['dropout']['default'] == 0.5
    assert profile['family'] == 'utterance' and 'Arevalo' in profile['about']


@pytest.mark.parametrize('name', zoo.list_models())
def test_every_model_tells_what_it_is(name):
    file = zoo.module(name)
    assert file.TAGS and all(tag == tag.lower().strip() for tag in file.TAGS)
    published = re.fullmatch(r'.+: .+ \(.*(19|20)\d\d.*\)\.', zoo.about(name))
    assert published or name in ('early', 'late'), 'the first line: NAME: what it is (authors, venue year).'
    for field in zoo.profile(name)['fields']:
        told = field in file.Model.__doc__ or field.endswith('_dropout')
        assert told, f'{name}: the field {field} is not explained'


def test_streams_may_bear_any_name():
    batch = batches.utterances(widths={'eeg': 4}, steps={'eeg': 3})
    model = jmer.create('early', classes=3, streams=('eeg',), hidden=(4,))
    assert jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch, train=False))[
        0
    ].logits.shape == (3, 3)


VOCABULARY = {
    'early fusion', 'late fusion', 'deep fusion', 'hybrid fusion', 'joint representation', 'coordinated representation',
    'data translation', 'multi-head attention', 'cross-modality attention', 'dual attention', 'graph attention',
    'graph-based', 'gated', 'tensor', 'adversarial', 'contrastive', 'diffusion', 'distillation', 'uncertainty',
    'missing modality', 'transformer', 'recurrent', 'convolutional', 'context', 'speaker-aware', 'speech', 'unaligned',
}
"""The survey literature's words for fusion and technology, and a few of our own for what goes in."""


def test_tags_are_the_surveys_words():
    assert set(zoo.tags()) <= VOCABULARY
