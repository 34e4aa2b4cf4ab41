"""The operator of the experiments, compiled and by torch, against attention in double."""

from __future__ import annotations

import pytest
import torch

from shoal.engine import machine
from shoal.experiments.prefixes import Tree
from shoal.experiments.tensors.attention import Compiled, Drawn, Shape, Torch, differing

pytestmark = pytest.mark.skipif(not machine.compiled(), reason="the compiled kernels were not built")


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_all_ways_are_attention(dtype, near, kv_heads):
    drawn = Drawn(Tree(((200,), (5, 1, 140))), Shape(dtype, heads=6, kv_heads=kv_heads, size=16), 3)
    wanted = drawn.exact()
    shared = Compiled(drawn, 2, 1, page_size=8)
    for found in (shared(), Torch(drawn).each().view(3, 6, 16)):
        torch.testing.assert_close(found.double(), wanted, atol=near, rtol=near)
    even = Drawn(Tree(((200,), (5, 5, 5))), Shape(dtype, heads=6, kv_heads=kv_heads, size=16), 3)
    copies, each = Torch(even).replicated(), Torch(even).each().view_as(even.query)
    torch.testing.assert_close(copies().view_as(even.query), each)
    torch.testing.assert_close(copies.by_products().view_as(even.query), each, atol=near, rtol=near)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_read_is_what_the_tree_says_and_bits_do_not_care(threads):
    tree = Tree(((300,), (128, 90), (3, 4, 5, 6)))
    drawn = Drawn(tree, Shape(kv_heads=1, size=16), 1)
    found = [Compiled(drawn, threads, shared, page_size=4) for shared in (2, 1, 0)]
    assert [each.reads() for each in found] == [sum(tree.reads(shared)) for shared in (2, 1, 0)]
    results = [each() for each in found]
    unseen = Compiled(drawn, threads, 2, share=False, like=found[0])
    assert unseen.reads() == sum(tree.reads(0))
    assert not any(differing(results[0], other) for other in (*results, unseen()))
    assert not any(differing(results[0][i : i + 1], found[0].alone(i)) for i in range(tree.count))
    assert differing(results[0], results[0] + torch.tensor([[[0.0]], [[1.0]], [[0.0]], [[0.0]]])) == 1
