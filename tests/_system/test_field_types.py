"""Options are of the types that they are declared with, from Python as from flags."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mkdext.methods import MKDOptions
from mkdext.synthesis.losses import Criterion, LossWeights
from mkdext.training import (
    ContrastiveOptions,
    DataFreeOptions,
    GeneratorOptions,
    MetaOptions,
    TrainOptions,
)


def test_what_means_the_same_becomes_the_declared_type(tmp_path):
    options = TrainOptions(
        train_dir=str(tmp_path),
        val_dir=[tmp_path, "holdout"],
        student_points=["0"],
        out="runs/a",
        lr=1,
        lr_min=np.float32(0.5),
        iterations=np.int64(5),
    )
    assert options.train_dir == (tmp_path,)
    assert options.val_dir == (tmp_path, Path("holdout"))
    assert (options.student_points, options.out) == (("0",), Path("runs/a"))
    assert [type(v) for v in (options.lr, options.lr_min, options.iterations)] == [
        *(float, float, int)
    ]
    assert DataFreeOptions(scale=2).scale == (2,)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TrainOptions, {"iterations": None}, "`iterations` must be an integer, got None"),
        (TrainOptions, {"seed": 1.5}, "`seed` must be an integer, got 1.5"),
        (TrainOptions, {"lr": "1e-3"}, "`lr` must be a number, got '1e-3'"),
        (TrainOptions, {"batch_size": True}, "`batch_size` must be an integer, got True"),
        (TrainOptions, {"kd_fade": "no"}, "`kd_fade` must be true or false, got 'no'"),
        (TrainOptions, {"kd_weight": "x"}, "`kd_weight` must be a number or None, got 'x'"),
        (TrainOptions, {"train_dir": [3]}, "`train_dir` must be a list of paths, got [3]"),
        (TrainOptions, {"student": 3}, "`student` must be a text, got 3"),
        (TrainOptions, {"out": None}, "`out` must be a path, got None"),
        (TrainOptions, {"mkd": {}}, "`mkd` must be of type MKDOptions, got {}"),
        (MetaOptions, {"every": 1.0}, "`meta.every` must be an integer, got 1.0"),
        (MKDOptions, {"grid": "8"}, "`mkd.grid` must be an integer, got '8'"),
        (LossWeights, {"contrastive": None}, "`weights.contrastive` must be a number, got None"),
        (GeneratorOptions, {"channels": "3"}, "`generator.channels` must be one of 1, 3, got '3'"),
        (ContrastiveOptions, {"bank_bytes": 0.5}, "`contrastive.bank_bytes` must be an integer"),
        (DataFreeOptions, {"scale": (2.0,)}, "`scale` must be a list of integers, got (2.0,)"),
    ],
)
def test_another_type_is_refused_by_the_name_of_the_argument(kind, given, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        kind(**given)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TrainOptions, {"teacher_dtype": "int8"}, "must be one of 'float32', 'bfloat16', got 'i"),
        (MetaOptions, {"inner_optimizer": "rmsprop"}, "one of 'sgd', 'adam' or None, got 'rms"),
        (GeneratorOptions, {"channels": 2}, "`generator.channels` must be one of 1, 3, got 2"),
        (Criterion, {"error": "l2"}, "`error` must be one of 'l1', 'squared', got 'l2'"),
    ],
)
def test_a_name_that_is_none_of_the_known_is_refused(kind, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**given)
