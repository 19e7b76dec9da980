from __future__ import annotations

import torch

from mkdext.synthesis.randomness import Draw, drawn, random_for


def test_scales_are_drawn_evenly_and_by_the_seed():
    scales = (2, 3, 4)
    sequence = [drawn(scales, 0, Draw.SCALE, step) for step in range(600)]
    assert all(150 < sequence.count(scale) < 250 for scale in scales)
    assert sequence == [drawn(scales, 0, Draw.SCALE, step) for step in range(600)]
    assert sequence != [drawn(scales, 0, Draw.GENERATION_SCALE, step) for step in range(600)]


def test_purposes_and_steps_have_numbers_of_their_own():
    cases = [(0, Draw.IMAGES, 0), (0, Draw.IMAGES, 1), (0, Draw.SAMPLES, 0), (1, Draw.IMAGES, 0)]
    numbers = [torch.rand(4, generator=random_for(*case)) for case in cases]
    assert len({tuple(row.tolist()) for row in numbers}) == len(cases)
    assert torch.equal(numbers[0], torch.rand(4, generator=random_for(*cases[0])))
