"""Every restatement of longnet_variants beside one dense fp64 softmax over the multiset of keys, gradients included."""

import torch

from longnet_variants import make, random_inputs
from measuring import attempt

# Largest error allowed of a tensor, as a norm, in the precision of the device's check.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def visible(tokens, heads, w, r, causal, offset_of, device):
    """[H, N, N]: whether a branch shows the key to the query."""
    w = min(w, tokens)
    token = torch.arange(tokens, device=device)
    selected = torch.stack([(token % w) % r == offset_of(head, heads, r) for head in range(heads)])
    both = selected[:, :, None] & selected[:, None, :] & (token[:, None] // w == token // w)
    return both & (token[:, None] >= token) if causal else both


def paper_offset(head, heads, rate):
    del heads
    return head % rate


def torchscale_offset(head, heads, rate):
    return head // -(-heads // rate)


def oracle(inputs, dout, branches, causal=True, offset_of=paper_offset, detached=False):
    """(out, dq, dk, dv) in fp64, [N, H, D] each. Detached: the branches' shares have no gradient."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    tokens, heads, dim = q.shape
    scores = torch.einsum('qhd,khd->hqk', q, k) / dim**0.5
    outs, lses = [], []
    masks = [visible(tokens, heads, w, r, causal, offset_of, q.device) for w, r in branches]
    if not detached:
        times = sum(mask.double() for mask in masks)
        out = torch.einsum('hqk,khd->qhd', torch.softmax(scores + times.log(), -1).nan_to_num(), v)
    else:
        for mask in masks:
            own = scores.masked_fill(~mask, float('-inf'))
            lses.append(torch.logsumexp(own.detach(), -1))
            share = torch.softmax(own.masked_fill(~mask.any(-1, keepdim=True), 0), -1) * mask
            outs.append(torch.einsum('hqk,khd->qhd', share, v))
        weights = torch.softmax(torch.stack(lses), 0).transpose(1, 2)
        out = sum(w.unsqueeze(-1) * o for w, o in zip(weights, outs))
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), dout.double()))


def error(value, reference):
    difference = value.detach().double() - reference
    return (difference.norm() / reference.norm()).item()


def cases(device):
    """(tokens, heads, head size, branches, size of flex's blocks, tokens that sums may be made of at a time)."""
    if device == 'cpu':
        nested = [(32, 1), (64, 2), (128, 4)]
        return [(256, 8, 16, nested, 8, 128), (128, 6, 16, nested, 8, 128), (256, 3, 16, [(64, 1), (128, 8)], 8, 256),
                (256, 5, 16, [(32, 1), (64, 6), (128, 12)], None, 128)]
    nested = [(512, 1), (1024, 2), (2048, 4)]
    return [(4096, 6, 128, nested, 128, 2048), (4096, 3, 64, [(1024, 1), (2048, 6)], None, 4096)]


def reference(variant, inputs, dout, branches):
    """What the variant computes, by its own definition of the gradient."""
    if variant == 'dense':
        return oracle(inputs, dout, [(inputs[0].shape[0], 1)])
    if variant == 'torchscale':
        return oracle(inputs, dout, branches, offset_of=torchscale_offset, detached=True)
    return oracle(inputs, dout, branches, detached=variant in ('gather', 'gather_compiled'))


def errors_of(variant, call, inputs, dout, branches):
    order = call.function.order(dout.shape[0]) if variant == 'flex' else torch.arange(dout.shape[0], device=dout.device)
    back = torch.argsort(order)
    values = call.both(*(x[order] for x in (dout, *inputs)))
    expected = reference(variant, inputs, dout, branches)
    return {name: error(value[back], want) for name, value, want in zip(('out', 'dq', 'dk', 'dv'), values, expected)}


def check(device, variants, compiled):
    """Prints a line for each case and variant; whether all are right."""
    dtype = torch.float32 if device == 'cpu' else torch.bfloat16
    right = True
    for tokens, heads, dim, branches, flex_block, slice_tokens in cases(device):
        q, k, v, dout = random_inputs(tokens, heads, dim, torch.device(device), dtype)
        for variant in variants:
            if variant.endswith('_graph') or (variant == 'flex' and not flex_block):
                continue

            def measure(variant=variant, tail=(flex_block, slice_tokens)):
                call = make(variant, tokens, heads, branches, q.device, compiled, *tail)
                return {'errors': errors_of(variant, call, (q, k, v), dout, branches)}

            row = attempt({'check': variant, 'tokens': tokens, 'heads': heads, 'head_dim': dim, 'branches': branches}, measure)
            right &= all(x < LIMITS[dtype] for x in row.get('errors', {'none': float('inf')}).values())
    return right
