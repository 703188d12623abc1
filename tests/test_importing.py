"""Importing authors' checkpoints: the recorded outputs, the card, what can be done with it, what is refused."""

import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest

import jmer
from jmer import checkpoint, cli, importing, zoo
from tests import batches
from tests.parity import parity
from tests.parity.test_gmu import batch_of, recorded
from tests.test_author_files import SAVERS, STATE, save_npz, save_safetensors, save_torch

WIDTHS = {'vision': 3, 'text': 2}


def dense(rng, prefix, inputs, outputs, bias=True):
    state = {f'{prefix}.weight': rng.normal(size=(outputs, inputs))}
    return state | ({f'{prefix}.bias': rng.normal(size=outputs)} if bias else {})


def gmu_state(hidden=4, classes=3, **changes):
    """The tensors of a small GMU by its authors' names."""
    rng, state = np.random.default_rng(0), {}
    for norm, width in (('bn_v', 3), ('bn_t', 2), ('bn1', hidden), ('bn2', hidden), ('bnl', hidden)):
        state |= {f'{norm}.{part}': rng.uniform(0.5, 1, width)
                  for part in ('weight', 'bias', 'running_mean', 'running_var')}
    state |= dense(rng, 'visual', 3, hidden, False) | dense(rng, 'textual', 2, hidden, False)
    state |= dense(rng, 'gate', 2 * hidden, hidden, False) | dense(rng, 'linear3', hidden, classes)
    for k in (1, 2):
        state |= dense(rng, f'linear{k}.lin', hidden, 2 * hidden)
    state = {key: x.astype(np.float32) for key, x in state.items()} | {'bn1.num_batches_tracked': np.array(5)}
    return {key: x for key, x in (state | changes).items() if x is not None}


SETTINGS = ('classes=3', 'hidden=4')


@pytest.fixture
def imported(tmp_path):
    path = save_torch(tmp_path / 'gmu.pt', gmu_state())
    importing.import_author('gmu', path, tmp_path / 'weights', SETTINGS)
    return tmp_path / 'weights'


@pytest.fixture
def run(capsys):
    """Runs the command; its exit status and what it wrote on stdout and stderr."""
    def run(*words):
        capsys.readouterr()
        return cli.main([str(word) for word in words]), *capsys.readouterr()
    return run


@pytest.mark.parametrize('suffix', SAVERS)
def test_an_import_gives_the_authors_outputs(tmp_path, run, suffix):
    fixture = parity.load('gmu')
    h, inputs = fixture.hparams, fixture.section('input')
    path = SAVERS[suffix](tmp_path / f'gmu{suffix}', fixture.section('param'))
    settings = [f'{field}={h[field]}' for field in ('classes', 'hidden', 'pieces')]
    assert run('import-author', 'gmu', path, '--out', tmp_path / 'w', '--set', *settings)[0] == 0
    model, variables, card = jmer.load(str(tmp_path / 'w'))
    with jax.default_matmul_precision('highest'):
        out = model.apply(variables, batch_of(inputs['visual'], inputs['text'], inputs['labels']), train=False)
    for key, value in recorded(out).items():
        parity.assert_close_output(fixture, f'output/{key}', value)
    assert card['widths'] == {'vision': inputs['visual'].shape[1], 'text': inputs['text'].shape[1]}


def test_what_torch_saves_is_imported(tmp_path):
    torch = pytest.importorskip('torch')
    state = {f'module.{key}': torch.tensor(x) for key, x in gmu_state().items()}
    torch.save({'model_state_dict': state, 'epoch': 7}, tmp_path / 'x.pth')
    importing.import_author('gmu', tmp_path / 'x.pth', tmp_path / 'w', SETTINGS)
    _, variables, _ = jmer.load(str(tmp_path / 'w'))
    np.testing.assert_array_equal(variables['params']['head']['kernel'], gmu_state()['linear3.weight'].T)


def test_the_card_says_what_is_known_and_what_is_not(imported, tmp_path):
    model, variables, card = jmer.load(str(imported))
    assert model == jmer.create('gmu', classes=3, hidden=4) == zoo.build({k: card[k] for k in ('model', 'fields')})
    file = (tmp_path / 'gmu.pt').read_bytes()
    assert card['imported'] == {'file': 'gmu.pt', 'sha256': hashlib.sha256(file).hexdigest(), 'key': ''}
    assert card['widths'] == WIDTHS and {'training data', 'labels', 'figures'} <= set(card['unknown'])
    assert card['params_sha256'] == checkpoint.fingerprint(variables)
    assert card['parameters'] == sum(x.size for x in jax.tree.leaves(variables['params']))
    assert not {'corpus', 'metrics', 'target'} & set(card) and str(tmp_path) not in json.dumps(card)


def test_describe_evaluate_and_predict_an_import(imported, run, tmp_path):
    status, told, _ = run('describe', imported)
    assert status == 0 and json.loads(told)['card']['imported']['file'] == 'gmu.pt'
    (tmp_path / 'clip.npz').touch()
    for words in (('evaluate', imported), ('predict', imported, tmp_path / 'clip.npz'), ('predict', imported, 'test'),
                  ('robustness', imported), ('publish', imported, tmp_path / 'out')):
        status, told, complaint = run(*words)
        assert (status, told, complaint.count('\n')) == (1, '', 1), words
        assert f'{imported / "card.json"}: these weights were imported; found no corpus' in complaint


def test_a_card_of_an_import_that_lacks_its_fields(imported):
    card = json.loads((imported / 'card.json').read_text())
    (imported / 'card.json').write_text(json.dumps({k: v for k, v in card.items() if k != 'fields'}))
    with pytest.raises(ValueError, match='found no fields; this is not the card of a model'):
        jmer.load(str(imported))


def test_floats_of_any_precision_become_float32(tmp_path):
    exact = {key: x.astype(np.float16).astype(np.float32) if x.dtype == np.float32 else x
             for key, x in gmu_state().items()}
    for dtype in ('float16', 'float64'):
        state = {key: x.astype(dtype) if x.dtype == np.float32 else x for key, x in exact.items()}
        importing.import_author('gmu', save_torch(tmp_path / 'x.pt', state), tmp_path / dtype, SETTINGS)
        _, variables, _ = jmer.load(str(tmp_path / dtype))
        assert {x.dtype.name for x in jax.tree.leaves(variables)} == {'float32'}
        np.testing.assert_array_equal(variables['params']['gate']['kernel'], exact['gate.weight'].T)


# Refusing


def refused(answer, *messages):
    status, told, complaint = answer
    assert (status, told) == (1, '') and complaint.startswith('jmer import-author: ')
    for message in messages:
        assert re.search(message, complaint), complaint


def test_all_wrong_keys_come_in_one_message(tmp_path, run):
    state = gmu_state(**{'gate.weight': None, 'linear3.bias': np.zeros(7, np.float32), 'extra': np.zeros(2)})
    path = save_safetensors(tmp_path / 'x.safetensors', state)
    answer = run('import-author', 'gmu', path, '--out', tmp_path / 'w', '--set', *SETTINGS)
    refused(answer, r'x.safetensors: this is not a checkpoint of gmu, 3 keys differ', r'missing +gate.weight',
            r'misshapen +linear3.bias: found \(7,\), expected \(3,\)', r'surplus +extra: found \(2,\)')
    assert not (tmp_path / 'w').exists()


def test_a_checkpoint_of_another_system(tmp_path, run):
    path = save_npz(tmp_path / 'x.npz', gmu_state())
    answer = run('import-author', 'bclstm', path, '--out', tmp_path / 'w', '--set', 'classes=3')
    refused(answer, 'this is not a checkpoint of bclstm', r'surplus +gate.weight')
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    ('model', 'settings', 'message'),
    [
        ('gnu', ['classes=3'], "no model is called 'gnu'; did you mean gmu"),
        ('early', ['classes=3'], 'early has no published code whose checkpoints could be read'),
        ('gmu', ['hidden=4'], 'gmu needs the field classes'),
        ('gmu', ['classes=3', 'hiden=4'], "no option is called 'model.hiden'; did you mean hidden"),
        ('gmu', ['classes=many'], "model.classes: found 'many'"),
        ('gmu', ['classes=3', 'hidden'], 'a setting has the form option=value'),
    ],
)
def test_wrong_models_and_fields(tmp_path, run, model, settings, message):
    path = save_npz(tmp_path / 'x.npz', gmu_state())
    refused(run('import-author', model, path, '--out', tmp_path / 'w', '--set', *settings), message)
    assert not (tmp_path / 'w').exists()


def test_files_that_are_no_checkpoints(tmp_path, run):
    words = ('--out', tmp_path / 'w', '--set', *SETTINGS)
    refused(run('import-author', 'gmu', tmp_path / 'gone.pt', *words), 'gone.pt: no such file')
    refused(run('import-author', 'gmu', save_torch(tmp_path / 'x.pt', STATE), *words), 'not a checkpoint of gmu')
    refused(run('import-author', 'gmu', tmp_path / 'x.pt', '--key', 'model', *words), 'found none, expected one called')
    assert not (tmp_path / 'w').exists()


def test_weights_that_are_no_floats_or_not_finite(tmp_path, run):
    for gate, message in ((np.ones((4, 8), np.int64), r'do not fit the model:\n  params/gate/kernel: found int'),
                          (np.full((4, 8), np.nan, np.float32), 'params/gate/kernel: not finite'),
                          (np.full((4, 8), 1e300), 'params/gate/kernel: not finite')):
        path = save_torch(tmp_path / 'x.pt', gmu_state(**{'gate.weight': gate}))
        refused(run('import-author', 'gmu', path, '--out', tmp_path / 'w', '--set', *SETTINGS), message)
        assert not (tmp_path / 'w' / 'card.json').exists()


def test_only_an_import_is_written_over(imported, tmp_path, run):
    words = 'import-author', 'gmu', tmp_path / 'gmu.pt', '--set', *SETTINGS, '--out'
    before = {path: path.stat().st_mtime_ns for path in imported.rglob('*') if path.is_file()}
    assert run(*words, imported)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in imported.rglob('*') if path.is_file()} == before
    save_torch(tmp_path / 'gmu.pt', gmu_state(**{'linear3.bias': np.zeros(3, np.float32)}))
    assert run(*words, imported)[0] == 0
    assert not jmer.load(str(imported))[1]['params']['head']['bias'].any()
    mine = shutil.copytree(imported, tmp_path / 'mine')
    (mine / 'card.json').unlink()
    (tmp_path / 'file').touch()
    for place in (mine, tmp_path / 'file'):
        refused(run(*words, place), 'found something there that is no import, expected a new or empty folder')
    assert (mine / 'params').is_dir()


# What the model itself says of the weights


def made(model, widths):
    batch = batches.of(zoo.family(zoo.name_of(model)), widths=widths, **(
        {'steps': dict.fromkeys(widths, 5)} if zoo.family(zoo.name_of(model)) == 'utterance' else {}))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))


def test_the_weights_show_the_widths():
    """Where a width stands in a shape of its own; sums of several are left alone."""
    widths = {'text': 5, 'audio': 7, 'vision': 4}
    model = zoo.create('gmu', classes=2, streams=tuple(widths), hidden=6)
    assert importing.check(model, made(model, widths)) == widths
    model = zoo.create('early', classes=2, hidden=(6,))
    assert importing.check(model, made(model, widths)) == {}
    model = zoo.create('bclstm', classes=2, streams=('text',), width=4, hidden=6)
    assert importing.check(model, made(model, {'text': 5})) == {'text': 5}


def test_weights_that_the_model_would_not_have_made():
    widths = {'text': 5, 'audio': 7, 'vision': 4}
    model = zoo.create('gmu', classes=2, streams=tuple(widths), hidden=6)
    variables = jax.tree.map(lambda x: x, made(model, widths))
    head, project = variables['params'].pop('head'), variables['params'].pop('project_text')
    with pytest.raises(ValueError, match='3 weights do not fit') as fault:
        importing.check(model, variables)
    for line in ('params/head/bias: found nothing, expected float32 (2,)',
                 'params/project_text/kernel: found nothing, expected float32 (5, 6)'):
        assert line in str(fault.value)
    variables['params'] |= {'head': head, 'tail': head, 'project_text': project}
    with pytest.raises(ValueError, match=r'params/tail/bias: found float32 \(2,\), expected nothing'):
        importing.check(model, variables)
    del variables['params']['tail']
    for wrong in (jax.ShapeDtypeStruct((3,), np.float32), jax.ShapeDtypeStruct((2,), np.int32),
                  jax.ShapeDtypeStruct((2, 1), np.float32)):
        variables['params']['head'] = head | {'bias': wrong}
        with pytest.raises(ValueError, match=r'1 weights do not fit the model:\n  params/head/bias: found .*, '
                                             r'expected float32 \(2,\)'):
            importing.check(model, variables)


def test_a_width_that_hangs_on_several_streams_may_be_any():
    model = zoo.create('early', classes=2, hidden=(6,))
    with pytest.raises(ValueError, match=r'kernel: found nothing, expected float32 \(any, 6\)'):
        importing.check(model, {'params': {'head': {'dense_1': made(model, WIDTHS | {'audio': 7})}}})


def test_a_layer_that_some_widths_do_without():
    """Where the stream is as wide as the model, there is nothing to project."""
    model = zoo.create('cmt_mser', classes=2, streams=('text', 'vision'), width=8, heads=2, layers=1, hidden=6)
    variables = made(model, {'text': 5, 'vision': 8})
    assert 'project_vision' not in variables['params'] and 'project_text' in variables['params']
    assert importing.check(model, variables) == {'text': 5}


def test_a_model_that_takes_no_marked_width_is_not_checked():
    assert importing.check(zoo.create('mser3m', classes=2, heads=7), {'params': {}}) == {}
