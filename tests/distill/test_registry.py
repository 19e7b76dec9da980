from __future__ import annotations

import pytest

from mkdext.distill import MKD, method_class, method_names


def test_every_method_is_known_by_its_name():
    assert method_class("mkd") is MKD
    assert {"mkd", "response"} <= set(method_names())


def test_an_unknown_method_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"got 'respons'; did you mean response\?"):
        method_class("respons")
