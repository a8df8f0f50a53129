"""Attention: its weights taken at the mean, its values propagated."""

from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian
from covkeras.moments.graph import Call
from covkeras.moments.rules import check_one_block


@propagate.register_operation("MultiHeadAttention")
def multi_head_attention(call: Call, gaussians, context) -> Gaussian:
    """Mean by the layer; cov sum_hg B_hg M_h^T S M_g, M_h = V_h O_h (values, output), B_hg the mean over batch and
    queries of sum_j A^h_ij A^g_ij, A the attention weights at the mean (approximate: tokens independent, weights
    without noise; the batch's images share B).

    mean (batch, tokens, in) -> (batch, tokens, out); cov (in, in) of the values -> (out, out).
    """
    given = gaussians if isinstance(gaussians, list) else [gaussians]
    layer = call.operation
    # query, value, key: the order in which the layer takes them; self-attention names one tensor thrice, or twice.
    value = given[min(1, len(given) - 1)]
    check_one_block(layer, value)
    if len(value.mean.shape) != 3 or layer.attention_axes not in (None, (1,), [1]):
        raise NotImplementedError(
            f"MultiHeadAttention (layer {layer.name!r}) has a moment rule for sequences (batch, tokens, channels), got "
            f"shape {tuple(value.mean.shape)}."
        )
    mean, weights = call([g.mean for g in given], return_attention_scores=True)
    weights = ops.cast(weights, value.cov.dtype)
    rows = ops.reshape(ops.transpose(weights, (0, 2, 1, 3)), (-1, weights.shape[1], weights.shape[-1]))
    together = ops.mean(ops.matmul(rows, ops.transpose(rows, (0, 2, 1))), 0)
    # (in, heads, depth) and (heads, depth, out): Keras' own names, pinned by a test.
    values, output = (ops.cast(d.kernel, value.cov.dtype) for d in (layer._value_dense, layer._output_dense))
    matrices = ops.einsum("ihd,hdo->hio", values, output)
    half = ops.einsum("hio,ij->hjo", matrices, value.cov)
    cov = ops.einsum("hg,hjo,gjp->op", together, half, matrices)
    return Gaussian(mean, cov)
