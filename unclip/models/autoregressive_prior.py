"""Autoregressive prior p(z_i | y): z_i as a sequence of codes, each drawn given those before it (unCLIP §2.2).

The principal components of z_i, quantised (`CodedEmbeddings`), are predicted one after another by a causal transformer
behind [text tokens, z_t, s], where s is a token for the dot product z_i · z_t. In training s is the true one; when
sampling it is chosen high, which asks for a picture that fits its caption well.

Legend of shapes: B batch, N pairs to fit to, L text tokens, D embedding size, C token-state size, W width, H heads,
d = W / H, K components, V buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from unclip.errors import UserError
from unclip.models.caption_prior import CaptionPrior, CausalBlock, Encoded, PrefixCache
from unclip.models.codes import CodedEmbeddings
from unclip.models.layers import ScalarEmbedding
from unclip.models.ridge import ridge_map

TOP_P = 0.5  # by default: what is left out is mostly noise of many small components
EXPECTED_SCALE = 10.0  # of standard deviations, so that their features tell buckets apart


class AutoregressivePrior(CaptionPrior, CodedEmbeddings, ModelMixin, ConfigMixin):
    """Predicts the codes of z_i from a caption, the most important first (unCLIP §2.2).

    All components share their embedding of codes and their output layer, since a bucket is as many standard deviations
    wide in each of them; positions tell them apart, and each has a bias [V] of its own for how its codes are spread.

    Beside the paper's, a token knows what a linear map of z_t expects of the code that it predicts. To read each of K
    numbers out of z_t is hard for layers that all positions share; fitted in closed form, it is there from the start.
    """

    similarity_edges: Tensor  # [similarity_buckets - 1]
    expected_weight: Tensor  # [K, D]
    expected_bias: Tensor  # [K]

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 256,
        token_dim: int = 384,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        max_tokens: int = 32,
        dropout: float = 0.0,
        components: int = 128,
        buckets: int = 64,
        similarity_buckets: int = 16,
    ) -> None:
        super().__init__()
        if similarity_buckets < 2 or similarity_buckets % 2:
            raise UserError(
                "similarity_buckets: expected an even number, of which sampling takes the upper half, "
                f"got {similarity_buckets}"
            )
        self.register_codes(embed_dim, components, buckets)
        self.register_buffer("similarity_edges", torch.linspace(-1, 1, similarity_buckets + 1)[1:-1].clone())
        self.register_buffer("expected_weight", torch.zeros(components, embed_dim))
        self.register_buffer("expected_bias", torch.zeros(components))
        self.register_caption_input(embed_dim, token_dim, width, max_tokens)
        self.similarity_in = nn.Embedding(similarity_buckets, width)
        self.code_in = nn.Embedding(buckets, width)
        self.expected_in = ScalarEmbedding(width, EXPECTED_SCALE)
        self.code_positions = nn.Parameter(torch.empty(components, width))
        self.register_blocks(width, layers, heads, dropout)
        self.out = nn.Linear(width, buckets)
        self.code_bias = nn.Parameter(torch.zeros(components, buckets))
        self.initialize(self.similarity_in.weight, self.code_in.weight, self.code_positions)

    @torch.no_grad()
    def fit_pairs(self, z: Tensor, z_t: Tensor) -> None:
        """Fit, once `fit_pca` has been, what relates z_i to z_t over pairs z, z_t [N, D].

        That is the linear map of z_t to the coordinates of z_i, and the quantiles of z_i · z_t: between them lie the
        buckets of the similarity, each of which holds the same share of the pairs.
        """
        weight, bias = ridge_map(z_t, self.coordinates(z))
        self.expected_weight.copy_(weight)
        self.expected_bias.copy_(bias)
        similarity = (z.float() * z_t.float()).sum(-1)
        count = len(self.similarity_edges) + 1
        self.similarity_edges.copy_(similarity.quantile(torch.arange(1, count) / count))

    def similarity_code(self, z: Tensor, z_t: Tensor) -> Tensor:
        """The bucket of z_i · z_t, int64 [B]; z and z_t [B, D] of unit norm."""
        similarity = (z.float() * z_t.float()).sum(-1)
        return torch.bucketize(similarity, self.similarity_edges.float())

    def prefix(self, text_tokens: Tensor, text_mask: Tensor, text_embeds: Tensor) -> PrefixCache:
        """As of `CaptionPrior`, and `places` [B, K, W]: the codes' positions, and what z_t lets expect of each."""
        cache = super().prefix(text_tokens, text_mask, text_embeds)
        expected = F.linear(text_embeds.float(), self.expected_weight.float(), self.expected_bias.float())
        return PrefixCache({**cache, "places": self.code_positions + self.expected_in(expected)})

    def forward(self, codes: Tensor, similarity: Tensor, **text: Tensor) -> Tensor:
        """Logits of every code given the caption, the similarity and the codes before it (teacher forcing).

        Args:
            codes: int64 [B, K], as `encode` gives them; the last one is predicted only.
            similarity: int64 [B], as `similarity_code` gives it.
            text: the arguments of `prefix`, or what it made of them; P captions serve B / P rows in succession each.

        Returns: [B, K, V].
        Raises: UserError if the codes are of another size, or the text is missing or does not fit them.
        """
        K = len(self.code_positions)
        if codes.ndim != 2 or codes.shape[1] != K or similarity.shape != codes.shape[:1]:
            raise UserError(
                f"expected codes [B, {K}] and a similarity [B], got {tuple(codes.shape)} and "
                f"{tuple(similarity.shape)}: make them with encode and similarity_code"
            )
        prefix = self._prefix_for(len(codes), text)
        tokens = torch.cat([self.similarity_in(similarity)[:, None], self.code_in(codes[:, :-1])], dim=1)
        h = self._behind(tokens + prefix["places"], prefix)
        return self.out(self.norm_out(h)) + self.code_bias

    @torch.no_grad()
    def sample(
        self,
        text: Encoded,
        generators: Sequence[torch.Generator],
        *,
        temperature: float = 1.0,
        top_p: float = TOP_P,
    ) -> Tensor:
        """Draw image embeddings for captions, [B, D] of unit norm, float32.

        The similarity is drawn from the top half of its distribution (unCLIP §2.2). Its buckets hold equal shares of
        the training pairs, so that is each bucket of the upper half with the same probability.

        Args:
            text: P captions. generators: of B rows, on the CPU, those of the first caption first; B is a multiple of P.
                A row depends on its caption and its generator alone.
            temperature: logits are divided by it; 0 takes the likeliest code each time.
            top_p: of each code the likeliest buckets that together reach this probability are kept; 1 draws from the
                distribution as it is, whose many small components are noise to a caption.

        Raises: UserError for a temperature below 0, a top_p outside (0, 1], or rows that do not fit the captions.
        """
        if temperature < 0 or not 0 < top_p <= 1:
            raise UserError(
                "expected a temperature of at least 0, and top_p above 0 and at most 1, "
                f"got {temperature:g} and {top_p:g}"
            )
        K, S = len(self.code_positions), len(self.similarity_edges) + 1
        # All chance of a row, before any arithmetic that depends on who else is in the batch.
        drawn = [torch.rand(K + 1, generator=each) for each in generators]
        chances = torch.stack(drawn).to(self.scale.device)
        stream = CodeStream(self, self.read(text).for_rows(len(generators)))
        token = self.similarity_in(S // 2 + (chances[:, 0] * (S // 2)).long())
        codes = []
        for k in range(K):
            logits = stream.advance(token)
            codes.append(draw(logits, chances[:, k + 1], temperature, top_p))
            token = self.code_in(codes[-1])
        return self.decode(torch.stack(codes, dim=1))


class CodeStream:
    """The network run token by token: keeps keys and values of all that it has seen, in place."""

    def __init__(self, prior: AutoregressivePrior, prefix: PrefixCache) -> None:
        self.prior, self.seen, self.drawn = prior, prefix["prefix_keys"].shape[3], 0
        self.places = prefix["places"]
        K = self.places.shape[1]
        pasts = zip(prefix["prefix_keys"].unbind(1), prefix["prefix_values"].unbind(1), strict=True)
        self.pasts = [(F.pad(k, (0, 0, 0, K)), F.pad(v, (0, 0, 0, K))) for k, v in pasts]  # [B, H, L+1+K, d]
        real = prefix["text_mask"]
        self.mask = F.pad(real, (0, self.seen + K - real.shape[1]), value=True)[:, None, None]

    def advance(self, token: Tensor) -> Tensor:
        """Take in the next token [B, W], the similarity's or a code's -> logits of the next code, [B, V] float32."""
        prior, at = self.prior, self.seen
        self.seen += 1
        h = (token + self.places[:, self.drawn])[:, None]
        for block, (keys, values) in zip(cast("list[CausalBlock]", prior.blocks), self.pasts, strict=True):
            q, keys[:, :, at : at + 1], values[:, :, at : at + 1] = block.heads_of(h)
            h = block.advance(h, self.mask[..., : at + 1], q, keys[:, :, : at + 1], values[:, :, : at + 1])
        logits = prior.out(prior.norm_out(h[:, 0])) + prior.code_bias[self.drawn]
        self.drawn += 1
        return logits.float()


def draw(logits: Tensor, chances: Tensor, temperature: float, top_p: float) -> Tensor:
    """One index of each row of logits [B, V], by the number in [0, 1) that `chances` [B] has for it, int64 [B].

    The inverse of the cumulative distribution over the indices from the first to the last, of what `top_p` leaves.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    p = (logits.float() / temperature).softmax(dim=1)
    ordered, order = p.sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered  # the likeliest has nothing before it, so it always stays
    p = p.masked_fill((before >= top_p).gather(1, order.argsort(dim=1)), 0)
    cumulative = p.cumsum(dim=1)
    # Above 0 and at most the whole, so that no bucket without probability is hit.
    targets = (1 - chances[:, None]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets)[:, 0]
