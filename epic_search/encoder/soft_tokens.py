"""From an embedding to an input token: the projectors of soft tokens and of the Contextual token.

Every learned projector starts as a linear isometry times a gain, so that geometry survives the first step and the
token's norm is that of an ordinary token embedding. For the MLP this is exact: gelu(x) - gelu(-x) = x, hence
W2 = [A, -A] behind W1 = [I; -I] gives A x. Why norms matter: xRAG (arXiv 2405.13792) and Vector-ICL
(arXiv 2410.05629) train such projectors into frozen models.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """(..., `width_in`) unit-length vectors -> (..., `width_out`) input tokens.

    `kind`: "identity" (the vector itself), "rescale" (scaled to `token_norm`), "linear", or "mlp" (Linear-GELU-Linear).
    Made on the meta device, to be read from a file, it computes no values, for which torch would import its compiler.
    """

    gain: Tensor

    def __init__(self, kind: str, width_in: int, width_out: int, *, token_norm: float) -> None:
        super().__init__()
        self.kind = kind
        self.net: nn.Module
        # An isometry onto fewer dimensions keeps out/in of a vector's energy on average.
        kept = math.sqrt(min(1.0, width_out / width_in))
        gain = {"identity": 1.0, "rescale": token_norm}.get(kind, token_norm / kept)
        self.register_buffer("gain", torch.tensor(gain))
        if kind in ("identity", "rescale"):
            assert width_in == width_out, (kind, width_in, width_out)
            self.net = nn.Identity()
        elif kind == "linear":
            self.net = nn.Linear(width_in, width_out)
            if not self.net.weight.is_meta:
                nn.init.orthogonal_(self.net.weight)
                nn.init.zeros_(self.net.bias)
        else:
            assert kind == "mlp", kind
            self.net = _isometric_mlp(width_in, width_out)

    @torch.no_grad()
    def reorder(self, order_E: Tensor) -> None:
        """Take from now on, as input i, what has been input `order_E[i]`."""
        layer = self.net[0] if isinstance(self.net, nn.Sequential) else self.net
        assert isinstance(layer, nn.Linear), self.kind
        layer.weight.copy_(layer.weight[:, order_E.to(layer.weight.device)])

    def forward(self, vectors: Tensor) -> Tensor:
        if self.kind == "rescale":
            vectors = F.normalize(vectors, dim=-1)
        return self.net(vectors) * self.gain


def _isometric_mlp(width_in: int, width_out: int) -> nn.Sequential:
    narrow = min(width_in, width_out)
    expand, contract = nn.Linear(width_in, 2 * narrow), nn.Linear(2 * narrow, width_out)
    net = nn.Sequential(expand, nn.GELU(), contract)
    if expand.weight.is_meta:
        return net
    isometry = nn.init.orthogonal_(torch.empty(width_out, width_in))
    # The rectangular factor goes where it makes the hidden layer narrow.
    first = torch.eye(width_in) if width_in <= width_out else isometry
    second = isometry if width_in <= width_out else torch.eye(width_out)
    with torch.no_grad():
        expand.weight.copy_(torch.cat([first, -first]))
        contract.weight.copy_(torch.cat([second, -second], dim=1))
        expand.bias.zero_()
        contract.bias.zero_()
    return net
