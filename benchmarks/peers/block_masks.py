"""Which blocks of keys a block of queries sees: files of masks, and masks for when there is no file.

A file is a line of JSON, {"name": ..., "heads": H, "tokens": N, "block_size": B, "causal": bool}, and after it the bits, as
words of 64, little-endian, [H, nb, ceil(nb / 64)] of them with nb = ceil(N / B): key block j of a row is bit j % 64 of word
j / 64. Causal: a query sees no later key, whatever the bits say.
"""

import dataclasses
import json
import sys

import torch


@dataclasses.dataclass(frozen=True)
class Mask:
    name: str
    tokens: int
    block_size: int
    causal: bool
    blocks: torch.Tensor  # bool [H, nb, nb]

    @property
    def heads(self):
        return self.blocks.shape[0]

    def split(self):
        """(blocks of which every pair is seen, blocks of which some are)."""
        if not self.causal:
            return self.blocks, torch.zeros_like(self.blocks)
        return self.blocks.tril(-1), self.blocks & torch.eye(self.blocks.shape[-1], dtype=torch.bool)

    def pairs(self):
        """Of a query and a key that it sees, of all heads."""
        full, partial = self.split()
        return int(full.sum()) * self.block_size**2 + int(partial.sum()) * (self.block_size * (self.block_size + 1) // 2)

    def density(self):
        """Of all pairs that the same attention without the mask has."""
        every = self.tokens * (self.tokens + 1) // 2 if self.causal else self.tokens**2
        return self.pairs() / (self.heads * every)


def read_mask(path):
    with open(path, 'rb') as file:
        head = json.loads(file.readline())
        bits = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    if sys.byteorder != 'little' or head['tokens'] % head['block_size']:
        raise ValueError(f'{path}: a mask of whole blocks is wanted, on a little-endian machine')
    blocks = head['tokens'] // head['block_size']
    bits = bits.view(head['heads'], blocks, -1, 1) >> torch.arange(8, dtype=torch.uint8) & 1
    if bits.shape[2] != -(-blocks // 64) * 8:
        raise ValueError(f'{path}: {bits.shape[2]} bytes a row of {blocks} blocks')
    return Mask(head['name'], head['tokens'], head['block_size'], head['causal'],
                bits.reshape(head['heads'], blocks, -1)[:, :, :blocks].bool())


def write_mask(path, mask):
    heads, blocks, _ = mask.blocks.shape
    bits = torch.nn.functional.pad(mask.blocks.to(torch.uint8), (0, -blocks % 64)).view(heads, blocks, -1, 8)
    packed = (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    head = {'name': mask.name, 'heads': heads, 'tokens': mask.tokens, 'block_size': mask.block_size, 'causal': mask.causal}
    with open(path, 'wb') as file:
        file.write(json.dumps(head).encode() + b'\n' + bytes(packed.flatten().tolist()))


def random_mask(heads, tokens, density, causal, block_size=128, seed=1):
    """Blocks at random for each head, and the diagonal."""
    count = tokens // block_size
    chance = torch.rand(heads, count, count, generator=torch.Generator().manual_seed(seed))
    blocks = (chance < density) | torch.eye(count, dtype=torch.bool)
    return Mask(f'random-{density:g}', tokens, block_size, causal, blocks.tril() if causal else blocks)


def window_mask(heads, tokens, window, block_size=128):
    """Causal: the query's own block and those before it that hold the `window` tokens before the block."""
    block = torch.arange(tokens // block_size)
    behind = block[:, None] - block
    seen = (behind >= 0) & (behind <= window // block_size)
    return Mask(f'window-{window}', tokens, block_size, True, seen.expand(heads, -1, -1))
