"""Rows, columns and vectors against products with dense 0/1 matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oskt_torchreid.chain.layout import AxisMap, joined, spans
from oskt_torchreid.chain.narrowing import average_rows, gather_rows, sum_columns

EXAMPLE = AxisMap(blocks=1, length=3, teacher_to_student=torch.tensor([0, 1, 0, 2]))


def dense(axis: AxisMap) -> torch.Tensor:
    """The 0/1 matrix `[student positions, teacher positions]` of an axis."""
    matrix = torch.zeros(axis.blocks * axis.length, len(axis.teacher_to_student), dtype=torch.float64)
    for teacher, student in enumerate(axis.teacher_to_student.tolist()):
        matrix[student, teacher] = 1
    return matrix


@st.composite
def axes(draw):
    """Any axis: per block, every student position has a member."""
    blocks, length, extra = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    index = []
    for block in range(blocks):
        others = [draw(st.integers(0, length - 1)) for _ in range(extra)]
        index += [block * length + position for position in draw(st.permutations([*range(length), *others]))]
    return AxisMap(blocks, length, torch.tensor(index))


def test_the_example_of_four_channels():
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert sum_columns(row, EXAMPLE).tolist() == [[4, 2, 4]]
    assert average_rows(row[0], EXAMPLE).tolist() == [2, 2, 4]
    assert EXAMPLE.members.tolist() == [2, 1, 1]


def test_two_convolution_groups_by_hand():
    """Rows 0-1 read the first group's three columns, rows 2-3 the second's; columns 0 and 2, then 1 and 2 merge."""
    axis = AxisMap(blocks=2, length=2, teacher_to_student=torch.tensor([0, 1, 0, 2, 3, 3]))
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    assert sum_columns(weight, axis).tolist() == [[4, 2], [10, 5], [7, 17], [10, 23]]
    assert average_rows(torch.arange(6.0), axis).tolist() == [1, 1, 3, 4.5]


@given(axes(), st.sampled_from([(), (1,), (3, 3)]), st.integers(1, 3))
def test_columns_are_a_product_with_the_dense_matrix(axis, kernel, rows_per_block):
    columns = len(axis.teacher_to_student) // axis.blocks
    weight = torch.randn(axis.blocks * rows_per_block, columns, *kernel, dtype=torch.float64)
    matrix = dense(axis)
    parts = []
    for block in range(axis.blocks):
        own = matrix[block * axis.length : (block + 1) * axis.length, block * columns : (block + 1) * columns]
        rows = weight[block * rows_per_block : (block + 1) * rows_per_block]
        parts.append(torch.einsum("jc,rc...->rj...", own, rows))
    torch.testing.assert_close(sum_columns(weight, axis), torch.cat(parts))


@given(axes(), st.integers(0, 2))
def test_rows_are_a_product_with_the_normalised_matrix(axis, dimension):
    shape = [2, 3]
    shape.insert(dimension, len(axis.teacher_to_student))
    tensor = torch.randn(shape, dtype=torch.float64)
    matrix = dense(axis)
    expected = torch.tensordot(tensor, matrix / matrix.sum(1, keepdim=True), dims=([dimension], [1]))
    torch.testing.assert_close(average_rows(tensor, axis, dimension), expected.movedim(-1, dimension))


def test_gathered_rows():
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(gather_rows(rows, torch.tensor([2, 0, 2])), rows[[2, 0, 2]])


@pytest.mark.parametrize("blocks", [1, 2])
def test_gradients_in_double_precision(blocks):
    index = torch.cat([EXAMPLE.teacher_to_student + 3 * block for block in range(blocks)])
    axis = AxisMap(blocks, 3, index)
    weight = torch.randn(2 * blocks, 4, 3, dtype=torch.float64, requires_grad=True)
    vector = torch.randn(2, 4 * blocks, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: sum_columns(w, axis), weight)
    assert torch.autograd.gradcheck(lambda v: average_rows(v, axis, 1), vector)
    assert torch.autograd.gradcheck(lambda w: gather_rows(w, torch.tensor([1, 0, 1])), weight)


def test_identity_is_told():
    assert AxisMap(2, 2, torch.arange(4)).is_identity
    assert not AxisMap(1, 2, torch.tensor([1, 0])).is_identity
    assert not EXAMPLE.is_identity


def test_axes_behind_one_another_are_one():
    """Vectors joined, averaged and split again are the vectors averaged one by one."""
    axes = [EXAMPLE, AxisMap(2, 1, torch.tensor([0, 0, 1]))]
    vectors = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 7.0, 9.0])]
    together = joined(axes)
    assert together.teacher_to_student.tolist() == [0, 1, 0, 2, 3, 3, 4]
    means = average_rows(torch.cat(vectors), together).split([3, 2])
    assert [mean.tolist() for mean in means] == [[2, 2, 4], [6, 9]]
    assert [average_rows(*pair).tolist() for pair in zip(vectors, axes, strict=True)] == [[2, 2, 4], [6, 9]]


def test_joined_axes_begin_where_they_are_told_to():
    axes = [EXAMPLE, AxisMap(2, 1, torch.tensor([0, 0, 1]))]
    assert spans(axes, 4) == [4, 4]
    together = joined(axes, alignment=4)
    assert together.teacher_to_student.tolist() == [0, 1, 0, 2, 4, 4, 5]
    vector = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0], requires_grad=True)
    means = average_rows(vector, together)
    assert means.tolist() == [2, 2, 4, 0, 6, 9, 0, 0]
    means.sum().backward()
    assert vector.grad.tolist() == [0.5, 1, 0.5, 1, 0.5, 0.5, 1]
