"""The rows of LongNet attention's branches as regular parts of [N, H, ...] tensors, and the fused attention over one part.

A branch (w, r) cuts N tokens into segments of w; head j sees every r-th token of a segment, from j mod r on. The rows of
one offset are heads o, o+r, ... (fewer offsets than heads of each: one part an offset). The rows of r consecutive heads
are also regular, as each starts one token and one head after the one before it (fewer heads of an offset than offsets: one
part for r heads). Either way a part is [segments, heads, rows] with one stride for each, so that it can be read in place.
"""

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True)
class Part:
    """Head i of the part is head `head + i * head_step`, and starts `token + i * token_step` tokens into the segment."""
    w: int
    r: int
    segments: int
    heads: int
    rows: int
    token: int
    head: int
    token_step: int
    head_step: int

    def view(self, x):
        """Of x [N, H, ...]: [segments, heads, rows, ...] in place."""
        of_token, of_head, *tail = x.stride()
        return x.as_strided(
            (self.segments, self.heads, self.rows, *x.shape[2:]),
            (self.w * of_token, self.token_step * of_token + self.head_step * of_head, self.r * of_token, *tail),
            x.storage_offset() + self.token * of_token + self.head * of_head)

    def spread(self, x, heads, fill):
        """The inverse of view, without writing in place, so that a compiler can fuse it: x [segments (or fewer), heads,
        rows, ...] on [tokens, H, ...], `fill` where the part has no row."""
        tail = [1] * (x.dim() - 3)
        segments, most_rows = x.shape[0], -(-self.w // self.r)
        x = x.movedim(1, 2)
        if self.r == 1:
            return x.reshape(-1, *x.shape[2:])
        residue = torch.arange(self.r, device=x.device)
        if self.token_step:
            own = residue[:, None] == torch.arange(self.heads, device=x.device)
            x = torch.where(own.view(self.r, self.heads, *tail), x.unsqueeze(2), fill).flatten(1, 2)
            return pad(x, 2, self.head, heads - self.head - self.heads, fill).flatten(0, 1)
        x = pad(x, 1, 0, most_rows - self.rows, fill)
        x = pad(x, 2, 0, -(-heads // self.r) - self.heads, fill)
        own = (residue[:, None, None] == self.token) & (residue == self.head)
        x = torch.where(own.view(self.r, 1, self.r, *tail), x[:, :, None, :, None], fill)
        x = x.reshape(segments, most_rows * self.r, -1, *x.shape[5:])
        return x[:, :self.w, :heads].flatten(0, 1)


def pad(x, dim, before, after, fill):
    if not before and not after:
        return x
    return torch.nn.functional.pad(x, [0, 0] * (x.dim() - dim - 1) + [before, after], value=fill)


def parts_of(tokens, heads, branches):
    """For each branch its parts; those of fewer launches."""
    result = []
    for w, r in branches:
        w = min(w, tokens)
        if tokens % w:
            raise ValueError(f'{tokens} tokens are no multiple of the segment of {w}')
        offsets = min(r, heads)
        if w % r == 0 and -(-heads // r) < offsets:
            result.append([Part(w, r, tokens // w, min(r, heads - first), w // r, 0, first, 1, 1)
                           for first in range(0, heads, r)])
        else:
            result.append([Part(w, r, tokens // w, -(-(heads - o) // r), -(-(w - o) // r), o, o, 0, r)
                           for o in range(offsets)])
    return result


def forward_flops(parts, dim, causal):
    """4 for each pair of a query and a key that it sees, and each of their elements."""
    pairs = sum(p.segments * p.heads * (p.rows * (p.rows + 1) // 2 if causal else p.rows**2) for b in parts for p in b)
    return 4 * dim * pairs


def attend(q, k, v, causal=True):
    """(out, log of the softmax's denominators): [B, H, rows, D] and [B, H, rows], any strides. Differentiable, but not through
    the denominators."""
    if q.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False)[:2]
        return out, lse.reshape(q.shape[:3])  # some versions carry a trailing dimension of one
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


def attend_backward(dout, q, k, v, out, lse, causal=True):
    """(dq, dk, dv). `out` and `lse` may be those of a softmax over more keys than these: the gradient is then that of these
    keys' share of it. On a GPU out and dout must have q's strides: cuDNN's plans are cached by q's, k's and v's alone."""
    if q.is_cuda:
        # No dropout, so the state of the random numbers is read by nobody.
        state = no_random_state(q.device)
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            dout, q, k, v, out, lse.contiguous().unsqueeze(-1), state, state, None, None, None, q.shape[2], k.shape[2], 0.0,
            causal)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal)


@functools.lru_cache
def no_random_state(device):
    return torch.zeros((), dtype=torch.int64, device=device)
