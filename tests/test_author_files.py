"""Authors' files: every number as stored, no code run, and every damaged or hostile file refused by name."""

import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from jmer import author_files

W = np.arange(12, dtype=np.float32).reshape(3, 4)
STATE = {
    'fc.weight': W,
    'fc.bias': np.array([1.5, -2.0, 0.25], np.float32),
    'norm.num_batches_tracked': np.array(7, np.int64),
    'half': np.array([1.0, 0.5], np.float16),
    'brain': np.array([3.0, -1.0]).astype(ml_dtypes.bfloat16),
    'none': np.zeros((0, 3), np.float32),
    'flags': np.array([True, False]),
}
KINDS = {'float32': 'Float', 'float64': 'Double', 'float16': 'Half', 'bfloat16': 'BFloat16', 'int64': 'Long',
         'bool': 'Bool'}


# A pickle by hand, instruction by instruction: what torch.save writes, and what it never would


def text(value):
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def integer(value):
    return b'J' + struct.pack('<i', value)


def many(*parts):
    return b'(' + b''.join(parts) + b't'


def name(dotted):
    module, _, attribute = dotted.rpartition('.')
    return b'c' + f'{module}\n{attribute}\n'.encode()


def call(dotted, *arguments):
    return name(dotted) + many(*arguments) + b'R'


def tensor(storage, kind, count, size, stride, offset=0):
    told = many(text('storage'), name(f'torch.{kind}Storage'), text(storage), text('cpu'), integer(count)) + b'Q'
    return call('torch._utils._rebuild_tensor_v2', told, integer(offset), many(*map(integer, size)),
                many(*map(integer, stride)), b'\x89', call('collections.OrderedDict'))


def mapping(**entries):
    return b'}(' + b''.join(text(key) + value for key, value in entries.items()) + b'u'


def torch_file(path, body, storages=(), byteorder=b'little', **options):
    with zipfile.ZipFile(path, 'w', **options) as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02' + body + b'.')
        if byteorder is not None:
            archive.writestr('archive/byteorder', byteorder)
        for k, data in enumerate(storages):
            archive.writestr(f'archive/data/{k}', data)
    return path


def save_torch(path, state=STATE, wrap=lambda body: body):
    """A state_dict as torch.save writes it, one storage a tensor."""
    entries = {key: tensor(str(k), KINDS[x.dtype.name], x.size, x.shape, [s // x.itemsize for s in x.strides])
               for k, (key, x) in enumerate(state.items())}
    body = call('collections.OrderedDict') + mapping(**entries)[1:] + mapping(_metadata=b'}') + b'b'
    return torch_file(path, wrap(body), [x.tobytes() for x in state.values()])


def save_safetensors(path, state=STATE):
    names = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'int64': 'I64', 'bool': 'BOOL', 'float64': 'F64'}
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for key, x in state.items():
        offsets = [len(data), len(data) + x.nbytes]
        header[key] = {'dtype': names[x.dtype.name], 'shape': x.shape, 'data_offsets': offsets}
        data += x.tobytes()
    return safetensors_file(path, header, data)


def safetensors_file(path, header, data=b''):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + data)
    return path


def save_npz(path, state=STATE):
    np.savez(path, **{key: x for key, x in state.items() if x.dtype.name != 'bfloat16'})
    return path


SAVERS = {'.pt': save_torch, '.safetensors': save_safetensors, '.npz': save_npz}


def same(found, expected):
    assert list(found) == list(expected)
    for key, x in expected.items():
        assert found[key].dtype == x.dtype, key
        np.testing.assert_array_equal(found[key], x, err_msg=key)


def refused(path, message, key=''):
    with pytest.raises(ValueError, match=message) as fault:
        author_files.read(path, key)
    assert str(path) in str(fault.value) and len(str(fault.value)) < 1000


# Reading


@pytest.mark.parametrize('suffix', SAVERS)
def test_every_number_as_stored(tmp_path, suffix):
    path = SAVERS[suffix](tmp_path / f'gmu{suffix}')
    same(author_files.read(path), {k: x for k, x in STATE.items() if suffix != '.npz' or k != 'brain'})


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_what_torch_saves(tmp_path, protocol):
    torch = pytest.importorskip('torch')
    w = torch.arange(12.0).reshape(3, 4)
    state = {'a': w, 'turned': w.T, 'part': w[1:, 1:3], 'every other': w[::2], 'row': w[:1].expand(1, 4),
             'parameter': torch.nn.Parameter(w), 'brain': w.bfloat16(), 'half': w.half(), 'scalar': torch.tensor(3)}
    module = torch.nn.DataParallel(torch.nn.BatchNorm1d(3)).state_dict()
    optimizer = {'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': [{'lr': 1e-3, 'betas': (0.9, 0.99)}]}
    for name, saved in (('a.pt', state), ('b.pth', {'model': state, 'optimizer': optimizer, 'epoch': 3}),
                        ('c.bin', {'net': module, 'best': 0.7})):
        torch.save(saved, tmp_path / name, pickle_protocol=protocol)
    for name in ('a.pt', 'b.pth'):
        found = author_files.read(tmp_path / name)
        assert list(found) == list(state)
        for key, x in state.items():
            np.testing.assert_array_equal(found[key].astype('f4'), x.detach().float().numpy(), err_msg=key)
        assert found['brain'].dtype == ml_dtypes.bfloat16 and found['half'].dtype == np.float16
    assert author_files.read(tmp_path / 'c.bin')['running_var'].tolist() == [1, 1, 1]
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'd.pt')
    refused(tmp_path / 'd.pt', "found 'torch.nn.modules.linear.Linear', which is no part of a state_dict")
    torch.save(state, tmp_path / 'e.pt', _use_new_zipfile_serialization=False)
    refused(tmp_path / 'e.pt', 'older format: save it again')


def test_what_safetensors_saves(tmp_path):
    state = {k: x for k, x in STATE.items() if k != 'brain'}
    safetensors.save_file(state, tmp_path / 'x.safetensors', {'format': 'pt'})
    found = author_files.read(tmp_path / 'x.safetensors')
    same({k: found[k] for k in state}, state)
    ours = safetensors.load_file(save_safetensors(tmp_path / 'y.safetensors', state))
    same({k: ours[k] for k in state}, state)


def test_views_of_one_storage(tmp_path):
    """Turned, cut out, strided, repeated within bounds; with and without a byte order, and with the other one."""
    views = mapping(whole=tensor('0', 'Float', 12, (3, 4), (4, 1)), turned=tensor('0', 'Float', 12, (4, 3), (1, 4)),
                    part=tensor('0', 'Float', 12, (2, 2), (4, 1), 5), other=tensor('0', 'Float', 12, (2, 4), (8, 1)),
                    row=tensor('0', 'Float', 12, (2, 4), (0, 1)), one=tensor('0', 'Float', 12, (), (), 11))
    expected = {'whole': W, 'turned': W.T, 'part': W[1:, 1:3], 'other': W[::2], 'row': np.stack([W[0], W[0]]),
                'one': W[2, 3]}
    for order, data in ((b'little', W), (None, W), (b'big', W.astype('>f4'))):
        same(author_files.read(torch_file(tmp_path / 'x.pt', views, [data.tobytes()], order)), expected)
    brain = mapping(x=tensor('0', 'BFloat16', 2, (2,), (1,)))
    path = torch_file(tmp_path / 'y.pt', brain, [STATE['brain'].view('u2').astype('>u2').tobytes()], b'big')
    same(author_files.read(path), {'x': STATE['brain']})


def test_arrays_of_other_orders_in_an_npz(tmp_path):
    np.savez_compressed(tmp_path / 'x.npz', columns=np.asfortranarray(W), big=W.astype('>f4'))
    same(author_files.read(tmp_path / 'x.npz'), {'columns': W, 'big': W})


def nested(**parts):
    def wrap(body):
        return mapping(**{key: body if part is None else part for key, part in parts.items()})
    return wrap


def test_the_state_inside_a_training_checkpoint(tmp_path):
    for key in ('state_dict', 'model', 'model_state_dict', 'net'):
        path = save_torch(tmp_path / 'x.pt', wrap=nested(epoch=integer(3), **{key: None}, optimizer=mapping(a=b'N')))
        same(author_files.read(path), STATE)
        same(author_files.read(path, key), STATE)
    refused(path, "found 1 .'net'., expected one called 'model'", 'model')
    path = save_torch(tmp_path / 'x.pt', wrap=nested(model=None, ema=mapping(a=tensor('0', 'Float', 12, (12,), (1,)))))
    refused(path, "found 2 .'model', 'ema'., expected one; choose by --key")
    assert list(author_files.read(path, 'ema')) == ['a']
    refused(torch_file(tmp_path / 'y.pt', mapping(epoch=integer(3))), 'found none, expected one')
    refused(torch_file(tmp_path / 'y.pt', integer(3)), 'found none, expected one')
    refused(torch_file(tmp_path / 'y.pt', b'}'), 'found none, expected one')


@pytest.mark.parametrize('suffix', SAVERS)
def test_the_prefix_of_data_parallel_goes(tmp_path, suffix):
    path = SAVERS[suffix](tmp_path / f'x{suffix}', {'module.a': W, 'module.module.b': W})
    assert list(author_files.read(path)) == ['a', 'module.b']
    path = SAVERS[suffix](tmp_path / f'x{suffix}', {'module.a': W, 'b': W})
    assert list(author_files.read(path)) == ['module.a', 'b'], 'only where all keys have it'


# Hostile pickles


class Boom:
    """Whoever unpickles it is told so by a file."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def test_no_code_of_a_pickle_is_run(tmp_path):
    import os

    mark = tmp_path / 'ran'
    attacks = {
        'posix.system': Boom(os.system, f'touch {mark}'),
        'builtins.eval': Boom(eval, f"open({str(mark)!r}, 'w')"),
        'builtins.getattr': Boom(getattr, 'text', 'format'),
    }
    old = {dotted: dotted.replace('builtins', '__builtin__') for dotted in attacks}      # Python 2's names
    for dotted, attack in attacks.items():
        for protocol in (2, 4):
            body = pickle.dumps({'a': attack}, protocol)[2:-1]
            refused(torch_file(tmp_path / 'x.pt', body), f"found '{dotted if protocol == 4 else old[dotted]}'")
        assert not mark.exists()
    pickle.loads(pickle.dumps(attacks['posix.system']))
    assert mark.exists(), 'the attack is one'
    mark.unlink()
    for dotted in ('os.system', 'builtins.getattr', 'operator.attrgetter', 'torch.load', 'torch._utils.os'):
        refused(torch_file(tmp_path / 'x.pt', mapping(a=call(dotted, text(f'touch {mark}')))), f"found '{dotted}'")
        refused(torch_file(tmp_path / 'x.pt', mapping(a=name(dotted))), f"found '{dotted}'")
    assert not mark.exists()


STRANGE = {
    'called tensor': (mapping(a=b'N)R'), 'a call of something that is no function'),
    'called storage kind': (call('torch.FloatStorage', integer(9)), 'a call of something that is no function'),
    'arguments no tuple': (name('torch.Size') + b']R', 'a call of something that is no function'),
    'attributes of a function': (name('torch.Size') + mapping(a=b'N') + b'b', 'attributes of something else'),
    'method chain': (b'}' + name('collections.OrderedDict.fromkeys') + b')R', "'collections.OrderedDict.fromkeys'"),
    'chain in one name': (b'\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93', "'collections.OrderedDict.__init__'"),
    'object': (b'(' + name('collections.OrderedDict') + b'o', 'the instruction OBJ'),
    'instance': (b'(ios\nsystem\n', 'the instruction INST'),
    'extension': (b'\x82\x01', 'the instruction EXT1'),
    'new object': (name('collections.OrderedDict') + b')\x81', 'the instruction NEWOBJ'),
    'another reference': (text('/etc/passwd') + b'Q', 'reference to something else than a storage'),
    'reference to a file': (many(text('storage'), name('torch.FloatStorage'), text('../data.pkl'), text('cpu'),
                                 integer(1)) + b'Q', "no member 'archive/data/../data.pkl'"),
    'tuple as a key': (b'}))s', 'found a tuple as a key'),
    'far memo': (b'Nr\xff\xff\xff\x7f' + b'j\xff\xff\xff\x6f', 'damaged at LONG_BINGET'),
    'empty stack': (b's', 'damaged at SETITEM'),
    'no mark': (b'}u', 'damaged at SETITEMS'),
    'nothing': (b'', 'pop from empty list'),
    'odd items': (b'}(Nu', 'data.pkl|shorter|longer'),
    'long text': (b'X\xff\xff\xff\x7fabc', 'expected 2147483647 bytes'),
    'unknown instruction': (b'\xff', 'opcode'),
    'control characters': (name('os\x1b[2J.system'), r"found 'os\\x1b\[2J.system'"),
}


@pytest.mark.parametrize('attack', STRANGE)
def test_a_strange_pickle_is_refused(tmp_path, attack):
    body, message = STRANGE[attack]
    refused(torch_file(tmp_path / 'x.pt', body), message)


def test_recursion_and_repetition_are_no_harm(tmp_path):
    """A dict in itself, lists 20,000 deep, and 2 ** 200 references to nothing, as value, as key and as size."""
    itself = b'}q\x00(' + text('me') + b'h\x00u'
    refused(torch_file(tmp_path / 'x.pt', itself), 'found none, expected one')
    path = save_torch(tmp_path / 'x.pt', wrap=nested(state_dict=None, deep=b']' * 20_000 + b'a' * 19_999))
    same(author_files.read(path), STATE)
    laughs = b')' + b'q\x00h\x00\x86' * 200
    path = save_torch(tmp_path / 'x.pt', wrap=nested(state_dict=None, laughs=laughs))
    same(author_files.read(path), STATE)
    refused(torch_file(tmp_path / 'x.pt', b'}' + laughs + b'Ns'), 'found a tuple as a key')
    refused(torch_file(tmp_path / 'x.pt', name('torch.Size') + laughs + b'\x85R'), 'something else than sizes')


# Sizes that are not what they say

TENSORS = {
    'too far': (tensor('0', 'Float', 12, (3, 5), (4, 1)), 'is more than its storage of 12 numbers'),
    'offset': (tensor('0', 'Float', 12, (3, 4), (4, 1), 1), 'is more than its storage of 12 numbers'),
    'stride': (tensor('0', 'Float', 12, (2, 1), (12, 1)), 'is more than its storage of 12 numbers'),
    'expanded': (tensor('0', 'Float', 12, (2000000000, 2000000000), (0, 0)), 'is more than its storage of 12'),
    'negative size': (tensor('0', 'Float', 12, (-3, 4), (4, 1)), r'found sizes \(-3, 4\), expected none below zero'),
    'negative stride': (tensor('0', 'Float', 12, (3, 4), (-4, 1)), r'stride.*expected none below zero'),
    'negative offset': (tensor('0', 'Float', 12, (3, 4), (4, 1), -1), r'offset.*expected none below zero'),
    'ranks': (tensor('0', 'Float', 12, (3, 4), (4,)), r'shape \(3, 4\) with strides \(4,\)'),
    'many axes': (tensor('0', 'Float', 12, (1,) * 65, (1,) * 65), 'at most 32 integers'),
    'count': (tensor('0', 'Float', 13, (3, 4), (4, 1)), "'archive/data/0': found 48 bytes, expected 13 times 4"),
    'negative count': (tensor('0', 'Float', -12, (3, 4), (4, 1)), 'found 48 bytes, expected -12 times 4'),
    'other dtype': (tensor('0', 'Double', 12, (3, 4), (4, 1)), 'found 48 bytes, expected 12 times 8'),
    'gone': (tensor('7', 'Float', 12, (3, 4), (4, 1)), "no member 'archive/data/7'; the file is torn"),
    'unknown dtype': (tensor('0', 'ComplexFloat', 12, (3, 4), (4, 1)), "found 'torch.ComplexFloatStorage'"),
    'no storage': (call('torch._utils._rebuild_tensor_v2', b'N', b'N', b'N', b'N'), 'a tensor without storage'),
    'no tensor': (call('torch._utils._rebuild_parameter', b'N'), 'a parameter without tensor'),
    'no arguments': (call('torch._utils._rebuild_tensor_v2'), 'damaged at REDUCE'),
}


@pytest.mark.parametrize('fault', TENSORS)
def test_a_tensor_stays_in_its_storage(tmp_path, fault):
    body, message = TENSORS[fault]
    refused(torch_file(tmp_path / 'x.pt', mapping(a=body), [W.tobytes()]), message)


def test_zips_that_expand(tmp_path):
    zeros = np.zeros(2_000_000, np.float32)
    body = mapping(a=tensor('0', 'Float', zeros.size, zeros.shape, (1,)))
    path = torch_file(tmp_path / 'x.pt', body, [zeros.tobytes()], compression=zipfile.ZIP_DEFLATED)
    refused(path, r'found members of 80\d+ bytes in a file of \d+, expected at most')
    np.savez_compressed(tmp_path / 'x.npz', a=zeros)
    refused(tmp_path / 'x.npz', r'found members of 8000128 bytes in a file of \d+, expected at most')


def test_an_npz_that_claims_more_than_it_holds(tmp_path):
    def write(header, data=b''):
        head = header.encode().ljust(117) + b'\n'
        with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
            archive.writestr('a.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head + data)
        return tmp_path / 'x.npz'

    kind = "{'descr': '<f4', 'fortran_order': False, 'shape': "
    refused(write(kind + '(9999999999999,)}', bytes(8)), 'a.npy.: found 8 bytes, expected 39999999999996')
    refused(write(kind + '(-2, -1)}', bytes(8)), 'a.npy.: found 8 bytes, expected 8 for')
    refused(write(kind + '__import__("os").getcwd()}', bytes(8)), 'x.npz: malformed node or string')
    np.savez(tmp_path / 'x.npz', a=np.array([{}], object))
    refused(tmp_path / 'x.npz', 'found dtype object, expected numbers')
    np.savez(tmp_path / 'x.npz', a=STATE['brain'])
    refused(tmp_path / 'x.npz', r'found dtype \|V2, expected numbers \(an npz keeps no bfloat16: store float32\)')


ENTRY = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
HEADERS = {
    'size': ({'a': ENTRY | {'shape': [3]}}, "'a': found data_offsets 0 to 8 of 8 bytes, expected 12 bytes"),
    'huge': ({'a': ENTRY | {'shape': [1 << 60, 1 << 60]}}, "'a': found data_offsets 0 to 8"),
    'beyond': ({'a': ENTRY | {'data_offsets': [4, 12]}}, "'a': found data_offsets 4 to 12 of 8 bytes"),
    'backwards': ({'a': ENTRY | {'data_offsets': [8, 0]}}, "'a': found data_offsets 8 to 0"),
    'negative': ({'a': ENTRY | {'shape': [-2]}}, r"'a': found sizes .-2\b.*, expected none below zero"),
    'fraction': ({'a': ENTRY | {'shape': [2.0]}}, "'a': found something else than sizes"),
    'dtype': ({'a': ENTRY | {'dtype': 'F8_E4M3'}}, "'a': found dtype 'F8_E4M3', expected one of F64, F32"),
    'field': ({'a': {'dtype': 'F32'}}, "'a': expected dtype, shape and data_offsets"),
    'no entry': ({'a': 3}, "'a': expected dtype, shape and data_offsets"),
    'overlap': ({'a': ENTRY, 'b': ENTRY}, 'found gaps or overlaps, expected tensors side by side in 8 bytes'),
    'gap': ({'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}}, 'found gaps or overlaps'),
    'list': ([ENTRY], 'header: found a list, expected tensors by name'),
    'twice': (b'{"a": 1, "a": 2}', 'x.safetensors: found a name twice'),
    'no json': (b'{"a": ', 'x.safetensors: Expecting value'),
    'deep': (b'[' * 100_000, 'recursion'),
}


@pytest.mark.parametrize('fault', HEADERS)
def test_a_false_header_of_safetensors(tmp_path, fault):
    header, message = HEADERS[fault]
    refused(safetensors_file(tmp_path / 'x.safetensors', header, bytes(8)), message)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(struct.pack('<Q', 1 << 62) + b'{}')
    refused(path, 'found a header of 4611686018427387904 bytes in a file of 10; it is torn')


# Torn and wrong files


@pytest.mark.parametrize('suffix', SAVERS)
def test_a_torn_file_is_refused_wherever_it_ends(tmp_path, suffix):
    whole = SAVERS[suffix](tmp_path / f'x{suffix}').read_bytes()
    torn = tmp_path / f'torn{suffix}'
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        torn.write_bytes(whole[:end])
        refused(torn, 'torn')


@pytest.mark.parametrize('suffix', SAVERS)
def test_a_flipped_byte_is_refused_or_harms_nobody(tmp_path, suffix):
    """Zips know their sums; a safetensors file knows only its layout."""
    whole = SAVERS[suffix](tmp_path / f'x{suffix}').read_bytes()
    spoilt = tmp_path / f'spoilt{suffix}'
    refusals = 0
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        spoilt.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:])
        try:
            author_files.read(spoilt)
        except ValueError as fault:
            refusals += 1
            assert str(spoilt) in str(fault)
    assert refusals > 50


def test_names_that_no_tensor_has(tmp_path):
    for suffix, save in SAVERS.items():
        path = save(tmp_path / f'x{suffix}', {'a\x1b[2J': W})
        refused(path, r"found a tensor called 'a\\x1b\[2J', expected a printable name")
    path = save_npz(tmp_path / 'y.npz', {'a': W})
    with pytest.warns(UserWarning, match='Duplicate name'), zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('a.npy', archive.read('a.npy'))
    refused(path, 'y.npz: found a name twice')


def test_files_of_another_kind(tmp_path):
    (tmp_path / 'x.ckpt').touch()
    refused(tmp_path / 'x.ckpt', r"found the suffix '.ckpt', expected one of .safetensors, .npz, .pt, .pth, .bin")
    for suffix in SAVERS:
        (tmp_path / f'x{suffix}').write_text('hello, this is no checkpoint at all')
        refused(tmp_path / f'x{suffix}', 'zip|header')
        with pytest.raises(FileNotFoundError, match=f'gone{suffix}: no such file'):
            author_files.read(tmp_path / f'gone{suffix}')
    refused(save_npz(tmp_path / 'y.npz').rename(tmp_path / 'y.pt'), 'found 0 members FOLDER/data.pkl, expected one')
