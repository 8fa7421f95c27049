"""A small transformer language model.

Shapes: `N` texts of one batch, `T` tokens in each, `W` the width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """A decoder-only transformer: at each token, what comes next.

    Embeddings of tokens and of positions are added. Each layer has causal
    self-attention, and a dense network of width 4 W with GELU. Before each of them is a
    layer normalisation, and beside it a shortcut.

    Attributes:
        width: W, of the embeddings; a multiple of `heads`.
        layers: number of layers.
        heads: number of attention heads.
        vocabulary: number of tokens. The logits of a text with a larger one are NaN.
        num_classes: number of logits, usually the same.

    Examples:
        >>> model = Transformer()
        >>> tokens = jnp.zeros((1, 32), jnp.int32)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens)
        >>> sum(x.size for x in jax.tree.leaves(params))
        32736

    References:
        Vaswani et al., [Attention Is All You Need](https://arxiv.org/abs/1706.03762),
        NeurIPS 2017; with the normalisation first, as in Xiong et al., [On Layer
        Normalization in the Transformer Architecture](
        https://arxiv.org/abs/2002.04745), ICML 2020.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    vocabulary: int = 96
    num_classes: int = 96

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, T, num_classes]` of tokens int32 `[N, T]`."""
        if inputs.ndim != 2 or inputs.dtype != jnp.int32:
            raise ValueError(
                f"Transformer wants tokens int32 [N, T], but got {inputs.dtype} of "
                f"shape {inputs.shape}; it is for texts"
            )
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, but they are {self.width} and "
                f"{self.heads}"
            )
        x = nn.Embed(self.vocabulary, self.width)(inputs)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, inputs.shape[1], self.width)
        )
        x, mask = x + positions, nn.make_causal_mask(inputs)
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(y, mask=mask)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x))
