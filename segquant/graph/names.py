"""ATen operations by what they do to the features of a tensor; in-place ones go by plain names."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Another shape for the same numbers in the same order.
RESHAPES = _names(
    """
    _reshape_alias _unsafe_view flatten reshape reshape_as unflatten view view_as
    """
)
# Numbers change place only: these run on the shadows as they are.
MOVES = _names(
    """
    adjoint atleast_1d atleast_2d broadcast_to cat channel_shuffle chunk concat concatenate
    diagonal dstack expand expand_as flip hstack mT moveaxis movedim narrow numpy_T permute
    pixel_shuffle pixel_unshuffle repeat repeat_interleave roll rot90 select slice split
    split_with_sizes squeeze squeeze_copy stack swapaxes swapdims t tensor_split tile
    transpose unbind unfold unsafe_chunk unsafe_split unsqueeze vstack
    """
)
# The numbers stay as they are, but for casts and dropout.
PASSES = _names(
    """
    _conj _to_copy alias alpha_dropout clone contiguous detach detach_copy dropout
    feature_dropout lift_fresh lift_fresh_copy native_dropout resolve_conj resolve_neg to
    type_as view_of
    """
)
# The result depends on no tensor: a constant.
FACTORIES = _names(
    """
    arange bernoulli empty empty_like empty_permuted empty_strided eye fill full full_like
    hann_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros
    normal ones ones_like rand rand_like randint randint_like randn randn_like scalar_tensor
    uniform zero zeros zeros_like
    """
)
# Named after the module that applies them.
ACTIVATIONS = _names(
    """
    abs celu elu exp gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu
    relu6 selu sigmoid silu softplus square tanh
    """
)
# An activation that makes a product with it a gated one.
GATES = _names("silu gelu relu mish hardswish softplus")
