"""Graphs against rules written out edge by edge, and graph layers against sums over those edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.layers import graph
from jmer.types import Batch

RNG = np.random.default_rng(0)
PRESENT = np.array([[True] * 6, [True] * 4 + [False] * 2, [False] * 6])
SPEAKERS = np.array([[0, 1, 1, 0, 2, 0], [0, 0, 1, 0, 0, 0], [0] * 6], np.int32)


def by_edge(rule):
    """The graph of all pairs of present turns for which rule(dialogue, t, s) holds."""
    turns = range(PRESENT.shape[1])
    return np.array([[[bool(PRESENT[b, t] and PRESENT[b, s] and rule(b, t, s)) for s in turns] for t in turns]
                     for b in range(len(PRESENT))])


@pytest.mark.parametrize(('past', 'future'), [(0, 0), (2, 1), (1, 3), (-1, 0), (2, -1), (-1, -1), (99, 99)])
def test_a_window_reads_so_many_turns_each_way(past, future):
    def near(b, t, s):
        return (past < 0 or t - s <= past) and (future < 0 or s - t <= future)

    np.testing.assert_array_equal(graph.window(PRESENT, past, future), by_edge(near))


def test_a_window_counts_present_turns_only():
    gap = np.array([[True, False, True, True]])
    found = np.asarray(graph.window(gap, 1, 0))[0]
    assert [tuple(e) for e in np.argwhere(found)] == [(0, 0), (2, 0), (2, 2), (3, 2), (3, 3)]


def test_relations_tell_speakers_and_order():
    found = np.asarray(graph.speaker_relations(SPEAKERS, PRESENT, 3))
    edges = graph.complete(PRESENT)
    for b, t, s in np.argwhere(edges):
        assert found[b, t, s] == 2 * (3 * SPEAKERS[b, s] + SPEAKERS[b, t]) + (s >= t)
    typed = np.asarray(graph.typed(edges, found, 18))
    np.testing.assert_array_equal(typed.sum(1), edges)
    np.testing.assert_array_equal(np.argmax(typed, 1)[edges], found[edges])


@pytest.mark.parametrize('own', [1, 2, 9])
def test_predecessors_go_back_to_the_speakers_own_turns(own):
    expected = np.zeros((3, 6, 6), bool)
    for b in range(3):
        for t in range(int(PRESENT[b].sum())):
            met = 0
            for s in reversed(range(t)):
                expected[b, t, s] = True
                met += SPEAKERS[b, s] == SPEAKERS[b, t]
                if met == own:
                    break
    np.testing.assert_array_equal(graph.predecessors(PRESENT, SPEAKERS, own), expected)


def test_speakers_beyond_the_last_share_its_number():
    batch = Batch({}, PRESENT, {}, SPEAKERS)
    np.testing.assert_array_equal(graph.speakers_of(batch, 2), np.minimum(SPEAKERS, 1))
    with pytest.raises(ValueError, match='speakers: found None'):
        graph.speakers_of(batch._replace(speakers=None), 2)


def test_means_and_softmax_of_nothing_are_zero():
    edges = np.asarray(graph.window(PRESENT, 2, 0))
    scores = RNG.normal(size=edges.shape).astype(np.float32) * 50
    for weights in (graph.mean_of(edges), graph.softmax(scores, edges)):
        np.testing.assert_allclose(weights.sum(-1), PRESENT, atol=1e-6)
        assert not np.asarray(weights)[~edges].any()
    gradient = jax.grad(lambda s: (graph.softmax(s, edges)[..., 0] ** 2).sum())(scores)
    assert np.isfinite(gradient).all()
    poisoned = np.where(edges, scores, np.nan)
    np.testing.assert_array_equal(graph.softmax(poisoned, edges), graph.softmax(scores, edges))


@pytest.mark.parametrize('bases', [0, 3])
@pytest.mark.parametrize('mean', [False, True])
def test_relational_convolution_is_a_sum_over_edges(bases, mean):
    x = RNG.normal(size=(3, 6, 4)).astype(np.float32)
    typed = graph.typed(graph.window(PRESENT, 2, 1), graph.speaker_relations(SPEAKERS, PRESENT, 3), 18)
    weights = graph.mean_of(typed) if mean else typed * RNG.uniform(size=typed.shape).astype(np.float32)
    conv = graph.RelationalConv(5, bases)
    params = jax.jit(conv.init)(jax.random.key(0), x, weights)
    found = jax.jit(conv.apply)(params, x, weights)
    p = jax.tree.map(np.asarray, params['params'])
    kernel = np.einsum('rn,nde->rde', p['mixture'], p['basis']) if bases else p['kernel']
    expected = x @ p['root']['kernel'] + p['root']['bias']
    for b, r, t, s in np.argwhere(typed):
        expected[b, t] += (1 / typed[b, r, t].sum() if mean else weights[b, r, t, s]) * x[b, s] @ kernel[r]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_plain_convolution_and_matching_attention_by_hand():
    x = RNG.normal(size=(3, 6, 4)).astype(np.float32)
    edges = graph.window(PRESENT, 1, 1)
    conv, attention = graph.GraphConv(5), graph.MatchingAttention()
    params = jax.jit(conv.init)(jax.random.key(0), x, edges)
    p = jax.tree.map(np.asarray, params['params'])
    read = np.array([[x[b][np.asarray(edges)[b, t]].sum(0) for t in range(6)] for b in range(3)])
    expected = x @ p['root']['kernel'] + read @ p['neighbours']['kernel'] + p['neighbours']['bias']
    np.testing.assert_allclose(conv.apply(params, x, edges), expected, atol=1e-5)

    params = jax.jit(attention.init)(jax.random.key(0), x, edges)
    means, weights = attention.apply(params, x, edges)
    transform = jax.tree.map(np.asarray, params['params']['transform'])
    q = x @ transform['kernel'] + transform['bias']
    for b, t in np.argwhere(PRESENT):
        seen = np.flatnonzero(np.asarray(edges)[b, t])
        score = np.exp(np.tanh(x[b, seen] @ q[b, t]))
        np.testing.assert_allclose(weights[b, t, seen], score / score.sum(), atol=1e-5)
        np.testing.assert_allclose(means[b, t], score / score.sum() @ x[b, seen], atol=1e-5)


NODES = np.stack([PRESENT, PRESENT & (RNG.uniform(size=PRESENT.shape) < 0.6), PRESENT], 1)


def dense(weights):
    """A modal graph as a matrix over all nodes, [b m u, m u]."""
    within, across = np.asarray(weights.within, np.float32), np.asarray(weights.across, np.float32)
    return np.array([np.block([[within[b, m] if m == n else np.diag(across[b, m, n]) for n in range(3)]
                               for m in range(3)]) for b in range(len(within))])


def modal():
    return graph.modal_graph(NODES, graph.complete(PRESENT))


def test_a_modal_graph_joins_turns_within_and_modalities_across():
    found = dense(modal())
    for b in range(3):
        there = NODES[b].reshape(-1)
        for i in range(18):
            for j in range(18):
                (m, t), (n, s) = divmod(i, 6), divmod(j, 6)
                assert found[b, i, j] == (there[i] and there[j] and (m == n or t == s))
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(graph.read(modal(), x).reshape(3, 18, 4), found @ x.reshape(3, 18, 4), atol=1e-5)
    np.testing.assert_allclose(graph.degree(modal()).reshape(3, 18), found.sum(-1))


def test_a_modal_softmax_runs_over_all_that_a_node_reads():
    edges = modal()
    scores = graph.ModalGraph(RNG.normal(size=(3, 2, 3, 6, 6)).astype(np.float32),
                              RNG.normal(size=(3, 2, 3, 3, 6)).astype(np.float32))
    weights = graph.modal_softmax(scores, edges)
    for head in range(2):
        mask = dense(edges).astype(bool)
        score = np.where(mask, np.exp(dense(graph.ModalGraph(*(s[:, head] for s in scores)))), 0)
        expected = score / np.maximum(score.sum(-1, keepdims=True), 1e-30)
        np.testing.assert_allclose(dense(graph.ModalGraph(*(w[:, head] for w in weights))), expected, atol=1e-6)


def test_angular_weights_and_a_layer_of_gcnii_by_hand():
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    x[0, 0, 1] = 0                                      # a vector without direction
    weights = graph.angular(x, modal(), across=0.5)
    rows = x.reshape(3, 18, 4).astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    raw = 1 - np.arccos(0.99999 * unit @ unit.swapaxes(1, 2)) / np.pi
    raw *= dense(graph.ModalGraph(modal().within, 0.5 * modal().across))
    scale = np.where(raw.sum(-1) > 0, 1 / np.sqrt(np.maximum(raw.sum(-1), 1e-9)), 0)
    expected = raw * scale[:, :, None] * scale[:, None]
    np.testing.assert_allclose(dense(weights), expected, atol=2e-5)

    first, kernel = x[..., ::-1].copy(), RNG.normal(size=(8, 4)).astype(np.float32)
    found = graph.gcnii(x, first, weights, kernel, 0.1, jnp.float32(0.4))
    y, h = (expected @ rows), first.reshape(3, 18, 4)
    by_hand = 0.4 * np.concatenate([y, h], -1) @ kernel + 0.6 * (0.9 * y + 0.1 * h)
    np.testing.assert_allclose(found.reshape(3, 18, 4), by_hand, atol=1e-4)


def test_gradients_of_angular_weights_are_finite():
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    x[0, 0, 1], x[0, 0, 3] = 0, x[0, 0, 2]              # no direction; the same twice
    gradient = jax.grad(lambda x: sum((w**2).sum() for w in graph.angular(x, modal())))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_vectors_of_speakers_and_modalities_are_added_where_told():
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    layer, batch = graph.NodeVectors(2, (True, False, True), modalities=True), Batch({}, PRESENT, {}, SPEAKERS)
    params = jax.jit(lambda key: layer.init(key, x, batch))(jax.random.key(0))
    speakers, modalities = (np.asarray(params['params'][n]['embedding']) for n in ('speakers', 'modalities'))
    added = layer.apply(params, x, batch) - x
    who = speakers[np.minimum(SPEAKERS, 1)]
    for m, told in enumerate((True, False, True)):
        np.testing.assert_allclose(added[:, m], told * who + modalities[m], atol=1e-6)


def test_pairs_of_speakers_are_numbered_without_order():
    found = np.asarray(graph.speaker_pairs(SPEAKERS, 3))
    numbers = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 1): 3, (1, 2): 4, (2, 2): 5}
    for b, t, s in np.ndindex(found.shape):
        assert found[b, t, s] == numbers[tuple(sorted((SPEAKERS[b, t], SPEAKERS[b, s])))]


def attention_by_hand(params, x, matrix, relation, vectors, heads, dynamic):
    """Edge by edge over the nodes [b m u] as one list, in float64."""
    b, m, u, _ = x.shape
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params['params'])
    sent = x @ p['source']['kernel'] + (p['source']['bias'] if dynamic else 0)
    out = np.zeros((b, m, u, sent.shape[-1] // heads))

    def leaky(z):
        return np.where(z > 0, z, 0.2 * z)

    for i, mm, t in np.ndindex(b, m, u):
        sources = [divmod(int(j), u) for j in np.flatnonzero(matrix[i, mm * u + t])]
        kind = [vectors[relation[i, t, s]] if n == mm else vectors[-1] for n, s in sources] if dynamic else []
        others = [e for e, source in zip(kind, sources, strict=False) if source != (mm, t)]
        kind = [(np.mean(others, 0) if others else np.zeros(len(vectors[0]))) if source == (mm, t) else e
                for e, source in zip(kind, sources, strict=False)]
        for h in range(heads):
            part = slice(h * out.shape[-1], (h + 1) * out.shape[-1])
            values = np.array([sent[i, n, s, part] for n, s in sources])
            if not len(values):
                continue
            if dynamic:
                asked = (x[i, mm, t] @ p['target']['kernel'] + p['target']['bias'])[part]
                edge = np.array(kind) @ p['relation']['kernel'][:, part]
                scores = leaky(values + asked + edge) @ p['score'][h]
            else:
                scores = leaky(values @ p['score_source'][h] + sent[i, mm, t, part] @ p['score_target'][h])
            weights = np.exp(scores - scores.max())
            out[i, mm, t] += weights / weights.sum() @ values / heads
    return out + p['bias']


@pytest.mark.parametrize(('dynamic', 'past', 'future'), [(False, 2, 1), (True, 2, 1), (True, 0, 3), (True, -1, -1)])
def test_graph_attention_is_a_softmax_over_edges(dynamic, past, future):
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    vectors = RNG.normal(size=(7, 5)).astype(np.float32)
    edges = graph.modal_graph(NODES, graph.window(PRESENT, past, future))
    relation = graph.speaker_pairs(SPEAKERS, 3)
    given = (relation, vectors) if dynamic else (None, None)
    layer = graph.GraphAttention(3, 2, past, future, dynamic)
    params = jax.jit(lambda key: layer.init(key, x, edges, *given))(jax.random.key(0))
    found = jax.jit(lambda p: layer.apply(p, x, edges, *given))(params)
    expected = attention_by_hand(params, x, dense(edges), np.asarray(relation), vectors, 2, dynamic)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_graph_attention_without_relations_is_that_with_zeros():
    x = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
    edges = graph.modal_graph(NODES, graph.window(PRESENT, 2, 1))
    layer = graph.GraphAttention(3, 2, 2, 1)
    params = jax.jit(lambda key: layer.init(key, x, edges))(jax.random.key(0))
    zeros = {'params': params['params'] | {'relation': {'kernel': np.zeros((5, 6), np.float32)}}}
    plain = layer.apply(params, x, edges)
    told = layer.apply(zeros, x, edges, graph.speaker_pairs(SPEAKERS, 3), np.ones((7, 5), np.float32))
    np.testing.assert_allclose(plain, told, atol=1e-6)


@pytest.mark.parametrize(('past', 'future'), [(0, 0), (2, 1), (5, 5)])
def test_a_band_of_scores_has_the_gradients_of_its_formula(past, future):
    offsets = range(past + future + 1)
    sent, asked, told, kernel = (jnp.asarray(RNG.normal(size=size), jnp.float32)
                                 for size in ((2, 3, 6, 2, 4), (2, 3, 6, 2, 4), (3, 2, 4), (2, 4)))
    ids = jnp.asarray(RNG.integers(0, 3, (len(offsets), 2, 6)))
    weight = jnp.asarray(RNG.normal(size=(len(offsets), 2, 3, 6, 2)), jnp.float32)

    def formula(sent, asked, told, kernel):
        padded = jnp.pad(sent, ((0, 0), (0, 0), (past, future), (0, 0), (0, 0)))
        sums = jnp.stack([padded[:, :, k:k + 6] + asked + told[ids[k]][:, None] for k in offsets])
        return jnp.sum(weight * jnp.einsum('kbmthw,hw->kbmth', jnp.where(sums < 0, 0.2 * sums, sums), kernel))

    def band(*parts):
        return jnp.sum(weight * graph._band(past, *parts, ids))

    parts = sent, asked, told, kernel
    for found, true in zip(jax.grad(band, (0, 1, 2, 3))(*parts), jax.grad(formula, (0, 1, 2, 3))(*parts), strict=True):
        np.testing.assert_allclose(found, true, atol=2e-4)


def test_a_turn_encoder_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind: found 'rnn'"):
        graph.TurnEncoder(3, 4, 'rnn').init(jax.random.key(0), np.zeros((1, 2, 3), np.float32),
                                            np.ones((1, 2), bool), train=False)
