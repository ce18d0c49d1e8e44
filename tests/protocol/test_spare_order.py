"""The order that turns a spare into a worker."""

from __future__ import annotations

from vllama.protocol.spare_order import SpareOrder


def test_an_order_is_one_line_whatever_is_in_it() -> None:
    order = SpareOrder(["--flag", "two\nlines"], {"A": "é\n"}, "/log")
    line = order.encode()
    assert line.count(b"\n") == 1
    assert SpareOrder.decode(line) == order
