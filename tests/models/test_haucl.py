"""HAUCL: the sampled hypergraph, the convolution over it, and the contrast of its views."""

import jax
import jax.numpy as jnp
import numpy as np

from jmer.models.dialogue import haucl
from tests import batches

RNG = np.random.default_rng(0)
NODES = np.array([[[True, True], [True, False], [True, True]], [[True, True], [False, False], [False, False]]])
"""Two dialogues of three turns and of one, two modalities; the second turn of the first lacks one."""


def test_memberships_are_drawn_at_their_probability_with_a_soft_gradient():
    normal = jnp.asarray(RNG.normal(size=20000), jnp.float32)
    for score in (-1.5, 0.3):
        drawn = haucl._choose(jnp.full(20000, score), normal, 0.1)
        assert set(np.unique(np.round(drawn, 6))) == {0, 1}
        np.testing.assert_allclose(drawn.mean(), 1 / (1 + np.exp(-score)), atol=0.01)
    soft = 1 / (1 + np.exp(-0.3 / 0.1))
    slope = jax.grad(lambda score: haucl._choose(score, jnp.zeros(()), 0.1))(0.3)
    np.testing.assert_allclose(slope, soft * (1 - soft) / 0.1, rtol=1e-4)


def test_the_convolution_is_that_of_the_incidence_matrix():
    """Kept memberships as a matrix of nodes by hyperedges: leaky(D^-1 H B^-1 H^T x + bias) / 2 hyperedges a node."""
    x = RNG.normal(size=(2, 3, 2, 4)) * NODES[..., None]
    keep = RNG.uniform(size=(2, 3, 2, 2)) * NODES[..., None]
    biases = RNG.normal(size=(2, 4))
    found = haucl._convolve(*(jnp.asarray(a, jnp.float32) for a in (x, keep)), NODES, jnp.asarray(biases, jnp.float32))
    for row in range(2):
        h = np.zeros((6, 5))
        for t in range(3):
            for m in range(2):
                h[2 * t + m, m], h[2 * t + m, 2 + t] = keep[row, t, m]
        size, y, there = h.sum(0), x[row].reshape(6, 4), NODES[row].reshape(6, 1)
        for bias in biases:
            y = h @ ((h.T @ y) / np.where(size > 0, size, 1)[:, None]) / 2 + bias
            y = np.where(there, np.where(y > 0, y, 0.01 * y), 0)
        np.testing.assert_allclose(found[row].reshape(6, 4), y, rtol=1e-5, atol=1e-6)


def test_wrong_hyperedges_are_others_that_exist():
    """Hyperedges bear their number; every draw is met."""
    there = np.concatenate([NODES.any(1), NODES.any(2)], 1)
    edges = jnp.broadcast_to(jnp.arange(5.0)[None, :, None], (2, 5, 1))
    met = set()
    for drawn in (-3.0, 0.1, 3.0):
        moved, real = haucl._elsewhere(edges, NODES, there, jnp.full((2, 2), drawn))
        for row, t, m in np.argwhere(NODES):
            if real[row, t, m, 1]:
                met.add((row, t, int(moved[row, t, m, 1, 0])))
            assert real[row, t, m, 0] and int(moved[row, t, m, 0, 0]) == 1 - m
    assert met == {(0, t, 2 + s) for t in range(3) for s in range(3) if s != t}
    assert not real[~NODES].any()


def test_contrast_equals_the_formula():
    views, temperature = RNG.normal(size=(2, 2, 3, 2, 4)), 0.5
    term = haucl._contrast(jnp.asarray(views, jnp.float32), NODES, temperature)
    for row in range(2):
        each = views[:, row][:, NODES[row]]
        each = each / np.linalg.norm(each, axis=-1, keepdims=True)
        flat, n = each.reshape(-1, 4), each.shape[1]
        scores = np.exp(flat @ flat.T / temperature)
        own, other = np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)
        expected = -np.log(scores[own, other] / (scores.sum(1) - scores[own, own])).mean()
        np.testing.assert_allclose(term.value[row], expected, rtol=1e-5)
    np.testing.assert_array_equal(term.weight, 2 * NODES.sum((1, 2)))


def test_a_modality_may_be_missing_in_single_turns_and_speakers_many():
    model, batch = haucl.Model(batches.CLASSES, width=4, hidden=3, layers=1, speakers=2), batches.dialogues()
    audio = batch.streams['audio']
    mask = audio.mask.copy()
    mask[:, 2] = False
    batch = batch._replace(streams=batch.streams | {'audio': audio._replace(mask=mask)}, speakers=batch.speakers + 4)
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()

    @jax.jit
    def run(batch):
        out = model.apply(variables, batch, train=True, rngs={'dropout': jax.random.key(1)}, mutable=['batch_stats'])[0]
        return out, haucl.loss(model, out, batch)

    out, terms = run(batch)
    assert np.isfinite(out.logits).all() and all(np.isfinite(term.value).all() for term in terms.values())
    rubbish = audio._replace(x=np.where(mask[..., None], audio.x, 1e3).astype(np.float32), mask=mask)
    other, _ = run(batch._replace(streams=batch.streams | {'audio': rubbish}))
    np.testing.assert_array_equal(other.logits, out.logits)
    kept = np.asarray(out.aux['generated'].keep)
    assert set(np.unique(np.round(kept, 5))) == {0, 1} and not kept[:, :, 2, 1].any()
    assert (kept[0] != kept[1]).any()


def test_the_autoencoder_is_asked_for_every_membership_and_as_many_others():
    x = jnp.asarray(RNG.normal(size=(2, 3, 2, 4)), jnp.float32)
    generator = haucl.Generator(4, 0.1)
    variables = jax.jit(lambda: generator.init(jax.random.key(0), x, NODES, None))()
    run = jax.jit(lambda variables, key: generator.apply(variables, x, NODES, key))
    made = run(variables, None)
    # Two right ones a node, and the wrong turn and modality where another turn or modality is there at all.
    np.testing.assert_array_equal(made.pairs, [[8, 4, 8], [6, 0, 0]])
    assert ((made.keep[0] > 0) & (made.keep[0] < 1))[NODES].all() and not np.asarray(made.keep)[0][~NODES].any()
    blank = jax.tree.map(jnp.zeros_like, variables)
    made = run(blank, jax.random.key(1))
    # Without weights every score is zero, every code has the deviation log 2.
    np.testing.assert_allclose(made.error[NODES.any(2)], np.log(2), rtol=1e-6)
    spread = np.log(2) + 1e-6
    np.testing.assert_allclose(made.nodes, (spread**2 - 1) / 2 - np.log(spread), rtol=1e-5)
    np.testing.assert_array_equal(made.pairs, [[16, 8, 16], [12, 0, 0]])
