"""FlexAttention over blocks that are known beforehand, and what it computes, for machines without its kernels."""

import torch


def blocks_of(partial, full, block, tokens, mask_mod=None):
    """partial, full: bool [H or 1, nq, nk], no block in both. `mask_mod` is asked about the partial ones only."""
    from torch.nn.attention.flex_attention import BlockMask  # pylint: disable=import-outside-toplevel
    return BlockMask.from_kv_blocks(*ordered(partial), *ordered(full), BLOCK_SIZE=block, mask_mod=mask_mod,
                                    seq_lengths=(tokens, tokens))


def ordered(blocks):
    """[H, nb, nb] as counts and indices, [1, H, nb] and [1, H, nb, nb]."""
    indices = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None].contiguous(), indices.to(torch.int32)[None].contiguous()


def flex_attention(compiled, device):
    """FlexAttention, compiled; on a CPU, where it has no backward pass, its definition."""
    if device.type != 'cuda':
        return flex_by_definition
    from torch.nn.attention import flex_attention as module  # pylint: disable=import-outside-toplevel
    return compiled(module.flex_attention)


def flex_by_definition(q, k, v, score_mod=None, block_mask=None):
    """The blocks count, not the mask_mod alone."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1]**0.5
    batch, head, query, key = (torch.arange(n).view(-1, *[1] * (3 - i)) for i, n in enumerate(scores.shape))
    partial = visited(block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.BLOCK_SIZE)
    full = visited(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, block_mask.BLOCK_SIZE)
    shown = full | (partial & block_mask.mask_mod(batch, head, query, key))
    if score_mod:
        scores = score_mod(scores, batch, head, query, key)
    return torch.softmax(scores.masked_fill(~shown, float('-inf')), -1) @ v


def visited(counts, indices, sizes):
    """[1, H, nq] and [1, H, nq, nk] as a mask over tokens."""
    taken = torch.arange(indices.shape[-1]) < counts.unsqueeze(-1)
    blocks = torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), taken)
    return blocks.repeat_interleave(sizes[0], -2).repeat_interleave(sizes[1], -1)
