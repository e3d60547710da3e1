"""A LongNet decoder as torchscale defines it, written down anew in numpy: its weights, and what it computes of them."""

import math

import numpy

HEADS = 4
BRANCHES = (64, 1), (512, 4)


def random_weights(dim=32, ffn=48, vocab=256, layers=2):
    """A state dict, of which no weight can stand for another."""
    random, weights = numpy.random.default_rng(1), {}

    def draw(name, sizes, mean=0.0, deviation=0.2):
        weights[f'decoder.{name}'] = random.normal(mean, deviation, sizes).astype('float16')

    def linear(name, rows, columns):
        draw(f'{name}.weight', (rows, columns))
        draw(f'{name}.bias', rows)

    def norm(name, size):
        draw(f'{name}.weight', size, mean=1)
        draw(f'{name}.bias', size)
    for layer in (f'layers.{index}' for index in range(layers)):
        for which in 'k_proj', 'v_proj', 'q_proj', 'out_proj':
            linear(f'{layer}.self_attn.{which}', dim, dim)
        linear(f'{layer}.ffn.fc1', ffn, dim)
        linear(f'{layer}.ffn.fc2', dim, ffn)
        norm(f'{layer}.ffn.ffn_layernorm', ffn)
        for which in 'self_attn.inner_attn_ln', 'self_attn_layer_norm', 'final_layer_norm':
            norm(f'{layer}.{which}', dim)
    norm('layer_norm', dim)
    draw('embed_tokens.weight', (vocab, dim), deviation=1)
    draw('output_projection.weight', (vocab, dim))
    return weights


def logits(weights, tokens, layers=2):
    """[N] -> [N, vocab], in fp64."""
    get = lambda name: weights[f'decoder.{name}'].astype('float64')
    linear = lambda name, x: x @ get(f'{name}.weight').T + get(f'{name}.bias')
    erf = numpy.vectorize(math.erf)

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        spread = numpy.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * get(f'{name}.weight') + get(f'{name}.bias')

    def attention(name, x):
        q, k, v = (linear(f'{name}.{which}_proj', x).reshape(len(x), HEADS, -1).swapaxes(0, 1) for which in 'qkv')
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2])
        # The branches' softmaxes, mixed by their sums, are one, in which each branch that shows a key counts it once.
        shares = numpy.exp(scores - scores.max(-1, keepdims=True)) * times_seen(len(x))
        found = (shares @ v / shares.sum(-1, keepdims=True)).swapaxes(0, 1).reshape(x.shape)
        return linear(f'{name}.out_proj', norm(f'{name}.inner_attn_ln', found))
    x = get('embed_tokens.weight')[tokens]
    for layer in (f'layers.{index}' for index in range(layers)):
        x = x + attention(f'{layer}.self_attn', norm(f'{layer}.self_attn_layer_norm', x))
        hidden = linear(f'{layer}.ffn.fc1', norm(f'{layer}.final_layer_norm', x))
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + linear(f'{layer}.ffn.fc2', norm(f'{layer}.ffn.ffn_layernorm', hidden))
    return norm('layer_norm', x) @ get('output_projection.weight').T


def times_seen(length):
    """[head, query, key]: in how many branches the query sees the key."""
    place = numpy.arange(length)
    seen = numpy.zeros((HEADS, length, length))
    for segment, rate in BRANCHES:
        together = (place[:, None] // segment == place // segment) & (place[:, None] >= place)
        for head in range(HEADS):
            selected = place % segment % rate == head // math.ceil(HEADS / rate)
            seen[head] += together & selected[:, None] & selected
    return seen


def loss(weights, text):
    """The mean over all bytes but the first, each foretold from those before it."""
    found = logits(weights, numpy.frombuffer(text[:-1], 'uint8'))
    most = found.max(-1, keepdims=True)
    sums = numpy.log(numpy.exp(found - most).sum(-1)) + most[:, 0]
    return (sums - found[numpy.arange(len(found)), numpy.frombuffer(text[1:], 'uint8')]).mean()


def continued(weights, text, count):
    """The text and `count` bytes more, the likeliest each time."""
    for _ in range(count):
        text += bytes([logits(weights, numpy.frombuffer(text, 'uint8'))[-1].argmax()])
    return text
