"""Operators are sorted into kinds of work by their names."""

import pytest

from moe_hf.bench.speed.profiles import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mkldnn::_linear_pointwise", "gemm"),
        ("aten::_grouped_mm", "gemm"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_log_softmax", "loss"),
        ("aten::_softmax", "elementwise"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::_embedding_bag", "index"),
        ("aten::copy_", "copies"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "glue"),
        ("_SortedExpertsBackward", "glue"),
        ("aten::as_strided", "rest"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNN", "gemm"),
        ("_weight_gradient_kernel", "gemm"),
        ("_place_kernel", "index"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "activation"),
    ],
)
def test_operators_are_sorted_by_what_they_do(name, kind):
    assert kind_of(name) == kind
